"""Examples and benchmarks, which are scripts and not parts of the package, as modules."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def load_script(path: str) -> ModuleType:
    """Run a script, such as ``examples/lsp_maze.py``, up to its ``main``, and return it; once for all tests."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"script_{path.removesuffix('.py').replace('/', '_')}", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where type hints are looked up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module
