"""Replay of sequences: which windows are drawn and how often, dtypes, going back to a saved state, bad input."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pyrocontrol._limits import available_memory
from pyrocontrol.inference import SequenceBatch, SequenceReplay
from pyrocontrol.inference.control import ring

IMAGE = spaces.Box(0, 255, (4, 5, 3), np.uint8)
NUMBER = spaces.Box(-np.inf, np.inf, (1,), np.float32)
LENGTHS = [7, 1, 3, 12, 2, 4, 30, 5, 3, 9]  # of episodes, in steps

pytestmark = pytest.mark.filterwarnings("ignore:an episode of . observations has no window")


def steps(first: int, last: int, broken: int | None = None) -> Iterator[dict[str, Any]]:
    """Steps number `first` and on of episodes of LENGTHS; observation t of episode n is 100 n + t. One breaks off."""
    number = 0
    for episode, length in enumerate(LENGTHS * 3):
        for t in range(length):
            if episode == broken and t == length - 1:
                continue
            if first <= number < last:
                yield {
                    "observation": np.array([100.0 * episode + t]),
                    "action": np.array([t / 64]),
                    "reward": 2.0 * t,
                    "next_observation": np.array([100.0 * episode + t + 1]),
                    "terminated": t == length - 1 and episode % 2 == 0,
                    "truncated": t == length - 1 and episode % 2 == 1,
                    "first": t == 0,
                }
            number += 1


def every_window(replay: SequenceReplay, monkeypatch: pytest.MonkeyPatch) -> SequenceBatch:
    """Return each window once: what is drawn is a whole number below their number, uniformly."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda count, size, **_: torch.arange(size[0]) % count)
        return replay.sample(replay.windows)


@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 4, 20])
def test_every_window_of_an_episode_is_drawn_as_often(length: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against counting, at every step of episodes of all lengths, one broken off, several times around the ring."""
    replay = SequenceReplay(20, NUMBER, 1, length, spare=spare)
    rows: list[float] = []
    for step in steps(0, 200, broken=3):
        replay.add(**step)
        rows.append(step["observation"].item())
        if step["terminated"] or step["truncated"]:
            rows.append(step["next_observation"].item())
        held = np.array(rows[-20:])
        assert len(replay) == len(held)
        expected = (
            [part for part in np.lib.stride_tricks.sliding_window_view(held, length)] if len(held) >= length else []
        )
        expected = [part.tolist() for part in expected if part[-1] // 100 == part[0] // 100]
        assert replay.windows == len(expected)
        if expected:
            batch = every_window(replay, monkeypatch)
            assert batch.observations[..., 0].tolist() == expected
    drawn = replay.sample(4000).observations[:, 0, 0].unique(return_counts=True)[1]
    mean = 4000 / replay.windows
    assert len(drawn) == replay.windows and (drawn - mean).abs().max() < 5 * mean**0.5


def test_steps_stand_beside_their_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = SequenceReplay(100, NUMBER, 1, 4, dtype=torch.float64)
    for step in steps(0, 11):  # 7 steps, 1 and 3
        replay.add(**step)
    batch = every_window(replay, monkeypatch)
    assert batch.observations[:, :, 0].tolist() == [[s, s + 1, s + 2, s + 3] for s in (0, 1, 2, 3, 4, 200)]
    assert batch.actions[-2, :, 0].tolist() == [4 / 64, 5 / 64, 6 / 64, 0]  # none at the last observation
    assert batch.rewards[-2].tolist() == [8, 10, 12, 0] and batch.rewards.dtype == torch.float64
    assert batch.terminated.tolist() == [[0, 0, 0, 0]] * 3 + [[0, 0, 0, 1], [0, 0, 1, 0]] + [[0, 0, 1, 0]]
    assert batch.first.tolist() == [[s in (0, 200), False, False, False] for s in (0, 1, 2, 3, 4, 200)]


def test_an_episode_that_is_too_short_is_told_of_once() -> None:
    replay = SequenceReplay(100, NUMBER, 1, 5)
    for step in steps(0, 7):
        replay.add(**step)
    with pytest.warns(RuntimeWarning, match="an episode of 2 observations has no window of 5") as caught:
        for step in steps(7, 11):
            replay.add(**step)
    assert len(caught) == 1 and replay.windows == 4


SPACE = spaces.Dict(pixels=IMAGE, joints=spaces.Box(-1, 1, (3,), np.float64), touch=spaces.Box(0, 1, (), bool))


def fill(replay: SequenceReplay, first: int, last: int) -> list[dict[str, Any]]:
    """Add steps with random observations of SPACE that depend on their numbers; return them."""

    def observation(value: float) -> dict[str, Any]:
        random = np.random.default_rng(int(value))
        pixels = random.integers(0, 256, IMAGE.shape, np.uint8)
        return {"joints": random.normal(size=3), "pixels": pixels, "touch": np.array(value % 2 == 0)}

    added = []
    for step in steps(first, last):
        step["observation"], step["next_observation"] = (
            observation(step[name].item()) for name in ("observation", "next_observation")
        )
        replay.add(**step)
        added.append(step)
    return added


@pytest.mark.parametrize("where", ["memory", "file"])
def test_observations_keep_their_dtypes(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replay.bin" if where == "file" else None
    replay = SequenceReplay(12, SPACE, 1, 5, path=path)
    added = fill(replay, 0, 7)
    batch = every_window(replay, monkeypatch)
    seen: Any = batch.observations
    assert {name: (part.dtype, part.shape[2:]) for name, part in seen.items()} == {
        "joints": (torch.float64, (3,)),
        "pixels": (torch.uint8, (4, 5, 3)),
        "touch": (torch.bool, ()),
    }
    whole = [step["observation"] for step in added] + [added[-1]["next_observation"]]
    for name, part in seen.items():
        for start in range(4):
            assert np.array_equal(part[start].numpy(), [one[name] for one in whole[start : start + 5]])
    if path is not None:  # 64 bytes of pixels, 24 of joints, 4 of touch, 12 of numbers, 1 of flags, in words of 8
        assert path.stat().st_size == 12 * 112 and whole[2]["pixels"].tobytes() in path.read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 7, 61], ids=["empty", "within an episode", "at its end", "full"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_restored_replay_goes_on_to_the_bit(tmp_path: Path, where: str, kept: int) -> None:
    """A process ends some steps after its checkpoint; all that its rows overwrote was spare."""
    path = tmp_path / "replay.bin" if where == "file" else None
    options: dict[str, Any] = {"path": path, "spare": 6, "seed": 3}
    replay = SequenceReplay(20, SPACE, 1, 4, **options)
    fill(replay, 0, kept)
    replay.flush()
    torch.save(replay.state(), tmp_path / "state.pt")
    fill(replay, kept, kept + 6)
    again = SequenceReplay(20, SPACE, 1, 4, **options)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    straight = SequenceReplay(20, SPACE, 1, 4, spare=6, seed=3)
    fill(straight, 0, kept)
    for first in range(kept, kept + 30):
        for one in (again, straight):
            fill(one, first, first + 1)
        assert again.windows == straight.windows
        if straight.windows:
            parts = zip(*(torch.utils._pytree.tree_leaves(one.sample(9)) for one in (again, straight)), strict=True)
            assert all(torch.equal(*pair) for pair in parts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_windows_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SequenceReplay(20, SPACE, 1, 4)
    there = SequenceReplay(20, SPACE, 1, 4, device="cuda", path=tmp_path / "replay.bin")
    for replay in (here, there):
        fill(replay, 0, 61)
    again = SequenceReplay(20, SPACE, 1, 4, device="cuda", path=tmp_path / "replay.bin")
    again.restore(there.state())
    expected = torch.utils._pytree.tree_leaves(every_window(here, monkeypatch))
    for replay in (there, again):
        assert replay.sample(3).actions.is_cuda
        found = torch.utils._pytree.tree_leaves(every_window(replay, monkeypatch))
        assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "replay.bin"
    replay = SequenceReplay(20, SPACE, 1, 4, path=path)
    fill(replay, 0, 61)
    replay.flush()
    state, content = replay.state(), bytearray(path.read_bytes())
    content[7 * 112 + 50] ^= 1  # within an image
    path.write_bytes(content)
    again = SequenceReplay(20, SPACE, 1, 4, path=path)
    with pytest.raises(ValueError, match=r"replay.bin is damaged: observations \d+ to \d+ are not those"):
        again.restore(state)
    assert len(again) == again.windows == 0


def test_more_than_memory_is_refused_and_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "available_memory", lambda: 100_000)
    with pytest.raises(
        ValueError,
        match=r"a replay of capacity 2000 takes .* GiB, more than the .* GiB of memory that are left: "
        r"capacity may be 892, "
        r"or rows may go to a file: give a path \(of learn, an out\)",
    ):
        SequenceReplay(2000, SPACE, 1, 4)
    SequenceReplay(892, SPACE, 1, 4)
    replay = SequenceReplay(2000, SPACE, 1, 4, path=tmp_path / "replay.bin")
    fill(replay, 0, 10)
    assert len(replay.sample(3).actions) == 3


def test_memory_that_is_left_is_what_linux_says_within_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)] if str(self) in files else open("/nowhere"))
    assert available_memory() == 4096
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "4000\n"
    assert available_memory() == 4000
    files.clear()
    assert available_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot set room aside")
def test_a_full_disk_takes_no_half_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(_file: int, offset: int, length: int) -> None:
        if offset + length > 8 * 24:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(ring, "_ROWS_AT_ONCE", 4)
    replay = SequenceReplay(20, NUMBER, 1, 2, path=tmp_path / "replay.bin")
    for step in steps(0, 7):  # 8 rows
        replay.add(**step)
    with pytest.raises(OSError, match="No space left on device .the replay.: '.*replay.bin'"):
        replay.add(**next(steps(7, 8)))
    assert (replay.total, replay.windows) == (8, 7)
    short = SequenceReplay(20, NUMBER, 1, 2, path=tmp_path / "short.bin")
    for step in steps(0, 6):
        short.add(**step)
    *_, last = steps(8, 11)
    for step in steps(6, 7):  # a row for the step would fit, one for the last observation too
        short.add(**step)
    with pytest.raises(OSError, match="No space left on device"):
        short.add(**last | {"first": True})
    assert (short.total, short.windows) == (8, 7)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    step = {"observation": np.zeros(IMAGE.shape, np.uint8), "action": np.zeros(1), "reward": 0.0, "terminated": True}
    step |= {"next_observation": np.zeros(IMAGE.shape, np.uint8), "first": True}
    for given, message in (
        ({"observation": np.zeros((4, 5, 1), np.uint8)}, r"the observation has shape \[4, 5, 1\], not \[4, 5, 3\]"),
        ({"next_observation": np.zeros(IMAGE.shape)}, "the observation is of float64, not uint8"),
        ({"action": np.zeros(2)}, r"the action has shape \[2\], not \[1\]"),
        ({"first": False}, "no episode is under way: a step that does not follow one must be the first"),
    ):
        replay = SequenceReplay(8, IMAGE, 1, 2)
        with pytest.raises(ValueError, match=message):
            replay.add(**step | given)
        assert replay.total == 0
    replay = SequenceReplay(8, spaces.Dict(pixels=IMAGE), 1, 2)
    with pytest.raises(ValueError, match=r"the observation is \['image'\], not a dict of \['pixels'\]"):
        replay.add(**step | {"observation": {"image": step["observation"]}})
    with pytest.raises(ValueError, match="there is no window of 2 observations to draw"):
        replay.sample(1)
    with pytest.raises(ValueError, match="a window of 9 observations does not fit into a capacity of 8"):
        SequenceReplay(8, IMAGE, 1, 9)
    with pytest.raises(TypeError, match="observations must be a Box or a Dict of Boxes, not Discrete"):
        SequenceReplay(8, spaces.Discrete(3), 1, 2)
    with pytest.raises(
        ValueError, match=r"the saved replay has capacity, spare, A, L = \[8, 0, 1, 2\] of observations"
    ):
        SequenceReplay(8, IMAGE, 1, 3).restore(replay.state())
