"""The README shows what the results file of BubbleSort holds, and the summaries are right."""

import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_holds_the_table_of_the_results(benchmark: ModuleType) -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "bubble_sort.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    assert benchmark.with_table(readme, benchmark.table(rows)) == readme


def test_what_training_traces_identify(benchmark: ModuleType) -> None:
    few, many = benchmark.identifiable(2, 0), benchmark.identifiable(150, 0)
    assert 0 <= few < many <= 1
