"""Replay: what is stored, what is drawn, and going back to a saved state."""

from __future__ import annotations

import errno
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrocontrol.inference.control.replay import Replay


def fill(replay: Replay, first: int, last: int) -> None:
    """Add transitions that carry their number."""
    for number in range(first, last):
        replay.add(np.array([number, -number]), np.array([number / 2]), 10.0 * number, np.array([number + 1, 0]), False)


def numbers(replay: Replay, batch_size: int = 400) -> set[int]:
    return set(replay.sample(batch_size).observations[:, 0].long().tolist())


def test_a_transition_comes_back_whole() -> None:
    replay = Replay(5, 2, 1)
    replay.add(np.array([1.0, 2.0]), np.array([3.0]), 4.0, np.array([5.0, 6.0]), True)
    replay.add(np.array([1.0, 2.0]), np.array([3.0]), 4.0, np.array([5.0, 6.0]), False)
    batch = replay.latest(2)
    assert batch.observations.tolist() == [[1, 2]] * 2 and batch.next_observations.tolist() == [[5, 6]] * 2
    assert batch.actions.tolist() == [[3]] * 2 and batch.rewards.tolist() == [4, 4]
    assert batch.terminated.tolist() == [1, 0] and batch.rewards.dtype == torch.float32
    assert [tuple(part.shape) for part in replay.sample(7)] == [(7, 2), (7, 1), (7,), (7, 2), (7,)]


@pytest.mark.parametrize("spare", [0, 3])
def test_the_oldest_give_way(spare: int) -> None:
    replay = Replay(10, 2, 1, spare=spare)
    fill(replay, 0, 4)
    assert len(replay) == 4 and numbers(replay) == set(range(4))
    fill(replay, 4, 37)
    assert len(replay) == 10 and replay.total == 37
    assert numbers(replay) == set(range(27, 37))
    assert replay.latest(4).observations[:, 0].tolist() == [33, 34, 35, 36]


def test_draws_are_uniform_with_replacement() -> None:
    replay = Replay(8, 2, 1)
    fill(replay, 0, 20)
    counts = Counter(replay.sample(8000).observations[:, 0].long().tolist())
    assert all(abs(count - 1000) < 150 for count in counts.values())  # five standard deviations


def test_a_batch_does_not_change_with_the_ring() -> None:
    replay = Replay(4, 2, 1)
    fill(replay, 0, 4)
    batch = replay.sample(8)
    before = batch.observations.clone()
    fill(replay, 4, 8)
    assert torch.equal(batch.observations, before)


def test_draws_depend_on_the_seed_alone() -> None:
    replays = [Replay(8, 2, 1, seed=seed) for seed in (3, 3, 4)]
    batches = []
    for index, replay in enumerate(replays):
        torch.manual_seed(index)
        fill(replay, 0, 8)
        batches.append(replay.sample(50).rewards)
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_precision_is_kept() -> None:
    replay = Replay(2, 2, 1, dtype=torch.float64)
    replay.add(np.array([1 / 3, 0]), np.array([1 / 7]), 1 / 9, np.zeros(2), False)
    assert replay.sample(1).rewards.item() == 1 / 9


@pytest.mark.parametrize("kept", [3, 25], ids=["not full", "full"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_restored_replay_draws_the_same(tmp_path: Path, where: str, kept: int) -> None:
    options: dict[str, Any] = {"path": tmp_path / "replay.bin" if where == "file" else None, "spare": 6}
    replay = Replay(10, 2, 1, **options)
    fill(replay, 0, kept)
    replay.sample(3)
    replay.flush()
    torch.save(replay.state(), tmp_path / "state.pt")
    expected = replay.sample(50).rewards
    fill(replay, kept, kept + 6)  # as far as there are spare rows, what came later does no harm
    again = Replay(10, 2, 1, **options)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.total == kept and torch.equal(again.sample(50).rewards, expected)


def test_rows_that_are_not_those_of_a_state_are_refused(tmp_path: Path) -> None:
    """Written over, for want of spare rows, or damaged on the disk, wherever in the ring; those that count."""
    path = tmp_path / "replay.bin"
    replay = Replay(2500, 2, 1, path=path, spare=30)
    for total in (2000, 6000, 2530 * 3 + 7):  # under one checksum and a part, in the middle, across the ring's end
        fill(replay, replay.total, total)
        replay.flush()
        state, whole = replay.state(), path.read_bytes()
        counted = [number % 2530 for number in range(total - len(replay), total)]
        for row in (counted[0], counted[1], counted[len(counted) // 2], counted[-1]):
            path.write_bytes(whole[: 28 * row] + bytes([whole[28 * row] ^ 1]) + whole[28 * row + 1 :])
            again = Replay(2500, 2, 1, path=path, spare=30)
            with pytest.raises(ValueError, match=r"replay.bin is damaged: transitions \d+ to \d+ are not those"):
                again.restore(state)
            assert again.total == 0
        path.write_bytes(whole)
        again = Replay(2500, 2, 1, path=path, spare=30)
        again.restore(state)
        fill(again, total, total + 30)  # no row that counted
        Replay(2500, 2, 1, path=path, spare=30).restore(state)
        assert again.state()["sums"] == sums_of(again)
        again.add(np.zeros(2), np.zeros(1), 0.0, np.zeros(2), False)
        if total > 2500:
            with pytest.raises(ValueError, match="is damaged"):
                replay.restore(state)
        path.write_bytes(whole)
        replay = Replay(2500, 2, 1, path=path, spare=30)
        replay.restore({name: value for name, value in state.items() if name != "sums"})  # as of version 0.1
        assert replay.state()["sums"] == state["sums"]


def sums_of(replay: Replay) -> list[int]:
    """Checksums of blocks of 1024 transitions, counted from the first that was ever added."""
    rows = [
        *map(np.concatenate, zip(*(part.numpy().reshape(len(replay), -1) for part in ordered(replay)), strict=True))
    ]
    first, sums = replay.total - len(replay), {}
    for number, row in enumerate(rows, first):
        sums[number // 1024] = zlib.crc32(row.tobytes(), sums.get(number // 1024, 0))
    return [*sums.values()]


def ordered(replay: Replay) -> list[Any]:
    batch = replay.latest(len(replay))
    return [batch.observations, batch.actions, batch.next_observations, batch.rewards, batch.terminated]


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, not 0"):
        Replay(0, 2, 1)
    with pytest.raises(ValueError, match="action_size must be at least 1, not 0"):
        Replay(4, 2, 0)
    replay = Replay(4, 2, 1)
    with pytest.raises(ValueError, match="an empty replay has nothing to draw"):
        replay.sample(1)
    with pytest.raises(ValueError, match="the replay holds 0 transitions, not 1"):
        replay.latest(1)
    with pytest.raises(ValueError, match=r"the saved replay has capacity, spare, O, A = \[4, 0, 2, 1\]"):
        Replay(5, 2, 1).restore(replay.state())
    stored = Replay(4, 2, 1, path=tmp_path / "replay.bin")
    with pytest.raises(ValueError, match="the saved replay has its rows in a file: give its path"):
        replay.restore(stored.state())
    with pytest.raises(ValueError, match=r"replay\.bin is a replay of another size"):
        Replay(5, 2, 1, path=tmp_path / "replay.bin")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot set room aside")
def test_a_full_disk_is_an_error_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 0

    def allocate(_file: int, offset: int, length: int) -> None:
        if offset + length > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr("pyrocontrol.inference.control.ring._ROWS_AT_ONCE", 4)
    path = tmp_path / "replay.bin"
    with pytest.raises(OSError, match="No space left on device .the replay.: '.*replay.bin'"):
        Replay(10, 2, 1, path=path)
    assert not path.exists()
    room = 8 * 7 * 4  # of the 10 rows
    replay = Replay(10, 2, 1, path=path)
    fill(replay, 0, 8)
    with pytest.raises(OSError, match="No space left on device"):
        fill(replay, 8, 9)
    assert len(replay) == 8 and numbers(replay) == set(range(8))
    again = Replay(10, 2, 1, path=path)
    again.restore(replay.state())
    assert numbers(again) == set(range(8))
    room = 10 * 7 * 4
    fill(again, 8, 23)  # around the ring
    assert numbers(again) == set(range(13, 23))
