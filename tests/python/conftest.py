"""Fixtures shared by the Python tests."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240611)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `isa` runs once per instruction set of this CPU."""
    if "isa" in metafunc.fixturenames:
        from tersor import kernels

        metafunc.parametrize("isa", kernels.available(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an instruction set, which is the active one while the test runs."""
    from tersor import kernels

    with kernels.use(request.param):
        yield request.param


@pytest.fixture
def gpu() -> ModuleType:
    """tersor's CUDA launchers; skips, saying why, where torch or tersor has no GPU to run on."""
    import torch

    from tersor import _native
    from tersor.errors import NativeError

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here")
    try:
        return _native.cuda()
    except NativeError as error:
        pytest.skip(str(error))
