"""Demonstrations of any spaces: encoding, joining, splitting, and one clear error for what does not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.models.spaces import decode_actions, flatten_observations

Space = spaces.Space[Any]

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
NAMED = spaces.Dict(
    camera=spaces.Box(0, 255, (2, 2), np.uint8),
    goal=spaces.Box(-1, 1, (2,), np.float32),
    rooms=spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiBinary(2))),
)
OBSERVATIONS: list[Space] = [VECTOR, NAMED, spaces.Discrete(4), spaces.Box(-1, 1, (2, 2)), spaces.Box(-1, 1, ())]
ACTIONS: list[Space] = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2], start=[0, 4]),
    spaces.Box(-0.7, 0.7, (2,), np.float32),
    spaces.Box(-0.1, 0.1, (2, 2), np.float64),
    spaces.Box(-1, 1, (), np.float16),
]
BOX = ACTIONS[3]


def batch_of(space: Space, count: int, seed: int) -> Any:
    """Elements of a space, as a batch in the environment's form."""
    batched = batch_space(space, count)
    batched.seed(seed)
    return batched.sample()


def recorded(
    action_space: Space, observation_space: Space = VECTOR, lengths: tuple[int, ...] = (3, 1, 4)
) -> list[Episode]:
    """Episodes with rewards, ending in all ways."""
    return [
        Episode(
            batch_of(observation_space, length + 1, seed),
            batch_of(action_space, length, 10 + seed),
            rewards=np.random.default_rng(seed).standard_normal(length),
            terminated=seed % 2 == 0,
            truncated=seed > 1,
        )
        for seed, length in enumerate((3, 1, 4))
    ]


def equal(left: Any, right: Any) -> bool:
    """Equal to the last bit, in types and shapes too."""
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=str)
@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_episodes_come_back_to_the_bit(action_space: Space, observation_space: Space, tmp_path: Path) -> None:
    episodes = recorded(action_space, observation_space)
    traces = Demonstrations.from_episodes(episodes, action_space, observation_space)
    assert traces.action_space == action_space and traces.observation_space == observation_space
    assert all(map(equal, map(tuple, traces.to_episodes()), map(tuple, episodes)))
    for compressed in (True, False):
        traces.save(tmp_path / "traces.npz", compressed=compressed)
        again = Demonstrations.load(tmp_path / "traces.npz")
        assert again.fingerprint() == traces.fingerprint()
        assert all(map(equal, map(tuple, again.to_episodes()), map(tuple, episodes)))


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_stored_form(action_space: Space) -> None:
    episodes = recorded(action_space, NAMED)
    traces = Demonstrations.from_episodes(episodes, action_space, NAMED)
    assert traces.observations.shape == (3, 5, 4 + 2 + 3 + 2) and traces.observations.dtype == torch.float32
    width = () if isinstance(action_space, spaces.Discrete) else (int(np.prod(action_space.shape or ())),)
    assert traces.actions.shape == (3, 5, *width)
    assert traces.actions.is_floating_point() == isinstance(action_space, spaces.Box)
    assert (traces.actions[~traces.acted] == (3 if isinstance(action_space, spaces.Discrete) else 0)).all()
    assert traces.rewards is not None and (traces.rewards[~traces.acted] == 0).all()
    assert traces.rewards.dtype == torch.float64
    assert traces.terminated.tolist() == [True, False, True] and traces.truncated.tolist() == [False, False, True]
    for index, episode in enumerate(episodes):
        count = len(episode.actions)
        assert equal(traces.observations[index, : count + 1].numpy(), flatten_observations(NAMED, episode.observations))
        assert equal(decode_actions(action_space, traces.actions[index, :count].numpy()), episode.actions)
    chosen = traces[[1, 0]]
    assert chosen.actions.shape == (2, 4, *width) and chosen.rewards is not None and chosen.rewards.shape == (2, 4)
    assert chosen.terminated.tolist() == [False, True]


def test_flattened_observations_and_actions_are_taken_too() -> None:
    action_space = ACTIONS[4]
    raw = recorded(action_space, NAMED)
    flat = [
        one._replace(
            observations=flatten_observations(NAMED, one.observations), actions=one.actions.reshape(len(one.actions), 4)
        )
        for one in raw
    ]
    expected = Demonstrations.from_episodes(raw, action_space, NAMED).fingerprint()
    assert Demonstrations.from_episodes(flat, action_space, NAMED).fingerprint() == expected
    flat[1].observations[1, 6:9] = 0.5  # a room that is none
    with pytest.raises(ValueError, match="trace 1, step 1: the flattened observation is none of its space"):
        Demonstrations.from_episodes(flat, action_space, NAMED)


def test_how_a_trace_ended_by_default() -> None:
    one = recorded(BOX)[0]._replace(terminated=None)
    traces = Demonstrations.from_episodes([one, one._replace(truncated=True)], BOX)
    assert traces.terminated.tolist() == [True, False] and traces.truncated.tolist() == [False, True]
    direct = Demonstrations(
        traces.observations, traces.actions, traces.lengths, BOX, truncated=torch.tensor([True, False])
    )
    assert direct.terminated.tolist() == [False, True]


def test_types_without_an_observation_space() -> None:
    def observed(values: Any) -> Demonstrations:
        return Demonstrations.from_episodes([Episode(values, np.array([0, 1]), task=np.ones(1))], 2)

    for given, stored in (
        (np.ones((3, 2), np.float16), torch.float32),
        (np.ones((3, 2), np.float32), torch.float32),
        (np.ones((3, 2)), torch.float64),
        (np.ones((3, 2), bool), torch.float32),
        (np.full((3, 2), 2**24), torch.float32),
        (np.full((3, 2), 2**24 + 1), torch.float64),
    ):
        traces = observed(given)
        assert traces.observations.dtype == traces.task.dtype == stored
        assert np.array_equal(traces.observations[0].numpy(), given)
        assert traces.observation_space.dtype == traces.observations.numpy().dtype


def test_another_precision_also_of_actions_and_rewards(tmp_path: Path) -> None:
    space = ACTIONS[4]  # whose bounds are no binary fractions
    edge = np.full((1, 2, 2), 0.1)
    traces = Demonstrations.from_episodes([Episode(np.ones((2, 3)), edge, rewards=[1.0])], space)
    single = traces.to(dtype=torch.float32)
    assert single.observations.dtype == single.actions.dtype == single.rewards.dtype == torch.float32  # type: ignore[union-attr]
    single.save(tmp_path / "single.npz")
    again = Demonstrations.load(tmp_path / "single.npz")
    assert again.actions.dtype == torch.float32 and again.fingerprint() == single.fingerprint()
    discrete = demonstrations(2, 0).to(dtype=torch.float64)
    assert discrete.actions.dtype == torch.long and discrete.terminated.dtype == torch.bool


# ---------------------------------------------------------------------- joining and splitting


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_joined_traces_are_those_of_all_episodes(action_space: Space) -> None:
    episodes = recorded(action_space, NAMED)
    first = Demonstrations.from_episodes(episodes[:1], action_space, NAMED)
    second = Demonstrations.from_episodes(episodes[1:], action_space, NAMED)
    whole = Demonstrations.from_episodes(episodes, action_space, NAMED)
    assert (first + second).fingerprint() == whole.fingerprint()
    assert (second + first).fingerprint() == whole[[1, 2, 0]].fingerprint()
    assert torch.equal((first + second).actions, whole.actions)
    assert (first + second)[2].fingerprint() == whole[2].fingerprint()


def test_joining_keeps_annotations() -> None:
    annotated = demonstrations(4, 0, annotate=True)
    plain = demonstrations(4, 0)
    both = plain[:2] + annotated[2:]
    assert both.calls is not None and annotated.calls is not None
    assert (both.calls[:2, :, 0] == -1).all() and both[2:].fingerprint() == annotated[2:].fingerprint()
    assert (annotated[:2] + annotated[2:]).fingerprint() == annotated.fingerprint()
    assert (plain[:2] + plain[2:]).calls is None


def test_joining_what_does_not_belong_together() -> None:
    one = Demonstrations.from_episodes(recorded(BOX), BOX)
    for other, message in (
        (Demonstrations.from_episodes(recorded(ACTIONS[0]), ACTIONS[0]), "of different action spaces: Box.* and Discr"),
        (Demonstrations.from_episodes(recorded(BOX, NAMED), BOX, NAMED), "of different observation spaces"),
        (Demonstrations.from_episodes([e._replace(rewards=None) for e in recorded(BOX)], BOX), "only some .* rewards"),
        (
            Demonstrations.from_episodes([e._replace(task=np.ones(2)) for e in recorded(BOX)], BOX),
            "different widths of task: 0, 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            one + other
    with pytest.raises(TypeError, match="unsupported operand"):
        one + 1  # type: ignore[operator]
    ordered = [spaces.Dict([(key, spaces.Discrete(2)) for key in keys]) for keys in ("ab", "ba")]
    with pytest.raises(ValueError, match="of different observation spaces"):
        Demonstrations.from_episodes(recorded(BOX, ordered[0]), BOX, ordered[0]) + Demonstrations.from_episodes(
            recorded(BOX, ordered[1]), BOX, ordered[1]
        )


def test_splitting_by_trace() -> None:
    whole = demonstrations(20, 0)
    train, test = whole.split(0.75, seed=3)
    assert (len(train), len(test)) == (15, 5)
    hashes = [[one.fingerprint() for one in part] for part in (whole, train, test)]
    assert set(hashes[1]) | set(hashes[2]) == set(hashes[0]) and not set(hashes[1]) & set(hashes[2])
    assert hashes[1] == [each for each in hashes[0] if each in hashes[1]]  # in order
    assert whole.split(0.75, seed=3)[0].fingerprint() == train.fingerprint()
    assert whole.split(0.75, seed=4)[0].fingerprint() != train.fingerprint()
    for fraction in (0.0, 0.01, 1.0, 2.0, -1.0):
        with pytest.raises(ValueError, match="a part of the split would be empty"):
            whole.split(fraction)


# ---------------------------------------------------------------------- showing


def test_summary() -> None:
    episodes = [e._replace(rewards=np.full(len(e.actions), 2.0)) for e in recorded(BOX, NAMED)]
    traces = Demonstrations.from_episodes(episodes, BOX, NAMED)
    assert traces.summary() == (
        "3 traces, 8 actions (1 to 4 each), 11 observation numbers (camera, goal, rooms.0, rooms.1), actions Box of 2, "
        "return 5.333 (sd 2.49), 2 terminated, 1 truncated"
    )
    assert traces.returns is not None and traces.returns.tolist() == [6, 2, 8]
    assert "8 actions (1 to 4 each)" in repr(traces)
    move = demonstrations(2, 0, move=True, annotate=True)
    assert move.summary().endswith("2 terminated, 0 truncated, 1 task numbers, 4 action argument numbers, 2 annotated")
    assert move.returns is None


@pytest.mark.parametrize(
    ("action_space", "observation_space"),
    [(ACTIONS[1], VECTOR), (ACTIONS[2], NAMED), (ACTIONS[4], NAMED), (ACTIONS[5], spaces.Box(-1, 1, (0,)))],
    ids=str,
)
def test_plot(action_space: Space, observation_space: Space, tmp_path: Path) -> None:
    path = tmp_path / "new" / "demonstrations.png"
    episodes = recorded(action_space, observation_space)
    if observation_space is VECTOR:
        episodes = [episode._replace(rewards=None) for episode in episodes]
    Demonstrations.from_episodes(episodes, action_space, observation_space).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


# ---------------------------------------------------------------------- bad episodes


def good(length: int = 3) -> Episode:
    return Episode(np.ones((length + 1, 3)), np.zeros((length, 2), np.float32))


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (BOX, np.array([[0, 0], [0, np.nan], [0, 0]]), "trace 1, step 1: the action is NaN or infinite"),
        (BOX, np.array([[0, 0], [0, 0], [0, -0.8]]), r"trace 1, step 2: an action outside -0.7..0.7 \(component 1 is"),
        (BOX, np.zeros((3, 2), int), "trace 1, step 0: actions must be floats, got int64"),
        (BOX, np.zeros((3, 3)), r"trace 1, step 0: actions must have shape \[..., 2\], got \(3, 3\)"),
        (BOX, np.zeros(3), "trace 1, step 0: actions must have 2 dimensions"),
        (BOX, np.zeros((2, 2)), "trace 1, step 2: 4 observations for 2 actions"),
        (BOX, np.zeros((0, 2)), "trace 1, step 0: the trace is empty"),
        (BOX, np.full((3, 2), None), "trace 1, step 0: actions must be numbers, got object"),
        (BOX, [[0.0], [0.0, 0.0]], "trace 1, step 0: actions cannot be made an array"),
        (ACTIONS[1], np.array([0, 1, 2]), r"trace 1, step 2: an action outside -1..1 \(it is 2\)"),
        (ACTIONS[1], np.array([0.0, 1.0, 0.0]), "trace 1, step 0: actions must be integers, got float64"),
        (ACTIONS[2], np.array([[0, 4], [0, 6], [3, 4]]), r"trace 1, step 1: an action outside 4..5 \(component 1 is 6"),
        (ACTIONS[2], np.zeros((3, 2)), "trace 1, step 0: actions must be integers, got float64"),
    ],
)
def test_actions_that_do_not_fit(space: Space, actions: Any, message: str) -> None:
    first = good()._replace(actions=batch_of(space, 3, 0))
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_episodes([first, good()._replace(actions=actions)], space)


def camera(**changes: Any) -> dict[str, Any]:
    """Four observations of `NAMED` with one part changed."""
    return {**batch_of(NAMED, 4, 0), **changes}


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (camera(goal=np.ones((3, 2), np.float32)), "trace 1, step 0: the part 'goal' has leading dimensions"),
        (camera(goal=np.ones((4, 3))), r"trace 1, step 0: the part 'goal' must have shape \[..., 2\]"),
        (camera(goal=[[1, 1]] * 3 + [[1, np.nan]]), "trace 1, step 3: the observation is NaN or infinite"),
        (camera(goal=[[1, 1]] * 3 + [[1, 1e300]]), "trace 1, step 3: the observation is NaN or infinite"),
        (camera(goal=np.full((4, 2), None)), "trace 1, step 0: the part 'goal' must be numbers, got object"),
        (camera(camera=np.ones((4, 2, 2))), "trace 1, step 0: the part 'camera' must be of uint8, got float64"),
        (
            camera(rooms=(np.array([0, 1, 5, 1]), np.zeros((4, 2), int))),
            r"trace 1, step 2: the part 'rooms.0' is outside Discrete\(3, start=-1\) \(it is 5\)",
        ),
        ({"goal": np.ones((4, 2))}, "trace 1, step 0: an observation must be a dict of"),
        (np.ones((4, 2)), "trace 1, step 0: an observation must be a dict of"),
        (batch_of(NAMED, 3, 0), "trace 1, step 3: 3 observations for 3 actions"),
        ({key: value[None] for key, value in camera().items() if key != "rooms"}, "must be a dict of"),
    ],
)
def test_observations_that_do_not_fit(observations: Any, message: str) -> None:
    episodes = [good()._replace(observations=each) for each in (camera(), observations)]
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_episodes(episodes, BOX, NAMED)


def test_one_observation_instead_of_one_a_step() -> None:
    for given in (np.ones(3), np.ones((2, 4, 3))):
        with pytest.raises(ValueError, match="trace 0, step 0: the observations must be a batch, one a step"):
            Demonstrations.from_episodes([good()._replace(observations=given)], BOX, VECTOR)


def test_only_some_have_rewards() -> None:
    rewarded = good()._replace(rewards=np.ones(3))
    for episodes, message in (
        ([good(), rewarded], "trace 1, step 0: the trace has rewards, those before have none"),
        ([rewarded, good()], "trace 1, step 0: the trace has no rewards, those before have"),
    ):
        with pytest.raises(ValueError, match=message):
            Demonstrations.from_episodes(episodes, BOX)
    with pytest.raises(ValueError, match="trace 1, step 2: the reward is NaN or infinite"):
        Demonstrations.from_episodes([rewarded, rewarded._replace(rewards=[0.0, 0.0, np.inf])], BOX)


def test_spaces_that_are_not_supported() -> None:
    with pytest.raises(TypeError, match="action spaces are Discrete"):
        Demonstrations.from_episodes([good()], spaces.MultiBinary(2))
    with pytest.raises(TypeError, match="observation spaces are Box"):
        Demonstrations.from_episodes([good()], BOX, spaces.Text(3))


def test_only_discrete_actions_have_a_null_arguments_and_calls() -> None:
    traces = Demonstrations.from_episodes(recorded(BOX), BOX)
    for name in ("num_actions", "null"):
        with pytest.raises(TypeError, match="only Discrete actions are numbered and have a null, these are Box"):
            getattr(traces, name)
    for changes in ({"arguments": np.ones((3, 1))}, {"calls": np.ones((2, 2))}):
        with pytest.raises(ValueError, match="arguments and calls are of Discrete actions, these are Box"):
            Demonstrations.from_episodes([good()._replace(**changes)], BOX)


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
def test_bad_batches(space: Space, place: tuple[int, ...], value: float, message: str) -> None:
    traces = Demonstrations.from_episodes(recorded(space), space)
    actions = traces.actions.clone()
    actions[place] = value
    with pytest.raises(ValueError, match=message):
        Demonstrations(traces.observations, actions, traces.lengths, space)
    with pytest.raises(ValueError, match="actions must be"):
        Demonstrations(traces.observations, actions.int(), traces.lengths, space)


def test_traces_of_a_file_are_checked_against_its_spaces(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    Demonstrations.from_episodes(recorded(BOX), BOX).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **(arrays | {"actions": arrays["actions"] * 2}))
    with pytest.raises(ValueError, match="trace 0, step .: an action outside -0.7..0.7"):
        Demonstrations.load(path)


class Bomb:
    """Leaves a mark when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("name", ["action_space", "observation_space", "rewards", "observations"])
def test_pickles_are_refused_and_not_executed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pickle.dumps(Bomb())
    Demonstrations.from_episodes(recorded(BOX), BOX).save("traces.npz")
    with np.load("traces.npz") as archive:
        arrays = dict(archive)
    np.savez("traces.npz", **(arrays | {name: np.array([Bomb()], dtype=object)}))
    with pytest.raises(ValueError, match="no complete file of demonstrations"):
        Demonstrations.load("traces.npz")
    assert not Path("unpickled").exists()
