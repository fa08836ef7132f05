"""How far something is, on a terminal and off it."""

from __future__ import annotations

import time

import pytest

from pyrocontrol._progress import ProgressBar


def lines(capfd: pytest.CaptureFixture[str], total: int, done: int = 0, slow: int | None = None) -> list[str]:
    with ProgressBar("episode", total, done=done) as bar, pytest.MonkeyPatch.context() as patch:
        for number in range(done + 1, total + 1):
            if number == slow:
                patch.setattr(time, "perf_counter", iter([time.perf_counter() + 4.5] * total).__next__)
            bar.show(number, lambda: "so far so good")
    return capfd.readouterr().err.splitlines()


def test_off_a_terminal_there_are_lines(capfd: pytest.CaptureFixture[str]) -> None:
    found = lines(capfd, 40)
    assert found == ["episode 0/40"] + [f"episode {number}/40  so far so good" for number in range(4, 41, 4)]
    assert lines(capfd, 40, done=30) == ["episode 30/40", *found[-3:]]
    # Where a tenth takes long, a line with numbers comes soon.
    assert lines(capfd, 1000, slow=7)[:3] == [
        "episode 0/1000",
        *(f"episode {n}/1000  so far so good" for n in (7, 100)),
    ]
    assert lines(capfd, 40, done=40) == ["episode 40/40: finished before; nothing to do"]
    with ProgressBar("episode", 3, shown=False) as bar:
        bar.show(3, str)
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert any("40/40" in line for line in lines(capfd, 40))
