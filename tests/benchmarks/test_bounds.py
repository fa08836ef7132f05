"""A tiny run of the benchmark of bounds writes all of its rows, and the bound lies below what it bounds."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pytest


def test_a_tiny_run_writes_its_file(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_results: Callable[[dict[str, Any]], None],
) -> None:
    monkeypatch.setattr(benchmark, "LONGEST", 2)
    given = benchmark.Arguments(out=tmp_path / "bounds.json", seeds=(0,), updates=2)
    with pyro.validation_enabled(True):
        rows = benchmark.train(given)
    benchmark.write(rows, given.out)
    check_results(json.loads(given.out.read_text()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bounds.json", "bounds.png"]
    methods = {item["method"] for item in rows}
    assert methods >= {
        "hvil",
        "hvil-exact",
        "hvil-after-exact",
        "annotated",
        "hvil-exact-after-teacher",
        "hvil-exact-hot",
    }
    assert len(methods) == 10
    assert all(item["value"] > 0 for item in rows if item["metric"] in ("gap", "inclusive_kl"))
