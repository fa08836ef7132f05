"""The benchmark of training from disk: a tiny run measures everything, a limit is one, and nothing stays behind."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and caches as Linux has them")


def test_a_tiny_run(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_results: Callable[[dict[str, Any]], None],
) -> None:
    # All in this process, which is much faster.
    monkeypatch.setattr(benchmark, "in_a_process", lambda limit=None, **task: benchmark.perform(**task))
    out, folder = tmp_path / "lazy_demonstrations.json", tmp_path / "files"
    folder.mkdir()
    with pyro.validation_enabled(True):  # which perform() turns off
        benchmark.main(
            benchmark.Arguments(folder=folder, out=out, gigabytes=0.01, files=2, steps=20, updates=2, seeds=(0, 1))
        )
    assert not list(folder.iterdir())
    results = json.loads(out.read_text())
    check_results(results)
    found = {(row["method"], row["metric"]) for row in results["rows"]}
    metrics = ("updates_per_second", "update_cpu_seconds", "peak_memory_bytes", "file_bytes")
    trained = {(method, metric) for method in ("stored", "in-memory") for metric in metrics}
    assert found == trained | {("stored", "check_seconds"), ("stored", "transitions")}
    for row in results["rows"]:
        assert row["value"] > 0
        if row["metric"] == "file_bytes":
            assert row["value"] == pytest.approx(1e7 if row["method"] == "stored" else 5e6, rel=0.1)


def test_the_limit_of_a_process_is_kept(
    benchmark: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "a.npz")
    benchmark.generate(path, 4e6, 20, 0)
    found = benchmark.in_a_process(limit=2**31, what="check", paths=[path] * 3)
    assert 0 < found["peak_memory_bytes"] < 2**31 and found["transitions"] % 3 == 0
    with pytest.raises(subprocess.CalledProcessError):
        benchmark.in_a_process(limit=2**20, what="check", paths=[path])
    assert "Memory" in capfd.readouterr().err
