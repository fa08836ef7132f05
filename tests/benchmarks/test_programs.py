"""Tiny runs of the benchmark of programs write their rows, which it finds again, draws and tabulates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def test_tiny_runs_write_their_file(
    benchmark: ModuleType,
    tmp_path: Path,
    check_results: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "TEST_TRACES", 3)
    arguments = benchmark.Arguments(
        updates=2, starts=2, trial=1, out=tmp_path / "programs.json", runs=tmp_path / "runs", jobs=0
    )
    methods = ["hvil", "hvil-exact", "hvil-exact-generic", "hvil-annotated", "rnn-full"]
    runs = [benchmark.Run(name, method, 4, 0, arguments) for name in benchmark.DOMAINS for method in methods]
    rows = [item for run in runs for item in benchmark.make(run)]
    assert {benchmark.key_of(item) for item in rows} == {run.key for run in runs}
    benchmark.write_results(arguments.out, "programs", rows)
    check_results(json.loads(arguments.out.read_text()))
    benchmark.main(arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"programs.json", "programs.png", "runs"}
    lines = benchmark.table(rows).splitlines()
    assert len(lines) == 2 + len(runs)
    structured = {item["method"] for item in rows if item["metric"] == "boundary_f1"}
    assert structured == {"hvil", "hvil-exact", "hvil-annotated"}  # names of a generic graph mean nothing
    assert {item["setting"]["annotated"] for item in rows if item["method"] == "hvil-annotated"} == {4}
    with pytest.raises(SystemExit, match="there is no method guess"):
        benchmark.main(replace(arguments, methods=("guess",)))
