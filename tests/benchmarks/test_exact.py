"""A tiny run of the benchmark of the exact likelihood writes all of its rows, and what it compares agrees."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import torch


def test_a_tiny_run_writes_its_file(
    benchmark: ModuleType, tmp_path: Path, check_results: Callable[[dict[str, Any]], None]
) -> None:
    out, threads = tmp_path / "exact.json", torch.get_num_threads()
    given = benchmark.Arguments(out=out, trees=2, lengths=(2, 3), mix=1, levels=(2, 3), sampled=200, updates=5)
    with pyro.validation_enabled(True):
        benchmark.main(given)
    torch.set_num_threads(threads)
    results = json.loads(out.read_text())
    check_results(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact.json", "exact.png"]
    rows = results["rows"]
    assert {item["metric"] for item in rows} >= {"error", "z", "seconds", "table_megabytes"}
    assert all(item["value"] < 1e-10 for item in rows if item["metric"] == "error")
