"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pyrocontrol._files import replacing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    with replacing(path) as (temporary,):
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == ".npz"
    assert path.read_text() == "whole" and names(path.parent) == {"a.npz"}
    (tmp_path / "other").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as (first,), replacing(path) as (second,):
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == {"a"}  # the later one to end


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("old")

    def write() -> None:
        with replacing(one, other) as (first, second):
            first.write_text("new")
            second.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write()
    assert one.read_text() == "old" and names(tmp_path) == {"one"}


def test_of_several_files_all_appear_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, replace = tmp_path / "one", tmp_path / "other", os.replace

    def fail(source: Any, target: Any) -> None:
        if target == other:
            raise OSError("not this one")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="not this one"), replacing(one, other) as files:
        for file in files:
            file.write_text("new")
    assert not names(tmp_path)
