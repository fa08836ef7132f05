"""The script that a file of tests is about, and the examples that it runs."""

from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> ModuleType:
    """The script that the file of tests is named after."""
    return load_script(f"benchmarks/{Path(request.path).stem.removeprefix('test_')}.py")


@pytest.fixture
def example(request: pytest.FixtureRequest) -> ModuleType:
    """The example whose name a test gives as its parameter."""
    return load_script(f"examples/{request.param}.py")
