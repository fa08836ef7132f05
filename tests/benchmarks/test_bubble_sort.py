"""The README shows what the results file of BubbleSort holds, and the summaries are right."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_bubble_sort", ROOT / "benchmarks" / "bubble_sort.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_table_of_the_results(benchmark: ModuleType) -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "bubble_sort.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    assert benchmark.with_table(readme, benchmark.table(rows)) == readme


def test_what_training_traces_identify(benchmark: ModuleType) -> None:
    few, many = benchmark.identifiable(2, 0), benchmark.identifiable(150, 0)
    assert 0 <= few < many <= 1
