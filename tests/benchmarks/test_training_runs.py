"""What benchmarks share that are made of many runs."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("submitit")

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


def test_a_run_is_made_by_one_process_at_a_time(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, made = tmp_path / "script.py", tmp_path / "made"
    script.write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).touch()\nprint('hello')\n")
    log = tmp_path / "run" / "log.txt"
    log.parent.mkdir()
    with open(log, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        benchmark.make(script, [str(made)], "run", log)
    assert capsys.readouterr().out == "run: another process is making it\n"
    assert not made.exists() and not log.read_text()
    benchmark.make(script, [str(made)], "run", log)
    assert capsys.readouterr().out == "run: done\n"
    assert made.exists() and log.read_text() == "hello\n"
    script.write_text("raise SystemExit('no such thing')")
    benchmark.make(script, [], "run", log)
    assert capsys.readouterr().out == f"run: exit 1, {log} ends with: no such thing\n"


def test_a_job_that_is_preempted_is_queued_again_and_goes_on(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER", "local")
    script = tmp_path / "script.py"
    script.write_text("""
import os, pathlib, signal, sys, time
saved = pathlib.Path("saved")
if saved.exists():
    print("went on")
    sys.exit()
def save(*_):
    time.sleep(0.5)
    saved.touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("job").write_text(f"{os.getppid()}.")
time.sleep(60)
""")
    monkeypatch.chdir(tmp_path)

    def preempt() -> None:
        while not Path("job").exists() or not (job := Path("job").read_text()).endswith("."):
            time.sleep(0.05)
        os.kill(int(job[:-1]), signal.SIGUSR2)  # what submitit has Slurm send first

    thread = threading.Thread(target=preempt)
    thread.start()
    benchmark.make(script, [], "run", tmp_path / "log.txt")
    thread.join()
    assert capsys.readouterr().out == "run: done\n"
    assert (tmp_path / "log.txt").read_text() == "went on\n"


def test_uncommitted_changes_are_refused_unless_allowed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--rounds", "5"])
    monkeypatch.setattr(benchmark, "revision", lambda: "abc")
    assert benchmark.command_line() == ["--rounds", "5"]
    monkeypatch.setattr(benchmark, "revision", lambda: "abc+changes")
    with pytest.raises(SystemExit, match="uncommitted changes"):
        benchmark.command_line()
    sys.argv.append("--allow-dirty")
    assert benchmark.command_line() == ["--rounds", "5"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    assert benchmark.command_line() == ["--help"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_asks_for_a_clean_tree(script: Path) -> None:
    text = script.read_text()
    assert ("args=command_line()" in text) == ("tyro" in text)


def test_runs_from_uncommitted_changes_are_named(benchmark: ModuleType) -> None:
    rows = [
        {"task": "Ant", "method": method, "seed": seed, "setting": {"goal": 1, "revision": revision}}
        for method, seed, revision in (("a", 2, "x+changes"), ("a", 0, "x+changes"), ("a", 1, "x"), ("b", 0, "x"))
    ]
    assert benchmark.uncommitted(rows, "goal") == ["", "*Made from uncommitted changes: Ant, a, goal 1 (seed 0, 2).*"]
    assert benchmark.uncommitted(rows[2:]) == []
