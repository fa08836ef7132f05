"""Examples and benchmarks, which are scripts and not parts of the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(path: str) -> ModuleType:
    """Run a script, such as ``examples/lsp_maze.py``, up to its ``main``, and return it."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"script_{path.removesuffix('.py').replace('/', '_')}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module
