"""What the tests of the CPU library share: it, on the best instruction set or on each that this CPU has."""

from __future__ import annotations

import pytest

from trimtab.kernels.cpu.library import Library, available_isas, load_library


@pytest.fixture(params=available_isas())
def library(request: pytest.FixtureRequest) -> Library:
    return load_library(request.param)


@pytest.fixture(scope="session")
def best() -> Library:
    return load_library()
