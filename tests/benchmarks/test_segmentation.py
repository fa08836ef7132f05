"""A tiny run of the benchmark of segmentation writes all of its rows."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro


def test_a_tiny_run_writes_its_file(
    benchmark: ModuleType, tmp_path: Path, check_results: Callable[[dict[str, Any]], None]
) -> None:
    out = tmp_path / "segmentation.json"
    with pyro.validation_enabled(True):  # put back what the benchmark turns off
        benchmark.main(benchmark.Arguments(out=out, seeds=(0, 1), demos=5, updates=2))
    results = json.loads(out.read_text())
    check_results(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segmentation.json", "segmentation.png"]
    rows = results["rows"]
    assert {item["method"] for item in rows} == set(benchmark.TEXTS)
    for item in rows:  # a bound lies below what it bounds, give or take what its samples vary
        if item["metric"] == "elbo":
            (exact,) = (
                other["value"]
                for other in rows
                if (other["method"], other["seed"], other["metric"]) == (item["method"], item["seed"], "log_likelihood")
            )
            assert item["value"] < exact + 0.5
    assert len(benchmark.table(rows).splitlines()) == 2 + len(benchmark.TEXTS)
