"""What benchmarks share that are made of many runs."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import ModuleType

import pytest


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
