"""The page shows what the results file of BubbleSort holds, and the summaries are right."""

import json
from types import ModuleType


def test_the_page_holds_the_table_of_the_results(benchmark: ModuleType) -> None:
    rows, page = json.loads(benchmark.RESULTS.read_text())["rows"], benchmark.PAGE.read_text()
    assert benchmark.with_table(page, benchmark.table(rows)) == page


def test_what_training_traces_identify(benchmark: ModuleType) -> None:
    few, many = benchmark.identifiable(2, 0), benchmark.identifiable(150, 0)
    assert 0 <= few < many <= 1
