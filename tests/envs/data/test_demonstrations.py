"""Demonstrations: padding, choosing, replacing, and one clear error for every kind of bad batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete
from recorded import ACTIONS, BOX, BYTES, FIELDS, IMAGE, NAMED, VECTOR, recorded, same

from pyrocontrol.envs import Demonstrations, Episode, Transitions
from pyrocontrol.envs.bubble_sort import demonstrations, teacher


def episode(length: int = 3, width: int = 2, **changes: object) -> Episode:
    """`length` actions 0, 1, 0, ..., and observations counting up from 1."""
    observations = np.arange(1.0, 1 + (length + 1) * width).reshape(length + 1, width)
    return Episode(observations, np.arange(length) % 2, np.array([0.5]))._replace(**changes)


def made(*lengths: int) -> Demonstrations:
    return Demonstrations.from_episodes([episode(length) for length in lengths], 2)


def parts(**changes: object) -> Any:
    """Arguments of a good pair of traces, of 3 and 2 actions."""
    good, names = made(3, 2), ("observations", "actions", "lengths", "task", "arguments")
    return {name: getattr(good, name).clone() for name in names} | {"action_space": 2} | changes


def test_padding() -> None:
    traces = made(3, 1)
    assert traces.actions.tolist() == [[0, 1, 0, 2], [0, 2, 2, 2]]
    assert traces.observations[:, :, 0].tolist() == [[1, 3, 5, 7], [1, 3, 0, 0]]
    assert traces.lengths.tolist() == [4, 2]
    assert traces.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert traces.acted.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert traces.task.tolist() == [[0.5], [0.5]] and traces.arguments.shape == (2, 4, 0)
    assert traces.observations.dtype == traces.task.dtype == traces.observation_dtype == torch.float64
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
    chosen = traces[[0, 2]]
    assert chosen.calls is not None and chosen.calls.shape == (2, 16, 2) and traces[2].calls is None


def test_choosing_trims_to_the_longest() -> None:
    traces = made(3, 1, 2)
    assert traces[1].actions.tolist() == [[0, 2]] and traces[-1].actions.tolist() == [[0, 1, 2]]
    assert traces[1:].actions.tolist() == [[0, 2, 2], [0, 1, 2]] and traces[::-2].lengths.tolist() == [3, 4]
    assert traces[torch.tensor([2, 1])].lengths.tolist() == [3, 2] and traces[[0, 0]].lengths.tolist() == [4, 4]
    assert traces[np.array([1])].mask.tolist() == [[True, True]]
    assert traces[traces.lengths < 4].lengths.tolist() == [2, 3]
    assert [len(one) for one in traces] == [1, 1, 1] and same(traces[1:][1], traces[2])
    with pytest.raises(IndexError, match="trace 3 of 3"):
        traces[3]
    with pytest.raises(ValueError, match="selection is empty"):
        traces[3:]


def test_a_batch_gathers_only_what_is_read() -> None:
    traces = demonstrations(5, 0, annotate=True)
    batch = traces[[1, 3]]
    assert batch.observations is batch.observations
    assert {"actions", "calls", "task", "arguments"}.isdisjoint(vars(batch))
    with pytest.raises(AttributeError, match="Demonstrations cannot be changed: actions cannot be set"):
        batch.actions = traces.actions  # type: ignore[misc]


def test_precision_and_copies() -> None:
    traces = demonstrations(3, 0, annotate=True)
    double = traces.to("cpu", torch.float64)
    assert double.calls is not None
    assert double.observations.dtype == double.task.dtype == double.calls.dtype == torch.float64
    assert double.actions.dtype == torch.long and double.terminated.dtype == torch.bool
    assert same(double.to(dtype=torch.float32), traces) and same(double[1:].to(dtype=torch.float32), traces[1:])
    space = ACTIONS[4]  # whose bounds are no binary fractions
    edge = Demonstrations.from_episodes([Episode(np.ones((2, 3)), np.full((1, 2, 2), 0.1), rewards=[1.0])], space)
    single = edge.to(dtype=torch.float32)
    assert single.rewards is not None
    assert single.observations.dtype == single.actions.dtype == single.rewards.dtype == torch.float32
    one = traces[1]
    assert len(pickle.dumps(one)) < len(pickle.dumps(traces)) / 2, "a batch takes nothing else with it"
    assert same(pickle.loads(pickle.dumps(one)), one) and same(copy.deepcopy(one), one)


def test_bytes_stay_bytes() -> None:
    for space in (BYTES, IMAGE, NAMED):
        traces = Demonstrations.from_episodes(recorded(BOX, space), BOX, space)
        mixed = space is NAMED
        assert traces.observations.dtype == traces.observation_dtype == (torch.float32 if mixed else torch.uint8)
        assert traces.to(dtype=torch.float64).observations.dtype == (torch.float64 if mixed else torch.uint8)
        assert traces.task.dtype == traces.arguments.dtype == torch.float32
        columns = vars(traces)["_source"].columns
        assert columns["bytes" if mixed else "observations"].dtype == torch.uint8, "one byte a pixel"
        padded = {name: getattr(traces, name) for name in FIELDS}
        for floats in (padded["observations"], padded["observations"].float()):
            again = Demonstrations(**padded | {"observations": floats}, action_space=BOX, observation_space=space)
            assert same(again, traces) and again.fingerprint() == traces.fingerprint()
        noise = padded["observations"] + 0.5 * traces.mask.unsqueeze(-1)
        for noisy in (traces.replace(observations=noise), traces._replace(observations=noise)):
            assert torch.equal(noisy[1:].to("cpu").observations, noise[1:]), "what is no byte is kept as it is"


def test_parts_have_the_shapes_and_types_of_their_spaces() -> None:
    episodes = recorded(BOX, NAMED)
    traces = Demonstrations.from_episodes(episodes, BOX, NAMED)
    found, transitions = traces.parts, traces.transitions().parts
    assert list(found) == list(traces.observation_parts) == ["camera", "goal", "memory", "rooms.0", "rooms.1"]
    for name, part in found.items():
        key, _, place = name.partition(".")
        for index, each in enumerate(episodes):
            given = each.observations[key][int(place)] if place else each.observations[key]
            steps = len(given)
            assert np.array_equal(part[index, :steps].numpy(), given) and part[index].numpy().dtype == given.dtype
            if name != "rooms.0":  # a Discrete is never zero all over
                assert not part[index, steps:].any()
        assert torch.equal(transitions[name], part[traces.acted])
    whole = Demonstrations.from_episodes(recorded(BOX, IMAGE), BOX, IMAGE)
    assert whole[0].parts["observation"].shape == (1, 4, 2, 3, 3)
    moved = traces._replace(observations=traces.observations + traces.mask.unsqueeze(-1))
    assert torch.equal(moved.parts["goal"], found["goal"] + traces.mask.unsqueeze(-1))


def test_other_tensors_are_those_of_what_is_made_of_them() -> None:
    traces = demonstrations(4, 0, annotate=True)
    rewards = traces.acted.float()
    others = {
        "observations": traces.observations * 2,
        "actions": torch.where(traces.acted, 1, traces.actions),
        "task": traces.task + 1,
        "terminated": ~traces.terminated,
        "rewards": rewards,
        "calls": None,
    }
    for changed in (traces._replace(**others), traces.replace(**others)):
        assert changed.calls is None and changed.device == traces.device
        for one in (changed, changed[:], changed.to("cpu"), changed.read(), pickle.loads(pickle.dumps(changed))):
            assert all(torch.equal(getattr(one, name), value) for name, value in others.items() if value is not None)
            assert one.calls is None and torch.equal(one.lengths, traces.lengths)
        assert changed.fingerprint() == changed[:].fingerprint() != traces.fingerprint()
        assert torch.equal(changed.transitions().observations, 2 * traces.transitions().observations)
    assert traces.calls is not None
    fewer = torch.where(torch.arange(4)[:, None, None] < 2, traces.calls, torch.tensor([-1.0, 0.0]))
    assert same(traces._replace(calls=fewer)[:2], traces[:2]) and traces._replace(calls=fewer)[2:].calls is None
    with pytest.raises(ValueError, match="trace 0, step 0: the task is NaN"):
        traces.replace(task=traces.task + torch.nan)


def test_fingerprint() -> None:
    traces = Demonstrations.from_episodes([teacher([2, 1, 0]), teacher([1, 0]), teacher([0, 1])], 5)
    assert traces.calls is not None
    found = {
        traces.fingerprint(),
        traces[:2].fingerprint(),
        traces[[1, 0, 2]].fingerprint(),
        traces.to(dtype=torch.double).fingerprint(),
        traces._replace(calls=None).fingerprint(),
        traces._replace(rewards=torch.zeros_like(traces.actions).float()).fingerprint(),
        traces._replace(terminated=~traces.terminated).fingerprint(),
        Demonstrations.from_episodes(traces.to_episodes(), 6).fingerprint(),
    }
    for name in ("observations", "actions", "task", "calls"):
        changed = getattr(traces, name).clone()
        changed[(0,) * changed.dim()] += 1
        found.add(traces._replace(**{name: changed}).fingerprint())
    assert len(found) == 12


@pytest.mark.parametrize(
    ("space", "expected", "of_transitions"),
    [
        (BYTES, "72cb3cf5cba16dd6", "e08ed3270eb3feca"),
        (NAMED, "cb7fdc0f72a3b321", "15101559fedb8332"),
        (VECTOR, "3bcf4445c5bcd995", "52d2bea462d9a66b"),
    ],
    ids=["bytes", "named", "vector"],
)
def test_fingerprints_are_those_of_version_01(space: Any, expected: str, of_transitions: str) -> None:
    rng = np.random.default_rng(0)
    seen: Any = {"camera": rng.integers(0, 256, (4, 2, 2), np.uint8), "goal": rng.random((4, 2), np.float32)}
    seen |= {
        "memory": rng.integers(0, 9, (4, 3), np.uint8),
        "rooms": (np.array([0, 1, -1, 0]), np.eye(4, 2, dtype=np.int8)),
    }
    if space is not NAMED:
        seen = rng.integers(0, 256, (4, space.shape[0])).astype(space.dtype)
    one = Episode(seen, np.array([0, 1, 2]), np.ones(1), rewards=np.arange(3.0))
    traces = Demonstrations.from_episodes([one], 3, space)
    assert traces.fingerprint() == expected and traces.transitions().fingerprint() == of_transitions


# ---------------------------------------------------------------------- joining, splitting, showing


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_joined_traces_are_those_of_all_episodes(action_space: Any) -> None:
    episodes = recorded(action_space, NAMED)
    first = Demonstrations.from_episodes(episodes[:1], action_space, NAMED)
    second = Demonstrations.from_episodes(episodes[1:], action_space, NAMED)
    whole = Demonstrations.from_episodes(episodes, action_space, NAMED)
    assert (
        same(first + second, whole) and same(second + first, whole[[1, 2, 0]]) and same((first + second)[2], whole[2])
    )


def test_joining_keeps_annotations() -> None:
    annotated, plain = demonstrations(4, 0, annotate=True), demonstrations(4, 0)
    both = plain[:2] + annotated[2:]
    assert both.calls is not None and (both.calls[:2, :, 0] == -1).all() and same(both[2:], annotated[2:])
    assert same(annotated[:2] + annotated[2:], annotated) and (plain[:2] + plain[2:]).calls is None


def test_joining_what_does_not_belong_together() -> None:
    one = Demonstrations.from_episodes(recorded(BOX), BOX)
    ordered = [spaces.Dict([(key, Discrete(2)) for key in keys]) for keys in ("ab", "ba")]
    first, second = (Demonstrations.from_episodes(recorded(BOX, space), BOX, space) for space in ordered)
    for left, right, message in (
        (one, Demonstrations.from_episodes(recorded(ACTIONS[0]), ACTIONS[0]), "the second has the action space Discr"),
        (
            one,
            Demonstrations.from_episodes(recorded(BOX, NAMED), BOX, NAMED),
            "the second has the observation",
        ),
        (one, one.replace(rewards=None), "the second has no rewards, the first has rewards of"),
        (one, one.replace(task=torch.ones(3, 2)), r"the second has task of \[2\] a row, the first has task of \[0\]"),
        (first, second, "the second has the observation space"),
    ):
        with pytest.raises(ValueError, match=message):
            left + right
    with pytest.raises(TypeError, match="unsupported operand"):
        one + 1  # type: ignore[operator]


def test_splitting_by_trace() -> None:
    whole = demonstrations(20, 0)
    train, test = whole.split(0.75, seed=3)
    assert (len(train), len(test)) == (15, 5)
    hashes = [[one.fingerprint() for one in part] for part in (whole, train, test)]
    assert set(hashes[1]) | set(hashes[2]) == set(hashes[0]) and not set(hashes[1]) & set(hashes[2])
    assert hashes[1] == [each for each in hashes[0] if each in hashes[1]]  # in order
    assert same(whole.split(0.75, seed=3)[0], train) and not same(whole.split(0.75, seed=4)[0], train)
    for fraction in (0.0, 0.01, 1.0, 2.0, -1.0):
        with pytest.raises(ValueError, match="a part of the split would be empty"):
            whole.split(fraction)


def test_summary() -> None:
    episodes = [e._replace(rewards=np.full(len(e.actions), 2.0)) for e in recorded(BOX, NAMED)]
    traces = Demonstrations.from_episodes(episodes, BOX, NAMED)
    assert traces.summary() == (
        "3 traces, 8 actions (1 to 4 each), 14 observation numbers (camera, goal, memory, rooms.0, rooms.1), "
        "actions Box of 2, return 5.333 (sd 2.49), 2 terminated, 1 truncated"
    )
    assert traces.returns is not None and traces.returns.tolist() == [6, 2, 8]
    move = demonstrations(2, 0, move=True, annotate=True)
    assert move.summary().endswith("2 terminated, 0 truncated, 1 task numbers, 4 action argument numbers, 2 annotated")
    assert move.returns is None


@pytest.mark.parametrize(
    ("action_space", "observation_space"),
    [(ACTIONS[1], VECTOR), (ACTIONS[2], NAMED), (ACTIONS[4], BYTES), (ACTIONS[5], Box(-1, 1, (0,)))],
    ids=str,
)
def test_plot(action_space: Any, observation_space: Any, tmp_path: Any) -> None:
    path = tmp_path / "new" / "demonstrations.png"
    episodes = recorded(action_space, observation_space)
    if observation_space is VECTOR:
        episodes = [episode._replace(rewards=None) for episode in episodes]
    Demonstrations.from_episodes(episodes, action_space, observation_space).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


# ---------------------------------------------------------------------- bad batches


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
def test_bad_numbers(name: str, place: tuple[int, ...], value: float, message: str) -> None:
    tensors = parts()
    tensors[name][place] = value
    with pytest.raises(ValueError, match=message):
        Demonstrations(**tensors)


@pytest.mark.parametrize(
    ("space", "place", "value", "message"),
    [
        (BOX, (1, 0, 1), 0.8, r"trace 1, step 0: an action outside -0.7..0.7 \(component 1 is 0.8\)"),
        (BOX, (1, 0, 1), float("nan"), "trace 1, step 0: the action is NaN or infinite"),
        (BOX, (1, 1, 0), 0.1, "trace 1, step 1: an action after the last one"),
        (ACTIONS[2], (0, 2, 0), 3, r"trace 0, step 2: an action outside 0..2 \(component 0 is 3\)"),
        (ACTIONS[2], (2, 4, 1), 1, "trace 2, step 4: an action after the last one"),
    ],
)
def test_bad_vectors_of_actions(space: Any, place: tuple[int, ...], value: float, message: str) -> None:
    traces = Demonstrations.from_episodes(recorded(space), space)
    actions = traces.actions.clone()
    actions[place] = value
    for wrong, said in ((actions, message), (actions.int(), "actions must be")):
        with pytest.raises(ValueError, match=said):
            Demonstrations(traces.observations, wrong, traces.lengths, space)


REWARDS = torch.tensor([[0.0, torch.nan, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": torch.zeros(2, 4)}, r"observations must have shape \[B, T, O\]"),
        ({"observations": torch.zeros(2, 4, 2).long()}, "observations must be floating point, got torch.int64"),
        ({"observations": torch.zeros(2, 4, 2).byte()}, "observations must be floating point, got torch.uint8"),
        ({"actions": torch.zeros(2, 3).long()}, r"actions must have shape \[2, 4\], got \(2, 3\)"),
        ({"actions": torch.zeros(2, 4)}, "actions must be long integers"),
        ({"lengths": torch.tensor([3])}, r"lengths must have shape \[2\]"),
        ({"task": torch.zeros(3, 1)}, r"task must have shape \[2, any\]"),
        ({"arguments": torch.zeros(2, 3, 1)}, r"arguments must have shape \[2, 4, any\]"),
        ({"arguments": torch.ones(2, 4, 1)}, "trace 0, step 3: an action argument after the last action"),
        ({"action_space": 0}, "the number of actions must be positive"),
        ({"observation_space": Box(0, 1, (3,))}, "the observations have width 2, their space 3"),
        ({"rewards": torch.ones(2, 4)}, "trace 0, step 3: a reward after the last action"),
        ({"rewards": REWARDS}, "trace 0, step 1: the reward is NaN"),
        ({"rewards": torch.zeros(2, 3)}, r"rewards must have shape \[2, 4\]"),
        ({"terminated": torch.ones(2)}, "terminated must be bool"),
        ({"truncated": torch.ones(3, dtype=torch.bool)}, r"truncated must have shape \[2\]"),
        ({"calls": torch.zeros(2, 3, 0)}, "calls must have at least one column, the choice"),
        ({"calls": torch.tensor([[[0.5, 0]], [[1, 0]]])}, "trace 0, call 0: the annotated choice is no integer"),
        ({"calls": torch.tensor([[[0.0, 0]], [[1, torch.inf]]])}, "trace 1, call 0: the annotated call is NaN"),
        ({"calls": torch.tensor([[[1.0], [1]], [[-1], [1]]])}, "trace 1, call 1: an annotated call after the end"),
    ],
)
def test_bad_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations(**parts(**changes))


@pytest.mark.parametrize("name", FIELDS)
def test_arrays_and_lists_are_no_tensors(name: str) -> None:
    for given, kind in ((np.zeros((2, 4, 2)), "ndarray"), ([[1.0]], "list")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got {kind}; use torch.as_tensor"):
            Demonstrations(**parts(**{name: given}))
    if name in FIELDS[:3]:
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got NoneType"):
            Demonstrations(**parts(**{name: None}))


def test_action_space_of_a_number_of_any_integer_kind() -> None:
    for number in (2, np.int64(2), torch.tensor(2)):
        traces = [Demonstrations(**parts(action_space=number)), Demonstrations.from_episodes([episode()], number)]  # type: ignore[arg-type]
        assert all(type(t.num_actions) is int and t.null == 2 for t in traces)
    for bad, kind in ((0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError), (None, TypeError)):
        with pytest.raises(kind, match="must be positive|must be a space or a number of actions"):
            Demonstrations(**parts(action_space=bad))
        with pytest.raises(kind, match="must be positive|must be a space or a number of actions"):
            Demonstrations.from_episodes([episode()], bad)  # type: ignore[arg-type]


def test_only_discrete_actions_have_a_null_arguments_and_calls() -> None:
    traces = Demonstrations.from_episodes(recorded(BOX), BOX)
    for name in ("num_actions", "null"):
        with pytest.raises(TypeError, match="only Discrete actions are numbered and have a null, these are Box"):
            getattr(traces, name)
    for changes in ({"arguments": torch.ones(3, 5, 1) * traces.acted.unsqueeze(-1)}, {"calls": torch.ones(3, 2, 2)}):
        with pytest.raises(ValueError, match="arguments and calls are of Discrete actions, these are Box"):
            traces.replace(**changes)


def test_how_a_trace_ended_by_default() -> None:
    one = recorded(BOX)[0]._replace(terminated=None)
    traces = Demonstrations.from_episodes([one, one._replace(truncated=True)], BOX)
    assert traces.terminated.tolist() == [True, False] and traces.truncated.tolist() == [False, True]
    ended = {"truncated": torch.tensor([True, False])}
    direct = Demonstrations(traces.observations, traces.actions, traces.lengths, BOX, **ended)
    assert direct.terminated.tolist() == [False, True]


def test_no_traces() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        Demonstrations(torch.zeros(0, 3, 2), torch.zeros(0, 3).long(), torch.zeros(0).long(), 2)


def test_writing_to_what_was_read_is_noticed() -> None:
    data = demonstrations(3, 0)
    for name in ("observations", "actions", "lengths", "task", "mask", "terminated"):
        one = data[:2]
        getattr(one, name)[0] = 0
        with pytest.raises(ValueError, match=f"the {name} of this data set were changed in place"):
            getattr(one, name)
    one = data[:2]
    one.parts["observation"].zero_()
    with pytest.raises(ValueError, match="the parts of this data set were changed"):
        _ = one.parts
    del data.parts["observation"]
    assert data.parts
    goals, seen, acted = torch.ones(4, 1), torch.ones(4, 2), torch.ones(4, dtype=torch.long)
    made = Transitions(seen, acted, 2, goals=goals)
    before = made.fingerprint()
    for given in (goals, seen, acted):  # what was given is no part of it
        given.zero_()
    assert made.fingerprint() == before
