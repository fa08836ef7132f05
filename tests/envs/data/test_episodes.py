"""Episodes of any spaces become demonstrations and come back; one clear error for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recorded import ACTIONS, BOX, IMAGE, NAMED, OBSERVATIONS, VECTOR, batch_of, equal, recorded, same

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.models.spaces import decode_actions, flatten_observations, observation_dtype, observation_size

Space = spaces.Space[Any]


@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=str)
def test_observations_come_back_to_the_bit(observation_space: Space, tmp_path: Path) -> None:
    episodes = recorded(BOX, observation_space)
    traces = Demonstrations.from_episodes(episodes, BOX, observation_space)
    assert traces.observation_space == observation_space and all(map(equal, traces.to_episodes(), episodes))
    width, dtype = observation_size(observation_space), observation_dtype(observation_space)
    assert traces.observations.shape == (3, 5, width) and traces.observations.numpy().dtype == dtype
    for index, one in enumerate(episodes):
        flat = flatten_observations(observation_space, one.observations)
        assert equal(traces.observations[index, : len(flat)].numpy(), flat)
    # Flattened, and as the floats of version 0.1, they are taken too.
    for kind in (dtype, np.float64, np.float64 if dtype == np.float64 else np.float32):
        flattened = [
            one._replace(observations=flatten_observations(observation_space, one.observations).astype(kind))
            for one in episodes
        ]
        assert same(Demonstrations.from_episodes(flattened, BOX, observation_space), traces)
    for compressed, memory in ((True, True), (False, True), (False, False)):
        traces.save(tmp_path / "traces.npz", compressed=compressed)
        again = Demonstrations.load(tmp_path / "traces.npz", memory=memory)
        assert same(again, traces) and again.read().fingerprint() == traces.fingerprint()
        assert all(map(equal, again.to_episodes(), episodes))
        assert all(map(torch.equal, again.parts.values(), traces.parts.values()))


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_actions_come_back_to_the_bit(action_space: Space, tmp_path: Path) -> None:
    episodes = recorded(action_space, NAMED)
    traces = Demonstrations.from_episodes(episodes, action_space, NAMED)
    width = () if isinstance(action_space, spaces.Discrete) else (int(np.prod(action_space.shape or ())),)
    assert traces.action_space == action_space and traces.actions.shape == (3, 5, *width)
    assert traces.actions.is_floating_point() == isinstance(action_space, spaces.Box)
    assert (traces.actions[~traces.acted] == (3 if isinstance(action_space, spaces.Discrete) else 0)).all()
    assert traces.rewards is not None and (traces.rewards[~traces.acted] == 0).all()
    assert traces.rewards.dtype == torch.float64
    assert traces.terminated.tolist() == [True, False, True] and traces.truncated.tolist() == [False, False, True]
    for index, one in enumerate(episodes):
        assert equal(decode_actions(action_space, traces.actions[index, : len(one.actions)].numpy()), one.actions)
    traces.save(tmp_path / "traces.npz")
    again = Demonstrations.load(tmp_path / "traces.npz")
    assert same(again, traces) and all(map(equal, again.to_episodes(), episodes))
    if isinstance(action_space, spaces.Box):
        flat = [one._replace(actions=one.actions.reshape(len(one.actions), -1)) for one in episodes]
        assert same(Demonstrations.from_episodes(flat, action_space, NAMED), traces)


@pytest.mark.parametrize(
    ("space", "place", "value"),
    [
        (NAMED, 9, 0.5),  # a room that is none
        (NAMED, 0, 0.5),  # half a byte
        (IMAGE, 0, 0.5),
        (IMAGE, 0, 256.0),
        (spaces.Discrete(4), 1, 0.5),
        (spaces.MultiBinary((2, 2)), 1, 2.0),
    ],
    ids=str,
)
def test_flattened_observations_that_are_none(space: Space, place: int, value: float) -> None:
    flat = [
        one._replace(observations=flatten_observations(space, one.observations).astype(np.float32))
        for one in recorded(BOX, space)
    ]
    flat[1].observations[1, place] = value
    with pytest.raises(ValueError, match="trace 1, step 1: (the flattened|an) observation is "):
        Demonstrations.from_episodes(flat, BOX, space)


def test_types_without_an_observation_space() -> None:
    for given, stored in (
        (np.ones((3, 2), np.float16), torch.float32),
        (np.ones((3, 2), np.float32), torch.float32),
        (np.ones((3, 2)), torch.float64),
        (np.ones((3, 2), bool), torch.float32),
        (np.full((3, 2), 2**24), torch.float32),
        (np.full((3, 2), 2**24 + 1), torch.float64),
    ):
        traces = Demonstrations.from_episodes([Episode(given, np.array([0, 1]), task=np.ones(1))], 2)
        assert traces.observations.dtype == traces.task.dtype == stored
        assert np.array_equal(traces.observations[0].numpy(), given)
        assert traces.observation_space.dtype == traces.observations.numpy().dtype


def test_doubles_are_rounded_to_the_type_of_their_space() -> None:
    space, seen = spaces.Box(-1, 1, (3,)), np.random.default_rng(0).uniform(-1, 1, (4, 3))
    traces = Demonstrations.from_episodes([Episode(seen, seen[:3, :2] / 2)], BOX, space)
    assert traces.observations.dtype == traces.actions.dtype == torch.float32
    assert np.array_equal(traces.observations[0].numpy(), seen.astype(np.float32))


# ---------------------------------------------------------------------- bad episodes


def numbered(length: int = 3, **changes: object) -> Episode:
    """`length` actions 0, 1, 0, ..., and observations counting up from 1."""
    observations = np.arange(1.0, 3 + length * 2).reshape(length + 1, 2)
    return Episode(observations, np.arange(length) % 2, np.array([0.5]))._replace(**changes)


def spoilt(value: float) -> np.ndarray:
    observations = numbered().observations.copy()
    observations[2, 1] = value
    return observations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": spoilt(np.nan)}, "step 2: the observation is NaN or infinite"),
        ({"observations": spoilt(-np.inf)}, "step 2: the observation is NaN or infinite"),
        ({"actions": np.array([0, -1, 1])}, r"step 1: an action outside 0..1 \(it is -1\)"),
        ({"actions": np.array([0, 2, 1])}, r"step 1: an action outside 0..1 \(it is 2\)"),
        ({"actions": np.zeros(0, int), "observations": np.ones((1, 2))}, "step 0: the trace is empty"),
        ({"rewards": np.zeros(4)}, "step 3: 4 rewards for 3 actions"),
        ({"rewards": np.zeros(3)}, "step 0: the trace has rewards, those before have none"),
        ({"rewards": np.array(["x"])}, "step 0: rewards must be numbers"),
        ({"observations": np.ones((4, 2), int)}, "step 0: observations are integers, those before are floats"),
        ({"observations": np.full((4, 2), None)}, "step 0: observations must be numbers, got object"),
        ({"actions": np.array([0, None, 1])}, "step 0: actions must be numbers, got object"),
        ({"observations": np.ones((3, 2))}, "step 3: 3 observations for 3 actions"),
        ({"observations": np.ones((6, 2))}, "step 3: 6 observations for 3 actions"),
        ({"observations": np.ones((4, 3))}, "step 0: observations have width 3, those before have 2"),
        ({"observations": np.ones(4)}, "step 0: observations must have 2 dimensions"),
        ({"actions": np.array([0.0, 1.0, 0.0])}, "step 0: actions must be integers, got float64"),
        ({"task": np.array([1.0, 2.0])}, "step 0: task have width 2"),
        ({"task": np.array([np.nan])}, "step 0: the task is NaN"),
        ({"arguments": np.ones((3, 2))}, "step 0: arguments have width 2"),
        ({"observations": np.full((4, 2), "x")}, "step 0: observations must be numbers"),
        ({"observations": [[1.0, 2.0], [3.0]]}, "step 0: observations cannot be made an array"),
        ({"actions": 3}, "step 0: actions must have 1 dimensions"),
        ({"calls": np.ones(3)}, "call 0: calls must have 2 dimensions"),
        ({"calls": np.ones((3, 0))}, "call 0: calls must have at least one column"),
        ({"calls": np.array([["x"]])}, "call 0: calls must be numbers"),
        ({"calls": np.array([[np.nan]])}, "call 0: the annotated call is NaN"),
        ({"calls": np.array([[1.0], [-1]])}, r"call 1: the annotated choice is no integer from 0 on \(it is -1\)"),
    ],
)
def test_bad_episodes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"trace 1, {message}"):
        Demonstrations.from_episodes([numbered(), numbered(**changes)], 2)


def test_counts_and_widths_that_differ() -> None:
    with pytest.raises(ValueError, match="trace 2, call 0: calls have width 3, those before have 2"):
        Demonstrations.from_episodes([numbered(calls=c) for c in (None, np.ones((2, 2)), np.ones((2, 3)))], 2)
    for chosen, place in (
        ((4, 6), "trace 0, step 4: 4"),
        ((6, 4), "trace 0, step 5: 6"),
    ):  # together as many as actions
        with pytest.raises(ValueError, match=f"{place} arguments for 5 actions"):
            Demonstrations.from_episodes([numbered(5, arguments=np.ones((n, 1))) for n in chosen], 2)
    rewarded = numbered(rewards=np.ones(3))
    with pytest.raises(ValueError, match="trace 1, step 0: the trace has no rewards, those before have"):
        Demonstrations.from_episodes([rewarded, numbered()], 2)
    with pytest.raises(ValueError, match="trace 1, step 2: the reward is NaN or infinite"):
        Demonstrations.from_episodes([rewarded, rewarded._replace(rewards=[0.0, 0.0, np.inf])], 2)


def test_something_else_than_episodes_and_spaces() -> None:
    with pytest.raises(TypeError, match="trace 1 must be an Episode, got dict"):
        Demonstrations.from_episodes([numbered(), numbered()._asdict()], 2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the data set is empty"):
        Demonstrations.from_episodes([], 2)
    with pytest.raises(TypeError, match="action spaces are Discrete"):
        Demonstrations.from_episodes([numbered()], spaces.MultiBinary(2))
    with pytest.raises(TypeError, match="observation spaces are Box"):
        Demonstrations.from_episodes([numbered()], 2, spaces.Text(3))


def good(length: int = 3) -> Episode:
    return Episode(np.ones((length + 1, 3)), np.zeros((length, 2), np.float32))


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (BOX, np.array([[0, 0], [0, np.nan], [0, 0]]), "step 1: the action is NaN or infinite"),
        (BOX, np.array([[0, 0], [0, 0], [0, -0.8]]), r"step 2: an action outside -0.7..0.7 \(component 1 is"),
        (BOX, np.zeros((3, 2), int), "step 0: actions must be floats, got int64"),
        (BOX, np.zeros((3, 3)), r"step 0: actions must have shape \[..., 2\], got \(3, 3\)"),
        (BOX, np.zeros(3), "step 0: actions must have 2 dimensions"),
        (BOX, np.zeros((2, 2)), "step 2: 4 observations for 2 actions"),
        (BOX, np.zeros((0, 2)), "step 0: the trace is empty"),
        (BOX, np.full((3, 2), None), "step 0: actions must be numbers, got object"),
        (BOX, [[0.0], [0.0, 0.0]], "step 0: actions cannot be made an array"),
        (ACTIONS[1], np.array([0, 1, 2]), r"step 2: an action outside -1..1 \(it is 2\)"),
        (ACTIONS[1], np.array([0.0, 1.0, 0.0]), "step 0: actions must be integers, got float64"),
        (ACTIONS[2], np.array([[0, 4], [0, 6], [3, 4]]), r"step 1: an action outside 4..5 \(component 1 is 6"),
        (ACTIONS[2], np.zeros((3, 2)), "step 0: actions must be integers, got float64"),
    ],
)
def test_actions_that_do_not_fit(space: Space, actions: Any, message: str) -> None:
    first = good()._replace(actions=batch_of(space, 3, 0))
    with pytest.raises(ValueError, match=f"trace 1, {message}"):
        Demonstrations.from_episodes([first, good()._replace(actions=actions)], space)


def camera(**changes: Any) -> dict[str, Any]:
    """Four observations of `NAMED` with one part changed."""
    return {**batch_of(NAMED, 4, 0), **changes}


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (camera(goal=np.ones((3, 2), np.float32)), "step 0: the part 'goal' has leading dimensions"),
        (camera(goal=np.ones((4, 3))), r"step 0: the part 'goal' must have shape \[..., 2\]"),
        (camera(goal=[[1, 1]] * 3 + [[1, np.nan]]), "step 3: the observation is NaN or infinite"),
        (camera(goal=[[1, 1]] * 3 + [[1, 1e300]]), "step 3: the observation is NaN or infinite"),
        (camera(goal=np.full((4, 2), None)), "step 0: the part 'goal' must be numbers, got object"),
        (camera(camera=np.full((4, 2, 2), 0.5)), "step 0: the part 'camera' must be of uint8, got float64"),
        (camera(camera=np.full((4, 2, 2), 256)), r"the part 'camera' must be of uint8, got int64 \(it is 256\)"),
        (
            camera(rooms=(np.array([0, 1, 5, 1]), np.zeros((4, 2), int))),
            r"step 2: the part 'rooms.0' is outside Discrete\(3, start=-1\) \(it is 5\)",
        ),
        ({"goal": np.ones((4, 2))}, "step 0: an observation must be a dict of"),
        (np.ones((4, 2)), "step 0: an observation must be a dict of"),
        (batch_of(NAMED, 3, 0), "step 3: 3 observations for 3 actions"),
        ({key: value[None] for key, value in camera().items() if key != "rooms"}, "must be a dict of"),
    ],
)
def test_observations_that_do_not_fit(observations: Any, message: str) -> None:
    episodes = [good()._replace(observations=each) for each in (camera(), observations)]
    with pytest.raises(ValueError, match=f"trace 1, .*{message}"):
        Demonstrations.from_episodes(episodes, BOX, NAMED)


def test_one_observation_instead_of_one_a_step() -> None:
    for given in (np.ones(3), np.ones((2, 4, 3))):
        with pytest.raises(ValueError, match="trace 0, step 0: the observations must be a batch, one a step"):
            Demonstrations.from_episodes([good()._replace(observations=given)], BOX, VECTOR)
