"""Demonstrations: padding, choosing, the file, and one clear error for every kind of bad input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from pyrocontrol.envs.bubble_sort import demonstrations, teacher
from pyrocontrol.envs.data.demonstrations import Demonstrations, Episode
from pyrocontrol.models.space_json import space_to_json

FIELDS = ("observations", "actions", "lengths", "task", "arguments", "calls", "rewards", "terminated", "truncated")
REQUIRED = FIELDS[:3]


def episode(length: int = 3, width: int = 2, **changes: object) -> Episode:
    """`length` actions 0, 1, 0, ..., and observations counting up from 1."""
    observations = np.arange(1.0, 1 + (length + 1) * width).reshape(length + 1, width)
    return Episode(observations, np.arange(length) % 2, np.array([0.5]))._replace(**changes)


def same(left: Demonstrations, right: Demonstrations) -> bool:
    """Equal to the last bit."""
    pairs = [(getattr(left, name), getattr(right, name)) for name in FIELDS]
    spaces_agree = all(
        space_to_json(getattr(left, name)) == space_to_json(getattr(right, name))
        for name in ("action_space", "observation_space")
    )
    return spaces_agree and all(
        (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs
    )


def parts(**changes: object) -> dict[str, object]:
    """Arguments of a good pair of traces, of 3 and 2 actions."""
    good = Demonstrations.from_episodes([episode(3), episode(2)], 2)
    names = ("observations", "actions", "lengths", "task", "arguments")
    return {name: getattr(good, name).clone() for name in names} | {"action_space": 2} | changes


def test_padding() -> None:
    traces = Demonstrations.from_episodes([episode(3), episode(1)], 2)
    assert traces.actions.tolist() == [[0, 1, 0, 2], [0, 2, 2, 2]]
    assert traces.observations[:, :, 0].tolist() == [[1, 3, 5, 7], [1, 3, 0, 0]]
    assert traces.lengths.tolist() == [4, 2]
    assert traces.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert traces.task.tolist() == [[0.5], [0.5]]
    assert traces.arguments.shape == (2, 4, 0)
    assert traces.acted.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert traces.observations.dtype == traces.task.dtype == torch.float64
    assert traces.num_actions == traces.null == 2 and traces.calls is None and traces.rewards is None
    assert traces.action_space == Discrete(2) and traces.observation_space == Box(-np.inf, np.inf, (2,), np.float64)
    assert traces.terminated.tolist() == [True, True] and traces.truncated.tolist() == [False, False]
    assert repr(traces) == (
        "Demonstrations(2 traces, 4 actions (1 to 3 each), 2 observation numbers, actions Discrete(2), "
        "2 terminated, 0 truncated, 1 task numbers, cpu)"
    )


def test_calls_are_padded_with_minus_one() -> None:
    annotated = teacher([2, 1, 0])
    traces = Demonstrations.from_episodes([teacher([1, 1]), annotated, annotated._replace(calls=None)], 5)
    assert traces.calls is not None and annotated.calls is not None
    assert torch.equal(traces.calls[1], torch.from_numpy(annotated.calls))
    assert traces.calls[0, 16:, 0].tolist() == [-1] * (len(annotated.calls) - 16)
    assert (traces.calls[2, :, 0] == -1).all() and (traces.calls[2, :, 1] == 0).all()
    assert traces[[0, 2]].calls.shape == (2, 16, 2)
    assert traces[2].calls is None


def test_choosing_trims_to_the_longest() -> None:
    traces = Demonstrations.from_episodes([episode(3), episode(1), episode(2)], 2)
    assert traces[1].actions.tolist() == [[0, 2]]
    assert traces[-1].actions.tolist() == [[0, 1, 2]]
    assert traces[1:].actions.tolist() == [[0, 2, 2], [0, 1, 2]]
    assert traces[torch.tensor([2, 1])].lengths.tolist() == [3, 2]
    assert traces[[0, 0]].lengths.tolist() == [4, 4]
    assert traces[np.array([1])].mask.tolist() == [[True, True]]
    assert traces[traces.lengths < 4].lengths.tolist() == [2, 3]
    assert [len(one) for one in traces] == [1, 1, 1]
    again = traces[1:][1]
    assert same(again, traces[2])
    with pytest.raises(IndexError, match="trace 3 of 3"):
        traces[3]
    with pytest.raises(ValueError, match="selection is empty"):
        traces[3:]


def test_precision_and_device() -> None:
    traces = demonstrations(3, 0, annotate=True)
    double = traces.to("cpu", torch.float64)
    assert double.observations.dtype == double.task.dtype == double.calls.dtype == torch.float64
    assert double.actions.dtype == torch.long
    assert same(double.to(dtype=torch.float32), traces)


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("annotate", [False, True])
def test_a_file_returns_every_bit(tmp_path: Path, move: bool, annotate: bool) -> None:
    traces = demonstrations(12, 0, move=move, annotate=annotate)
    traces.save(tmp_path / "new" / "demos.npz")
    assert same(Demonstrations.load(tmp_path / "new" / "demos.npz"), traces)
    assert os.listdir(tmp_path / "new") == ["demos.npz"]


def test_a_file_keeps_precision_and_missing_annotations(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 4))
    traces = Demonstrations(torch.from_numpy(noise)[None], torch.tensor([[0, 1, 2]]), torch.tensor([3]), 2)
    traces.save(tmp_path / "a.npz")
    assert same(Demonstrations.load(tmp_path / "a.npz"), traces)
    mixed = Demonstrations.from_episodes([teacher([1, 0]), teacher([1, 0])._replace(calls=None)], 5)
    mixed.save(tmp_path / "b.npz")
    assert same(Demonstrations.load(tmp_path / "b.npz"), mixed)


def test_the_file_holds_actions_without_the_null(tmp_path: Path) -> None:
    traces = Demonstrations.from_episodes([episode(3), episode(1)], 2)
    traces.save(tmp_path / "demos.npz")
    with np.load(tmp_path / "demos.npz") as archive:
        assert archive["actions"].tolist() == [0, 1, 0, 0]
        assert archive["observations"].shape == (4 + 2, 2)


# ---------------------------------------------------------------------- bad demonstrations


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observation_not_finite(bad: float) -> None:
    observations = episode().observations.copy()
    observations[2, 1] = bad
    with pytest.raises(ValueError, match="trace 1, step 2: the observation is NaN or infinite"):
        Demonstrations.from_episodes([episode(), episode(observations=observations)], 2)


@pytest.mark.parametrize("action", [-1, 2, 7])
def test_action_outside_the_space(action: int) -> None:
    with pytest.raises(ValueError, match=rf"trace 1, step 1: an action outside 0..1 \(it is {action}\)"):
        Demonstrations.from_episodes([episode(), episode(actions=np.array([0, action, 1]))], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": np.zeros(0, int), "observations": np.ones((1, 2))},
            "trace 1, step 0: the trace is empty",
        ),
        ({"rewards": np.zeros(4)}, "trace 1, step 3: 4 rewards for 3 actions"),
        ({"rewards": np.zeros(3)}, "trace 1, step 0: the trace has rewards, those before have none"),
        ({"rewards": np.array(["x"])}, "trace 1, step 0: rewards must be numbers"),
        ({"observations": np.ones((4, 2), int)}, "trace 1, step 0: observations are integers, those before are floats"),
        ({"observations": np.full((4, 2), None)}, "trace 1, step 0: observations must be numbers, got object"),
        ({"actions": np.array([0, None, 1])}, "trace 1, step 0: actions must be numbers, got object"),
        ({"observations": np.ones((3, 2))}, "trace 1, step 3: 3 observations for 3 actions"),
        ({"observations": np.ones((6, 2))}, "trace 1, step 3: 6 observations for 3 actions"),
        (
            {"observations": np.ones((4, 3))},
            "trace 1, step 0: observations have width 3, those before have 2",
        ),
        ({"observations": np.ones(4)}, "trace 1, step 0: observations must have 2 dimensions"),
        ({"actions": np.array([0.0, 1.0, 0.0])}, "trace 1, step 0: actions must be integers, got float64"),
        ({"task": np.array([1.0, 2.0])}, "trace 1, step 0: task have width 2"),
        ({"task": np.array([np.nan])}, "trace 1, step 0: the task is NaN"),
        ({"arguments": np.ones((3, 2))}, "trace 1, step 0: arguments have width 2"),
        ({"observations": np.full((4, 2), "x")}, "trace 1, step 0: observations must be numbers"),
        ({"observations": [[1.0, 2.0], [3.0]]}, "trace 1, step 0: observations cannot be made an array"),
        ({"actions": 3}, "trace 1, step 0: actions must have 1 dimensions"),
        ({"calls": np.ones(3)}, "trace 1, call 0: calls must have 2 dimensions"),
        ({"calls": np.ones((3, 0))}, "trace 1, call 0: calls must have at least one column"),
        ({"calls": np.array([["x"]])}, "trace 1, call 0: calls must be numbers"),
        ({"calls": np.array([[np.nan]])}, "trace 1, call 0: the annotated call is NaN"),
    ],
)
def test_bad_episodes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_episodes([episode(), episode(**changes)], 2)


def test_calls_of_another_width() -> None:
    calls = [None, np.ones((2, 2)), np.ones((2, 3))]
    with pytest.raises(ValueError, match="trace 2, call 0: calls have width 3, those before have 2"):
        Demonstrations.from_episodes([episode(calls=c) for c in calls], 2)


def test_every_action_has_its_argument() -> None:
    counts = [4, 6]  # together as many as the actions
    for chosen, place in ((counts, "trace 0, step 4: 4"), (counts[::-1], "trace 0, step 5: 6")):
        with pytest.raises(ValueError, match=f"{place} arguments for 5 actions"):
            Demonstrations.from_episodes([episode(5, arguments=np.ones((n, 1))) for n in chosen], 2)


def test_something_else_than_an_episode() -> None:
    with pytest.raises(TypeError, match="trace 1 must be an Episode, got dict"):
        Demonstrations.from_episodes([episode(), episode()._asdict()], 2)  # type: ignore[list-item]


def test_no_episodes() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        Demonstrations.from_episodes([], 2)
    with pytest.raises(ValueError, match="the data set is empty"):
        Demonstrations(torch.zeros(0, 3, 2), torch.zeros(0, 3).long(), torch.zeros(0).long(), 2)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("actions", (1, 2), 1, "trace 1, step 2: the trace has no end"),
        ("actions", (1, 3), 0, "trace 1, step 3: an action after the end"),
        ("actions", (0, 1), 2, "trace 0, step 1: null before the end"),
        ("actions", (0, 1), 3, "trace 0, step 1: an action outside 0..1"),
        ("observations", (0, 1, 0), float("nan"), "trace 0, step 1: the observation is NaN"),
        ("observations", (1, 3, 0), 1.0, "trace 1, step 3: an observation after the end"),
        ("lengths", (1,), 1, "trace 1, step 0: the trace is empty"),
        ("lengths", (0,), 5, "trace 0, step 0: the trace has length 5, but only 4 steps"),
        ("task", (0, 0), float("inf"), "trace 0, step 0: the task is NaN"),
    ],
)
def test_bad_batches(name: str, place: tuple[int, ...], value: float, message: str) -> None:
    tensors = parts()
    tensors[name][place] = value  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        Demonstrations(**tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": torch.zeros(2, 4)}, r"observations must have shape \[B, T, O\]"),
        ({"actions": torch.zeros(2, 3).long()}, r"actions must have shape \[2, 4\], got \(2, 3\)"),
        ({"actions": torch.zeros(2, 4)}, "actions must be long integers"),
        ({"lengths": torch.tensor([3])}, r"lengths must have shape \[2\]"),
        ({"task": torch.zeros(3, 1)}, r"task must have shape \[2, any\]"),
        ({"arguments": torch.zeros(2, 3, 1)}, r"arguments must have shape \[2, 4, any\]"),
        ({"arguments": torch.ones(2, 4, 1)}, "trace 0, step 3: an action argument after the last action"),
        ({"action_space": 0}, "the number of actions must be positive"),
        ({"observation_space": Box(0, 1, (3,))}, "the observations have width 2, their space 3"),
        ({"rewards": torch.ones(2, 4)}, "trace 0, step 3: a reward after the last action"),
        ({"rewards": torch.full((2, 4), torch.nan)}, "trace 0, step 0: the reward is NaN"),
        ({"rewards": torch.zeros(2, 3)}, r"rewards must have shape \[2, 4\]"),
        ({"terminated": torch.ones(2)}, "terminated must be bool"),
        ({"truncated": torch.ones(3, dtype=torch.bool)}, r"truncated must have shape \[2\]"),
        (
            {"calls": torch.tensor([[[0.5, 0]], [[1, 0]]])},
            "trace 0, call 0: the annotated choice is no integer",
        ),
        (
            {"calls": torch.tensor([[[1.0], [1]], [[-1], [1]]])},
            "trace 1, call 1: an annotated call after the end",
        ),
    ],
)
def test_bad_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations(**parts(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FIELDS)
def test_arrays_and_lists_are_no_tensors(name: str) -> None:
    for given, kind in ((np.zeros((2, 4, 2)), "ndarray"), ([[1.0]], "list")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got {kind}; use torch.as_tensor"):
            Demonstrations(**parts(**{name: given}))  # type: ignore[arg-type]
    if name in REQUIRED:
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got NoneType"):
            Demonstrations(**parts(**{name: None}))  # type: ignore[arg-type]


def test_action_space_of_a_number_of_any_integer_kind() -> None:
    for number in (2, np.int64(2), torch.tensor(2)):
        traces = [Demonstrations(**parts(action_space=number)), Demonstrations.from_episodes([episode()], number)]  # type: ignore[arg-type]
        assert all(type(t.num_actions) is int and t.null == 2 for t in traces)
    for bad, kind in ((0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError), (None, TypeError)):
        with pytest.raises(kind, match="must be positive|must be a space or a number of actions"):
            Demonstrations(**parts(action_space=bad))  # type: ignore[arg-type]
        with pytest.raises(kind, match="must be positive|must be a space or a number of actions"):
            Demonstrations.from_episodes([episode()], bad)  # type: ignore[arg-type]


def test_fingerprint(tmp_path: Path) -> None:
    traces = Demonstrations.from_episodes([teacher([2, 1, 0]), teacher([1, 0]), teacher([0, 1])], 5)
    assert traces.calls is not None
    expected = traces.fingerprint()
    traces.save(tmp_path / "demos.npz")
    assert Demonstrations.load(tmp_path / "demos.npz").fingerprint() == expected
    names = [name for name in (*FIELDS, "_steps", "_call_steps") if name != "rewards"]
    longer = {name: getattr(traces, name)[1:] for name in names}
    assert traces[1:].fingerprint() == traces._replace(**longer).fingerprint()  # whatever the padding
    found = {
        expected,
        traces[:2].fingerprint(),
        traces[[1, 0, 2]].fingerprint(),
        traces.to(dtype=torch.double).fingerprint(),
    }
    for name in ("observations", "actions", "task", "calls"):
        changed = getattr(traces, name).clone()
        changed[(0,) * changed.dim()] += 1
        found.add(traces._replace(**{name: changed}).fingerprint())
    found.add(traces._replace(calls=None).fingerprint())
    found.add(traces._replace(rewards=torch.zeros_like(traces.actions).float()).fingerprint())
    found.add(traces._replace(terminated=~traces.terminated).fingerprint())
    found.add(traces._replace(action_space=Discrete(5, start=1)).fingerprint())
    assert len(found) == 12


# ---------------------------------------------------------------------- bad files


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no demonstrations at"):
        Demonstrations.load(tmp_path / "none.npz")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "demos.npz"
    demonstrations(5, 0).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="no complete file of demonstrations"):
        Demonstrations.load(path)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "demos.npz"
    demonstrations(5, 0).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="no complete file of demonstrations"):
        Demonstrations.load(path)


class Bomb:
    """Leaves a mark when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Make a folder when unpickled."""
        return os.mkdir, ("unpickled",)


def test_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("demos.npz")
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="no complete file"):
        Demonstrations.load(path)
    demonstrations(2, 0).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["task"] = np.array([Bomb()], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="no complete file"):
        Demonstrations.load(path)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array("other")}, "its format is other"),
        ({"actions": np.zeros(3, int)}, "actions has 3 rows"),
        ({"task": np.zeros((1, 1))}, "task has 1 rows for 2 traces"),
        ({"arguments": np.zeros((5, 0), np.float32)}, "arguments has 5 rows, counts add up to 6"),
        ({"counts": np.array([0.5, 1])}, "counts has shape"),
        ({"counts": None}, "counts"),
        ({"terminated": np.array([1, 0])}, "terminated has shape"),
        ({"truncated": None}, "truncated"),
        ({"counts": np.array([7, -1])}, "a negative number of steps"),
        ({"rewards": np.zeros(5)}, "rewards has 5 rows, counts add up to 6"),
        ({"action_space": np.array("Discrete(2)")}, "no description of a space"),
        ({"action_space": np.array(space_to_json(Box(0, 1, (2,))))}, r"actions must have shape \[2, 4, 2\]"),
        ({"observation_space": np.array(space_to_json(Discrete(3)))}, "the observations have width 2, their space 3"),
        ({"actions": np.array([0, 9, 0, 0, 0, 0])}, "trace 0, step 1: an action outside 0..1"),
        ({"observations": np.full((8, 2), np.nan, np.float32)}, "trace 0, step 0: the observation is NaN"),
    ],
)
def test_bad_contents(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "demos.npz"
    Demonstrations.from_episodes([episode(3), episode(3)], 2).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    with pytest.raises(ValueError, match=message):
        Demonstrations.load(path)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no complete file"):
        Demonstrations.load(tmp_path / "plain.npy")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old = tmp_path / "demos.npz", demonstrations(3, 0)
    old.save(path)

    def interrupted(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demonstrations(3, 1).save(path)
    assert same(Demonstrations.load(path), old)
    assert os.listdir(tmp_path) == ["demos.npz"]


_KEEP_SAVING = """
import sys
from pyrocontrol.envs.bubble_sort import demonstrations
traces = demonstrations(30, 1)
while True:
    traces.save(sys.argv[1])
"""


def test_a_killed_save_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "demos.npz"
    process = subprocess.Popen([sys.executable, "-c", _KEEP_SAVING, str(path)])
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.wait()
    assert same(Demonstrations.load(path), demonstrations(30, 1))


def test_errors_of_loading_name_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npy is no complete file of demonstrations: it is a single array"):
        Demonstrations.load(tmp_path / "x.npy")
    path = tmp_path / "demos.npz"
    Demonstrations.from_episodes([episode(3), episode(2)], 2).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["observations"][5] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"demos\.npz: trace 1, step 1: the observation is NaN"):
        Demonstrations.load(path)
    np.savez(path, **arrays | {"truncated": np.zeros(2)})
    with pytest.raises(ValueError, match=r"demos\.npz is no complete file of demonstrations: "):
        Demonstrations.load(path)
