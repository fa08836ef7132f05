"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import pyrocontrol as pc
from pyrocontrol._files import locked, replacing, settle

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork")


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


def replaced(*paths: Path, text: str) -> None:
    with replacing(*paths) as files:
        for file in files:
            file.write_text(text)


@pytest.mark.parametrize("renamed", range(-1, 4), ids="after {} renames".format)
def test_of_several_files_all_appear_or_none(tmp_path: Path, renamed: int) -> None:
    """Whenever the process ends: by a kill, here of a child, before a rename or where all have been."""
    paths = [tmp_path / name for name in ("one", "two", "three")]
    replaced(*paths, text="old")
    if (child := os.fork()) == 0:
        replace, sync, count = os.replace, os.fsync, 0

        def counted(source: Any, target: Any) -> None:
            nonlocal count
            if count == renamed:
                os._exit(0)
            replace(source, target)
            count += 1

        def synced(file: int) -> None:
            sync(file)
            if renamed < 0 or count == 3 == renamed:
                os._exit(0)  # before all are on the disk, or when all are renamed

        os.replace, os.fsync = counted, synced
        replaced(*paths, text="new")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0 and len(names(tmp_path)) > 3
    settle(*reversed(paths))
    assert [path.read_text() for path in paths] == ["new" if renamed >= 0 else "old"] * 3
    assert names(tmp_path) == {"one", "two", "three"}


def test_a_rename_that_fails_can_be_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, replace = tmp_path / "one", tmp_path / "other", os.replace

    def fail(source: Any, target: Any) -> None:
        if target == other:
            raise OSError("not this one")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="not this one"):
            replaced(other, one, text="new")
        assert not names(tmp_path)  # it was the first
        with pytest.raises(OSError, match="not this one"):
            replaced(one, other, text="new")
    settle(one, other)
    assert other.read_text() == "new" and names(tmp_path) == {"one", "other"}
    replaced(one, other, text="newer")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):  # before any is renamed
        replaced(one, tmp_path / "folder", text="newest")
    assert one.read_text() == "newer" and names(tmp_path) == {"one", "other", "folder"}


def test_what_a_killed_process_left_is_cleaned_up_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a[1].pt"
    if (child := os.fork()) == 0:
        with replacing(path):
            os._exit(0)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1
    with replacing(path) as (first,):
        assert names(tmp_path) == {first.name}
        replaced(path, text="second")
        assert first.exists() and names(tmp_path) == {first.name, path.name}
        replaced(first, text="first")  # a writer that itself writes to a temporary name
    assert path.read_text() == "first" and names(tmp_path) == {path.name}


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    lock, (read, write) = tmp_path / "new" / ".lock", os.pipe()
    with locked(lock):
        holder = rf"in use by process {os.getpid()} on .+ since \d+-\d+-\d+ \d+:\d+:\d+: '.*new/.lock'"
        with pytest.raises(BlockingIOError, match=holder), locked(lock):
            pass
        if (fork := os.fork()) == 0:  # which outlives the block, does not hold the lock
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    assert not lock.parent.exists()
    with locked(lock):
        pass
    os.close(write)
    os.waitpid(fork, 0)
    if (child := os.fork()) == 0:
        with locked(lock):
            signal.raise_signal(signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(lock.parent) == {".lock"}
    with locked(lock):
        pass
    assert names(lock.parent) == set()


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can be larger: to write more is an error like that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _policy() -> Any:
    return pc.models.ReactivePolicy(gymnasium.spaces.Box(-1, 1, (3,), np.float32), gymnasium.spaces.Discrete(2))


def _data() -> Any:
    return pc.envs.from_arrays([np.random.randn(500, 3).astype(np.float32)], [np.arange(499) % 2], action_space=2)


def _fit(path: Path) -> None:
    policy = _policy()
    pair = policy.loss, torch.optim.Adam(policy.parameters())
    pc.inference.fit(pair, _data().transitions(), steps=3, batch_size=2, out=path.parent, resume=False, progress=False)


def _minari(path: Path) -> None:
    pytest.importorskip("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(path.parent))
        pc.envs.to_minari(_data(), path.name, overwrite=True)


def parts(path: Path) -> list[Path]:
    """A file, or those in a folder."""
    return [part for part in (path, *path.rglob("*")) if part.is_file()]


WRITERS: dict[str, Callable[[Path], object]] = {
    "policy.pt": lambda path: _policy().save(path),
    "data.npz": lambda path: _data().save(path),
    "checkpoint.pt": _fit,
    "result.json": lambda path: pc.inference.write_results(
        path, "a", [pc.inference.row("m", "t", "x", 1.0, seed=0, seconds=0.0, long="l" * 4000)]
    ),
    "data-v0": _minari,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("room", [1000, 3000])
def test_a_full_disk_is_an_error_that_names_the_file_and_what_was_there_stands(
    name: str, room: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    content: dict[Path, bytes] = {}
    for _ in range(2):
        with full_disk(room), pytest.raises(OSError, match=f"File too large: '{path}'") as caught:
            WRITERS[name](path)
        assert caught.value.errno == errno.EFBIG
        assert {part: part.read_bytes() for part in parts(path)} == content
        assert names(tmp_path) - {"tensorboard"} == ({name} if content else set())
        WRITERS[name](path)
        content = {part: part.read_bytes() for part in parts(path)}
