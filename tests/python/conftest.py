"""Fixtures shared by the Python tests."""

from __future__ import annotations

from collections.abc import Iterator

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
