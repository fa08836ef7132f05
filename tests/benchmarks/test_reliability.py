"""The campaigns of reliability, in small: kills, two processes in one folder, memory; and that they find faults."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pyrocontrol.inference.training import run

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks and /proc, without CUDA"),
    pytest.mark.filterwarnings("ignore:.*use of fork"),
]


def values(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    return {row["task"]: row["value"] for row in rows if row["metric"] == metric}


def test_sixty_kills_lose_nothing(benchmark: ModuleType) -> None:
    rows = list(benchmark.kills(count=60))
    assert values(rows, "kills").keys() == benchmark.KINDS.keys() and sum(values(rows, "kills").values()) >= 60
    for metric in ("lost", "other"):
        assert values(rows, metric) == dict.fromkeys(benchmark.KINDS, 0)


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_that_is_not_finished_would_be_found(
    benchmark: ModuleType, tmp_path: Path, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not committed:
        monkeypatch.setattr(run, "settle", lambda *paths: None)

    def dying() -> str:
        replace, count = os.replace, 0

        def counted(*given: Any) -> None:
            nonlocal count
            count += 1
            if count == 5:  # the second of three runs, at the second checkpoint
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*given)

        os.replace = counted  # type: ignore[assignment]
        return benchmark.learn_together(tmp_path / "killed")

    with benchmark.prepared([benchmark.KINDS["learn_together"]]):
        whole = benchmark.Child(lambda: benchmark.learn_together(tmp_path / "whole")).wait()[-1]
        killed = benchmark.Child(dying)
        killed.wait()
        resumed = benchmark.Child(lambda: benchmark.learn_together(tmp_path / "killed")).wait()[-1]
    assert killed.killed and (resumed == whole) == committed
    assert committed or "runs of one batch must be at one step" in resumed


def test_of_two_processes_in_one_folder_one_runs(benchmark: ModuleType) -> None:
    assert [*values(list(benchmark.folders(pairs=2)), "one_runs_one_refuses").values()] == [2, 2, 2]


def test_rows_are_kept_by_campaign(
    benchmark: ModuleType,
    tmp_path: Path,
    check_results: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "_BETWEEN", 100)

    def memory(updates: int = 200) -> Any:
        yield from benchmark.memory(updates=updates)

    def other(count: int) -> Any:
        yield from benchmark.counted("other", "task", 0.0, seed=1, count=count, wrong=count)

    out = tmp_path / "reliability.json"
    for function, options in ((other, {"count": 3}), (memory, {}), (other, {"count": 4})):
        benchmark.recorded(function, out)(**options)
    results = json.loads(out.read_text())
    check_results(results)
    assert values(results["rows"], "wrong") == {"task": 4}
    assert values(results["rows"], "mebibytes_per_thousand_updates").keys() == {"fit", "learn", "dagger"}
