"""Demonstrations from and to arrays, Minari and imitation: bit for bit, or one clear error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pyrocontrol.envs import (
    Demonstrations,
    Episode,
    bubble_sort,
    from_arrays,
    from_imitation,
    from_minari,
    to_imitation,
    to_minari,
)
from pyrocontrol.models.space_json import space_to_json

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=-1, dtype=np.int32),
    "multidiscrete": spaces.MultiDiscrete([2, 4], start=[0, -1], dtype=np.int16),
    "box": spaces.Box(-2, 2, (2, 1), np.float32),
    "double": spaces.Box(-2, 2, (2,), np.float64),
    "half": spaces.Box(-2, 2, (2,), np.float16),
}
OBSERVATIONS: dict[str, spaces.Space[Any] | None] = {
    "plain": None,
    "double": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (33, 32, 3), np.uint8),
    "room": spaces.Discrete(4, start=2, dtype=np.int16),
    "rooms": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict(
        [
            ("z", spaces.Box(-1, 1, (3,), np.float32)),
            ("a", spaces.Box(-1, 1, (), np.float64)),
            ("m", spaces.Discrete(3)),
        ]
    ),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.Dict(x=spaces.Discrete(2))]),
    "nested": spaces.Dict(a=spaces.Dict(b=spaces.Box(-1, 1, (2,), np.float16), c=spaces.MultiBinary(3))),
}
# Every space once.
SPACES = [
    ("discrete", "plain"),
    ("box", "double"),
    ("multidiscrete", "image"),
    ("double", "room"),
    ("half", "rooms"),
    ("discrete", "bits"),
    ("box", "dict"),
    ("multidiscrete", "tuple"),
    ("discrete", "nested"),
]


def same(left: Demonstrations, right: Demonstrations) -> bool:
    """Equal to the last bit."""
    texts = [(space_to_json(one.action_space), space_to_json(one.observation_space)) for one in (left, right)]
    return texts[0] == texts[1] and identical(tuple(left.to_episodes()), tuple(right.to_episodes()))


def stacked(space: spaces.Space[Any], values: list[Any]) -> Any:
    """A batch in the environment's form."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [value[i] for value in values]) for i, part in enumerate(space.spaces))
    return np.stack([np.asarray(value, space.dtype) for value in values])


def identical(left: Any, right: Any) -> bool:
    """Equal arrays, or dicts and tuples of them, to the type."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(identical(left[key], right[key]) for key in left)
        )
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(identical, left, right))
    one, other = np.asarray(left), np.asarray(right)
    return one.dtype == other.dtype and np.array_equal(one, other)


def episodes_of(
    action_space: spaces.Space[Any], observation_space: spaces.Space[Any] | None, rewarded: bool = True
) -> list[Episode]:
    """Five random episodes, of every way to end."""
    rng = np.random.default_rng(0)
    action_space.seed(0)
    episodes = []
    for index, steps in enumerate((3, 1, 4, 2, 5)):
        if observation_space is None:
            observations: Any = rng.standard_normal((steps + 1, 3), np.float32)
        else:
            observation_space.seed(index)
            observations = stacked(observation_space, [observation_space.sample() for _ in range(steps + 1)])
        actions = stacked(action_space, [action_space.sample() for _ in range(steps)])
        rewards = rng.standard_normal(steps) if rewarded else None
        ended = {"terminated": index in (0, 3), "truncated": index in (1, 3)}
        episodes.append(Episode(observations, actions, rewards=rewards, **ended))
    return episodes


def demonstrations_of(actions: str, observations: str, rewarded: bool = True) -> Demonstrations:
    space = OBSERVATIONS[observations]
    return Demonstrations.from_episodes(episodes_of(ACTIONS[actions], space, rewarded), ACTIONS[actions], space)


def joined(values: list[Any]) -> Any:
    """Batches one after the other."""
    if isinstance(values[0], dict):
        return {key: joined([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(joined([value[i] for value in values]) for i in range(len(values[0])))
    return np.concatenate(values)


# Arrays


@pytest.mark.parametrize(("actions", "observations"), SPACES)
def test_arrays_come_and_go(actions: str, observations: str) -> None:
    space = OBSERVATIONS[observations]
    episodes = episodes_of(ACTIONS[actions], space)
    wanted = Demonstrations.from_episodes(episodes, ACTIONS[actions], space)
    of: dict[str, Any] = {"action_space": ACTIONS[actions], "observation_space": space}
    columns = {name: [getattr(episode, name) for episode in episodes] for name in Episode._fields}
    found = from_arrays(
        columns["observations"],
        columns["actions"],
        rewards=columns["rewards"],
        terminated=columns["terminated"],
        truncated=columns["truncated"],
        **of,
    )
    assert same(found, wanted)
    flat = [joined(columns[name]) for name in ("observations", "actions", "rewards")]
    found = from_arrays(
        *flat[:2],
        rewards=flat[2],
        lengths=[3, 1, 4, 2, 5],
        terminated=columns["terminated"],
        truncated=columns["truncated"],
        **of,
    )
    assert same(found, wanted)
    assert identical(tuple(episodes), tuple(found.to_episodes()))


def test_ways_to_say_where_episodes_end() -> None:
    observations, actions = np.arange(8.0).reshape(8, 1), np.array([0, 1, 0, 1, 1])
    ends = np.array([False, True, False, False, True])
    two: list[dict[str, Any]] = [
        {"lengths": np.array([2, 3], np.int32)},
        {"episode_ends": [2, 5]},
        {"terminated": ends, "truncated": np.zeros(5)},
    ]
    for kind in (bool, np.uint8, np.float32):
        two += [{"episode_ends": ends.astype(kind)}, {"terminated": ends.astype(kind)[:, None]}]
    for given in two:
        found = from_arrays(observations[:7], actions, action_space=2, **given)
        assert found.lengths.tolist() == [3, 4] and found.terminated.all() and not found.truncated.any()
        assert found.observations[:, :, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 6]]
    first, third = np.eye(5)[0], np.eye(5)[2]
    mixed = from_arrays(observations, actions, action_space=2, terminated=first, truncated=third)
    assert mixed.lengths.tolist() == [2, 3, 3]
    assert mixed.terminated.tolist() == [True, False, False] and mixed.truncated.tolist() == [False, True, False]
    for given in ({"truncated": np.arange(5) == 1}, {"episode_ends": np.arange(5) == 1}):
        last = from_arrays(observations[:7], actions, action_space=2, **given)
        assert last.lengths.tolist() == [3, 4]
        assert not last.terminated[1] and not last.truncated[1], "what follows the last end is a fragment"


@pytest.mark.parametrize("lists", [False, True])
def test_as_many_observations_as_actions(lists: bool) -> None:
    observations = np.arange(10.0).reshape(5, 2)
    arrays: dict[str, Any] = {
        "observations": observations,
        "actions": np.linspace(-1, 1, 5)[:, None],
        "rewards": np.arange(5.0),
        "terminated": np.array([0, 1, 0, 0, 0], bool),
        "truncated": np.array([0, 0, 0, 0, 1], bool),
    }
    box = spaces.Box(-1, 1, (1,), np.float64)

    def read(drop_last_action: bool = False, first: int = 2, **more: Any) -> Demonstrations:
        given = {**arrays, **more}
        if lists:
            given = {name: [value[:first], value[first:]] for name, value in given.items()}
        return from_arrays(**given, action_space=box, drop_last_action=drop_last_action)

    with pytest.raises(ValueError, match="trace 0, step 2: 2 observations for 2 .*next_observations.*drop_last_action"):
        read()
    whole = read(next_observations=observations + 100)
    assert whole.lengths.tolist() == [3, 4]
    assert whole.observations[0].tolist() == [[0, 1], [2, 3], [102, 103], [0, 0]]
    assert whole.rewards is not None and whole.rewards.tolist() == [[0, 1, 0, 0], [2, 3, 4, 0]]
    assert whole.terminated.tolist() == [True, False] and whole.truncated.tolist() == [False, True]
    short = read(drop_last_action=True)
    assert short.lengths.tolist() == [2, 3]
    assert short.observations[1].tolist() == [[4, 5], [6, 7], [8, 9]]
    assert short.rewards is not None and short.rewards.tolist() == [[0, 0, 0], [2, 3, 0]]
    assert not short.terminated.any() and not short.truncated.any()
    single = read(drop_last_action=True, first=1, terminated=np.eye(5, dtype=bool)[0])
    assert single.lengths.tolist() == [4], "an episode of a single action vanishes"
    # Parts of a Dict go the same way.
    parts = {"a": np.arange(4.0)[:, None], "b": np.arange(4)}
    space = spaces.Dict(a=spaces.Box(-9, 9, (1,), np.float64), b=spaces.Discrete(5))
    found = from_arrays(
        parts,
        np.zeros(4, int),
        action_space=1,
        observation_space=space,
        lengths=[1, 3],
        next_observations={"a": parts["a"] + 1, "b": parts["b"] + 1},
    )
    last = found.to_episodes()[1].observations
    assert last["a"][:, 0].tolist() == [1, 2, 3, 4] and last["b"].tolist() == [1, 2, 3, 4]


def test_tensors_are_arrays_too() -> None:
    data = from_arrays(torch.zeros(4, 2), torch.tensor([0, 1, 1]), action_space=2, lengths=torch.tensor([3]))
    assert data.actions.tolist() == [[0, 1, 1, 2]] and data.observations.dtype == torch.float32


def test_spaces_that_are_not_given() -> None:
    """Vectors need none; images and parts get Boxes of their types, and a Dict that is given chooses its parts."""
    parts: dict[str, Any] = {
        "image": np.zeros((5, 4, 3), np.uint8),
        "pose": np.zeros((5, 2)),
        "inner": {"count": np.arange(5, dtype=np.int16), "on": np.zeros((5, 2), bool)},
    }
    found = from_arrays(parts, np.zeros(4, int), action_space=1, lengths=[4])
    boxes = {
        "image": spaces.Box(0, 255, (4, 3), np.uint8),
        "pose": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "inner": spaces.Dict(
            [("count", spaces.Box(-(2**15), 2**15 - 1, (), np.int16)), ("on", spaces.Box(0, 1, (2,), np.uint8))]
        ),
    }
    assert space_to_json(found.observation_space) == space_to_json(spaces.Dict([*boxes.items()]))
    for given in ([parts], parts):
        fewer = from_arrays(
            given,
            [np.zeros(4, int)] if isinstance(given, list) else np.zeros(4, int),
            action_space=1,
            observation_space=spaces.Dict(image=boxes["image"]),
            lengths=None if isinstance(given, list) else [4],
        )
        assert list(fewer.to_episodes()[0].observations) == ["image"]
    images = from_arrays([parts["image"]], [np.zeros(4, int)], action_space=1)
    assert images.observation_space == boxes["image"]


GOOD: dict[str, Any] = {
    "observations": np.zeros((7, 2)),
    "actions": np.zeros(5, int),
    "action_space": 2,
    "lengths": [2, 3],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((8, 2))}, "8 observations for 5 actions in 2 episodes: there must be one more than"),
        ({"lengths": [2, 2]}, "lengths must be positive and add up to 5.*got .2, 2"),
        ({"lengths": [5, 0]}, "lengths must be positive and add up to 5"),
        ({"lengths": [2.0, 3.0]}, "lengths must be integers"),
        ({"lengths": None}, "where do episodes end"),
        ({"lengths": None, "terminated": [True, False]}, "where do episodes end"),
        ({"lengths": None, "episode_ends": [5, 2]}, "episode_ends must increase and end with 5"),
        ({"lengths": None, "episode_ends": [2, 4]}, "episode_ends must increase and end with 5"),
        ({"lengths": None, "episode_ends": np.array([True])}, "episode_ends has shape .1. for 5 actions"),
        ({"episode_ends": [2, 5]}, "not both"),
        ({"rewards": np.zeros(4)}, "4 rewards for 5 actions"),
        ({"rewards": np.full(5, np.nan)}, "trace 0, step 0: the reward is NaN or infinite"),
        (
            {"observations": np.zeros((5, 2)), "next_observations": np.zeros((4, 2))},
            "4 next_observations for 5 actions",
        ),
        ({"terminated": [True, True, True]}, r"terminated must have shape \[2\] or \[5\], got \[3\]"),
        (
            {"terminated": np.array([0, 0, 1, 0, 1], bool)},
            "trace 1, step 0: the episode goes on although it is terminated",
        ),
        ({"truncated": [0.5, 1]}, "truncated must be flags"),
        (
            {"terminated": [np.array([0, 1]), np.array([1])]},
            "terminated must have one flag an episode, or one an action",
        ),
        ({"actions": np.array([0, 0, 0, 0, 2])}, r"trace 1, step 2: an action outside 0\.\.1 \(it is 2\)"),
        ({"actions": np.zeros(5)}, "trace 0, step 0: actions must be integers"),
        ({"observations": np.array([[{}, {}]] * 7)}, "trace 0, step 0: observations must be numbers, got object"),
        ({"actions": np.array([{}] * 5)}, "trace 0, step 0: actions must be numbers, got object"),
        ({"observations": {"a": np.zeros(7, "S1")}}, "observations must be arrays of numbers, got .S1"),
        (
            {"observation_space": spaces.Dict(a=spaces.Discrete(3))},
            "trace 0, step 0: .* must be a dict of .'a'., got nd",
        ),
        (
            {"observation_space": spaces.Dict(a=spaces.Discrete(2)), "observations": {"b": np.zeros(7, int)}},
            "not of the form of their space",
        ),
        ({"actions": [np.zeros(2, int)], "observations": {"a": [np.zeros(3)]}, "lengths": None}, "so must be the obs"),
        (
            {
                "observation_space": spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)),
                "observations": {"a": np.zeros(7, int), "b": np.zeros(6, int)},
            },
            r"the parts of the observations have \[6, 7\] rows",
        ),
        ({"actions": [np.zeros(2, int), np.zeros(3, int)]}, "lengths is for one array of all episodes"),
        ({"actions": [np.zeros(2, int)], "lengths": None}, "7 observations for 1 episodes of actions"),
        ({"actions": [], "observations": [], "lengths": None}, "the data set is empty"),
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(**{**GOOD, **changes})


def test_nan_names_trace_and_step() -> None:
    observations = np.zeros((7, 2))
    observations[5, 1] = np.nan
    with pytest.raises(ValueError, match="trace 1, step 2: the observation is NaN or infinite"):
        from_arrays(**{**GOOD, "observations": observations})


def test_mismatched_lists() -> None:
    with pytest.raises(ValueError, match="trace 1, step 2: 2 observations for 2 actions"):
        from_arrays([np.zeros((3, 1)), np.zeros((2, 1))], [np.zeros(2, int), np.zeros(2, int)], action_space=2)
    with pytest.raises(ValueError, match="1 rewards for 2 episodes"):
        from_arrays([np.zeros((2, 1))] * 2, [np.zeros(1, int)] * 2, rewards=[np.zeros(1)], action_space=2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_rounding_is_said_once(wrapped: bool) -> None:
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def read(observation: np.ndarray, action: np.ndarray, space: spaces.Box = box) -> Demonstrations:
        seen: Any = {"x": (observation[:, None],)} if wrapped else observation[:, None]
        whole = spaces.Dict(x=spaces.Tuple([space])) if wrapped else space
        return from_arrays([seen] * 2, [action[:, None]] * 2, action_space=box, observation_space=whole)

    name = r"observation\['x'\]\[0\]" if wrapped else "observation"
    exact, tenths = np.zeros(3), np.full(3, 0.1)
    assert len(read(exact, exact[:2])) == 2, "what float32 holds is welcome in any type"
    with pytest.warns(UserWarning, match=f"rounded .* the {name} from float64 to float32 by at most 1e-09$") as warned:
        assert read(tenths, exact[:2]).observations[0, 0, 0] == torch.tensor(0.1)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=f"the {name} from int64 to float32 by at most 1, the action from float64"):
        read(np.array([1, 2**24 + 1, 1]), tenths[:2])
    bytes_ = spaces.Box(0, 255, (1,), np.uint8)
    for given, space, message in (
        (np.array([0, 0, 1e39]), box, "trace 0, step 2: the .* is 1e.39, which float32, the type of its space, cannot"),
        (np.array([0, 300, 1]), bytes_, "trace 0, step 1: the .* is 300, which uint8"),
        (np.array([0, 0, -1]), bytes_, "trace 0, step 2: the .* is -1, which uint8"),
        (tenths, bytes_, "must be of uint8, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            read(given, exact[:2], space)


# Minari


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Minari, its data sets in a folder of their own."""
    module = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


@pytest.mark.parametrize(("actions", "observations"), SPACES)
def test_through_minari(minari: Any, actions: str, observations: str) -> None:
    data = demonstrations_of(actions, observations)
    dataset = to_minari(data, "test/spaces-v0", author="me", algorithm_name="random")
    assert dataset.id == "test/spaces-v0" and dataset.total_episodes == 5 and dataset.total_steps == 15
    assert same(from_minari("test/spaces-v0"), data)
    assert same(from_minari(dataset), data)
    for episode, theirs in zip(data.to_episodes(), minari.load_dataset("test/spaces-v0"), strict=True):
        assert identical(episode.observations, theirs.observations)
        assert identical(episode.actions, theirs.actions)
        assert identical(episode.rewards, theirs.rewards)
        assert theirs.terminations.tolist() == [False] * (len(theirs) - 1) + [episode.terminated]
        assert theirs.truncations.tolist() == [False] * (len(theirs) - 1) + [episode.truncated]
    assert dataset.storage.metadata["author"] == {"me"} and dataset.storage.metadata["algorithm_name"] == "random"


def test_minari_without_rewards(minari: Any) -> None:
    data = demonstrations_of("box", "plain", rewarded=False)
    assert np.isnan(to_minari(data, "none-v0")[0].rewards).all()
    assert same(from_minari("none-v0"), data)


def test_minari_keeps_the_environment(minari: Any) -> None:
    env = gymnasium.make("CartPole-v1")
    episodes = [Episode(np.zeros((3, 4), np.float32), np.array([0, 1]), rewards=np.ones(2))]
    data = Demonstrations.from_episodes(episodes, env.action_space, env.observation_space)
    for given in ("CartPole-v1", env.spec, env):
        made = to_minari(data, "cart-v0", env=given, overwrite=True).recover_environment()
        assert made.spec.id == "CartPole-v1"
        made.close()
    env.close()


def test_minari_overwrites_only_when_told(minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = demonstrations_of("box", "plain"), demonstrations_of("discrete", "plain")
    to_minari(first, "ns/b-v0")
    with pytest.raises(FileExistsError, match="there is a Minari data set ns/b-v0 at .*: pass overwrite=True"):
        to_minari(second, "ns/b-v0")
    assert same(from_minari("ns/b-v0"), first)
    with monkeypatch.context() as patch:  # the old one stands when the new one fails
        patch.setattr(minari.dataset.minari_storage.MinariStorage, "update_metadata", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_minari(second, "ns/b-v0", overwrite=True)
        with pytest.raises(ZeroDivisionError):
            to_minari(second, "ns/c-v0")
    assert same(from_minari("ns/b-v0"), first)
    to_minari(second, "ns/b-v0", overwrite=True)
    assert same(from_minari("ns/b-v0"), second)
    assert list(minari.list_local_datasets()) == ["ns/b-v0"]
    assert sorted(path.name for path in (tmp_path / "minari" / "ns").iterdir()) == ["b-v0", "namespace_metadata.json"]


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("at", ["writing", "set aside", "in place"])
def test_a_data_set_is_there_whenever_the_process_that_overwrites_it_ends(minari: Any, tmp_path: Path, at: str) -> None:
    first, second = demonstrations_of("box", "plain"), demonstrations_of("discrete", "plain")
    to_minari(first, "ns/b-v0")
    if (child := os.fork()) == 0:
        rename, left = os.rename, ["writing", "set aside", "in place"].index(at)

        def counted(*given: Any) -> None:
            nonlocal left
            if left == 0:
                os._exit(9)
            rename(*given)
            left -= 1
            if left == 0 and at == "in place":
                os._exit(9)

        os.rename = counted
        to_minari(second, "ns/b-v0", overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    expected = second if at == "in place" else first
    assert same(from_minari("ns/b-v0"), expected)
    with pytest.raises(FileExistsError):
        to_minari(second, "ns/b-v0")
    to_minari(first, "ns/b-v0", overwrite=True)
    assert same(from_minari("ns/b-v0"), first)
    assert sorted(path.name for path in (tmp_path / "minari" / "ns").iterdir()) == ["b-v0", "namespace_metadata.json"]


def test_a_data_set_that_version_0_1_was_overwriting_is_found(minari: Any, tmp_path: Path) -> None:
    data, folder = demonstrations_of("box", "plain"), tmp_path / "minari" / "ns"
    to_minari(data, "ns/b-v0")
    (folder / "b-v0").rename(folder / ".b-v0.old")
    (folder / "b-v0" / "data").mkdir(parents=True)  # where the new one was begun
    (folder / "b-v0" / "data" / "metadata.json").write_text('{"total_episodes": 0}')
    assert same(from_minari("ns/b-v0"), data)


def test_minari_names(minari: Any, tmp_path: Path) -> None:
    for name in ("noversion", "a b-v0", "../up-v0", "x-v"):
        with pytest.raises(ValueError, match="a Minari data set is called"):
            to_minari(demonstrations_of("box", "plain"), name)
    assert not (tmp_path / "minari").exists()


def test_what_minari_has_no_place_for(minari: Any) -> None:
    with pytest.raises(ValueError, match="a Minari data set has no place for the task and calls of these"):
        to_minari(bubble_sort.demonstrations(2, 0, annotate=True), "sort-v0")
    with pytest.raises(FileNotFoundError, match="none-v3"):
        from_minari("none-v3")
    with pytest.raises(TypeError, match="given by its id or as a MinariDataset, got list"):
        from_minari([1])


def collect(minari: Any, env: gymnasium.Env[Any, Any], count: int, **settings: Any) -> tuple[list[Episode], Any]:
    """Episodes of random actions, as seen here, and as Minari's own collector keeps them."""
    collector = minari.DataCollector(env)
    collector.action_space.seed(0)
    episodes = []
    for index in range(count):
        observation, _ = collector.reset(seed=index)
        observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
        while not (terminated or truncated):
            actions.append(collector.action_space.sample())
            observation, reward, terminated, truncated, _ = collector.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        seen = stacked(env.observation_space, observations)
        acted = stacked(env.action_space, actions)
        episodes.append(Episode(seen, acted, rewards=np.array(rewards), terminated=terminated, truncated=truncated))
    dataset = collector.create_dataset("collected/test-v0", **settings)
    collector.close()
    return episodes, dataset


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "pyrocontrol/ReacherGoal-v0"])
# Minari warns of each piece of metadata that one does not give, and lets its temporary folders go unclosed.
@pytest.mark.filterwarnings("ignore:`\\w+` is set to None:UserWarning")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")
def test_what_minari_collects(minari: Any, name: str) -> None:
    if "Reacher" in name:
        pytest.importorskip("mujoco")
    pytest.importorskip("jax")
    env = gymnasium.make(name, max_episode_steps=15)
    episodes, dataset = collect(minari, env, 4)
    wanted = Demonstrations.from_episodes(episodes, env.action_space, env.observation_space)
    for given in (dataset, "collected/test-v0"):
        found = from_minari(given)
        assert same(found, wanted)
    assert found.terminated.any() == (name == "CartPole-v1") and found.truncated.any()
    assert identical(tuple(episodes), tuple(found.to_episodes()))
    chosen = dataset.filter_episodes(lambda episode: episode.id in (1, 3))
    assert same(from_minari(chosen), wanted[[1, 3]])
    to_minari(found, "copied/test-v0")
    assert same(from_minari("copied/test-v0"), wanted)


def minari_of(minari: Any, action_space: Any, observation_space: Any, **changes: Any) -> Any:
    """A data set of two actions that Minari itself wrote."""
    episode = {
        "observations": np.zeros((3, 1), np.float32),
        "actions": np.zeros((2, 1), np.float32),
        "rewards": np.zeros(2),
        "terminations": np.array([False, True]),
        "truncations": np.zeros(2, bool),
        "infos": {},
    }
    return minari.create_dataset_from_buffers(
        "raw-v0",
        [minari.data_collector.EpisodeBuffer(**{**episode, **changes})],
        action_space=action_space,
        observation_space=observation_space,
    )


@pytest.mark.filterwarnings("ignore:`\\w+` is set to None:UserWarning")
@pytest.mark.filterwarnings("ignore:env_spec is None, no environment spec:UserWarning")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"observation_space": spaces.Text(5), "observations": ["a", "b", "c"]}, TypeError, "raw-v0 cannot.*Text"),
        (
            {"action_space": spaces.Text(5), "actions": ["a", "b"]},
            TypeError,
            "raw-v0 cannot be read: action spaces are",
        ),
        ({"action_space": spaces.MultiBinary(1), "actions": np.zeros((2, 1), np.int8)}, TypeError, "MultiBinary"),
        ({"actions": np.array([[0], [3]], np.float32)}, ValueError, r"trace 0, step 1: an action outside -1\.\.1"),
        ({"observations": np.full((3, 1), np.nan, np.float32)}, ValueError, "trace 0, step 0: the observation is NaN"),
        ({"observations": np.zeros((2, 1), np.float32)}, ValueError, "trace 0, step 2: 2 observations for 2 actions"),
        (
            {"terminations": np.array([True, False])},
            ValueError,
            "trace 0, step 0: the episode goes on although it is term",
        ),
    ],
)
def test_bad_minari_data(minari: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    box = spaces.Box(-1, 1, (1,), np.float32)
    dataset = minari_of(minari, **{"action_space": box, "observation_space": box, **changes})
    with pytest.raises(error, match=message):
        from_minari(dataset)


@pytest.mark.filterwarnings("ignore:`\\w+` is set to None:UserWarning")
@pytest.mark.filterwarnings("ignore:env_spec is None, no environment spec:UserWarning")
def test_other_spaces_for_minari_data(minari: Any) -> None:
    box = spaces.Box(-1, 1, (1,), np.float32)
    dataset = minari_of(minari, box, box, actions=np.array([[0.1], [3]]))
    wide = spaces.Box(-5, 5, (1,), np.float64)
    found = from_minari(dataset, action_space=wide, observation_space=spaces.Box(-1, 1, (1,), np.float64))
    assert found.actions[0, :, 0].tolist() == [0.1, 3, 0] and found.observations.dtype == torch.float64
    assert found.action_space == wide


@pytest.mark.filterwarnings("ignore:`\\w+` is set to None:UserWarning")
@pytest.mark.filterwarnings("ignore:env_spec is None, no environment spec:UserWarning")
def test_parts_of_minari_data(minari: Any) -> None:
    """A grid world has a text among its observations, which cannot be read."""
    parts = {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(0, 255, (2, 2, 3), np.uint8),
        "mission": spaces.Text(9),
    }
    observations = {
        "direction": np.arange(3),
        "image": np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3),
        "mission": ["go there"] * 3,
    }
    dataset = minari_of(minari, spaces.Box(-1, 1, (1,)), spaces.Dict(parts), observations=observations)
    with pytest.raises(TypeError, match=r"raw-v0 cannot be read: .*Text.*; choose its parts, observations="):
        from_minari(dataset)
    del parts["mission"]
    both = from_minari("raw-v0", observation_space=spaces.Dict(parts))
    assert both.observation_space == spaces.Dict(parts) and both.observations.shape == (1, 3, 16)
    found = from_minari(dataset, ("image", "direction"))
    assert list(found.observation_space.spaces) == ["image", "direction"]  # type: ignore[attr-defined]
    assert from_minari(dataset, "image").observation_space == parts["image"]
    with pytest.raises(ValueError, match="raw-v0.*there is no 'goal': there are .'direction', 'image', 'mission'"):
        from_minari(dataset, ("image", "goal"))


# imitation


def types() -> Any:
    return pytest.importorskip("imitation.data.types")


FLAT = [pair for pair in SPACES if pair[1] not in ("tuple", "nested")]


@pytest.mark.parametrize(("actions", "observations"), FLAT)
def test_through_imitation(actions: str, observations: str) -> None:
    imitation = types()
    for rewarded in (True, False):
        data = demonstrations_of(actions, observations, rewarded)
        trajectories = to_imitation(data)
        assert same(from_imitation(trajectories, data.action_space, data.observation_space), data)
        assert [one.terminal for one in trajectories] == [True, True, False, True, False]
        assert [one.infos[-1]["TimeLimit.truncated"] for one in trajectories] == [False, True, *[False] * 3]
        for trajectory, episode in zip(trajectories, data.to_episodes(), strict=True):
            assert type(trajectory) is (imitation.TrajectoryWithRew if rewarded else imitation.Trajectory)
            assert isinstance(trajectory.obs, imitation.DictObs) == (observations == "dict")
            seen = trajectory.obs.unwrap() if observations == "dict" else trajectory.obs
            assert identical(seen, episode.observations) and identical(trajectory.acts, episode.actions)
            assert all(info == {} for info in trajectory.infos[:-1])


def test_imitation_takes_them() -> None:
    """Its own functions work on what it is given."""
    types()
    rollout = pytest.importorskip("imitation.data.rollout")
    data = demonstrations_of("box", "plain")
    transitions = rollout.flatten_trajectories(to_imitation(data))
    assert np.array_equal(transitions.obs, data.transitions().observations.numpy())
    assert transitions.dones.sum() == 3


def test_infos_say_how_a_trajectory_ended() -> None:
    imitation = types()
    arrays = {"obs": np.zeros((3, 2), np.float32), "acts": np.array([0, 1])}
    cut, other = (np.array([{}, info]) for info in ({"TimeLimit.truncated": True}, {"reward": 1}))
    trajectories = [
        imitation.Trajectory(**arrays, infos=infos, terminal=terminal)
        for infos, terminal in ((None, True), (None, False), (cut, True), (other, True))
    ]
    found = from_imitation(trajectories, 2)
    assert found.terminated.tolist() == [True, False, False, True]
    assert found.truncated.tolist() == [False, False, True, False]


def test_what_imitation_has_no_place_for() -> None:
    imitation = types()
    for observations in ("tuple", "nested"):
        with pytest.raises(TypeError, match="arrays or dicts of arrays"):
            to_imitation(demonstrations_of("box", observations))
    with pytest.raises(ValueError, match="a trajectory of imitation has no place for the task of these"):
        to_imitation(bubble_sort.demonstrations(2, 0))
    with pytest.raises(TypeError, match="trace 1 must be a Trajectory of imitation, got dict"):
        from_imitation([imitation.Trajectory(np.zeros((2, 1)), np.zeros(1, int), None, True), {}], 2)
    parts = imitation.DictObs({"a": np.zeros((2, 1)), "b": np.zeros((2, 2, 2), np.uint8)})
    found = from_imitation([imitation.Trajectory(parts, np.zeros(1, int), None, True)], 2)
    assert list(found.observation_space.spaces) == ["a", "b"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="trace 0, step 0: an action outside"):
        from_imitation([imitation.Trajectory(np.zeros((2, 1)), np.array([7]), None, True)], 2)
    with pytest.raises(ValueError, match="the data set is empty"):
        from_imitation([], 2)


@pytest.mark.parametrize(
    ("package", "call", "install"),
    [
        ("minari", lambda data: from_minari("a-v0"), r"pip install 'minari\[hdf5\]'"),
        ("minari", lambda data: to_minari(data, "a-v0"), r"pip install 'minari\[hdf5\]'"),
        ("imitation", to_imitation, "pip install --no-deps imitation seals"),
        ("imitation", lambda data: from_imitation([], 2), "pip install --no-deps imitation seals"),
    ],
)
def test_what_to_install(
    package: str, call: Callable[[Any], Any], install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *[name for name in sys.modules if name.startswith(f"{package}.")]]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"^{package} is not installed: {install}$"):
        call(demonstrations_of("box", "plain"))
