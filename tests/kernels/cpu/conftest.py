"""What the tests of the CPU library share: it, on the best instruction set or on each that this CPU has."""

from __future__ import annotations

import pytest

from trimtab.kernels.cpu.library import Library, available_isas, load_library


@pytest.fixture(params=available_isas())
def library(request: pytest.FixtureRequest) -> Library:
    return _on_two_threads(load_library(request.param))


@pytest.fixture(scope="session")
def best() -> Library:
    return _on_two_threads(load_library())


def _on_two_threads(library: Library) -> Library:
    """Whatever the machine has: what threads do to each other is tested, under sanitizers too."""
    library.set_num_threads(2)
    return library
