"""Collecting demonstrations: what is kept, the same again under one seed, what is left after an error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pyrocontrol.envs import CartPoleTeacher, CollectionError, CollectionInterrupted, Demonstrations, collect
from pyrocontrol.envs.acting.collect import Collector, predict_along
from pyrocontrol.models import unflatten_observations

ACTION_SPACES = {
    "discrete": spaces.Discrete(3, start=5),
    "multidiscrete": spaces.MultiDiscrete([2, 4], start=[1, 0]),
    "box": spaces.Box(np.array([[-1.0, -2.0]], np.float64), np.array([[1.0, 0.5]], np.float64), dtype=np.float64),
}


class Counter(gymnasium.Env[Any, Any]):
    """Counts steps in an array that it changes in place; terminates after `length` steps, raises at one if told so."""

    def __init__(self, length: int = 4, action_space: Any = None, raise_at: tuple[int, int] | None = None) -> None:
        self.observation_space = spaces.Dict(
            count=spaces.Box(-np.inf, np.inf, (2,), np.float64),
            room=spaces.Discrete(3),
            pixels=spaces.Box(0, 255, (2, 2), np.uint8),
        )
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.raise_at = length, raise_at
        self.episode, self.executed, self.seeds = -1, [], []
        self.state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.steps = self.episode + 1, 0
        self.state[:] = (0, self.np_random.random())
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.raise_at == (self.episode, self.steps):
            raise RuntimeError("the motor is gone")
        self.executed.append(action)
        self.steps += 1
        self.state[0] += 1
        return self.observe(), 0.5 * self.steps, self.steps >= self.length, False, {}

    def observe(self) -> dict[str, Any]:
        pixels = np.full((2, 2), self.steps, np.uint8)
        return {"count": self.state, "room": np.int64(self.steps % 3), "pixels": pixels}


def nothing(_: Any) -> int:
    return 0


def same(one: Demonstrations, other: Demonstrations) -> bool:
    return one.fingerprint() == other.fingerprint()


# What is kept


def test_everything_of_an_episode_is_kept() -> None:
    env = Counter(length=3)
    found = collect(env, lambda seen: int(seen["room"] == 1), 2, seed=7, progress=False)
    assert env.seeds == [7, None]
    assert found.actions.tolist() == [[0, 1, 0, 2]] * 2  # the null, 2, at the end
    assert found.rewards is not None and found.rewards.dtype == torch.float64
    assert found.rewards.tolist() == [[0.5, 1.0, 1.5, 0.0]] * 2
    assert found.terminated.tolist() == [True, True] and found.truncated.tolist() == [False, False]
    assert found.observation_space == env.observation_space and found.action_space == env.action_space
    seen: Any = unflatten_observations(env.observation_space, found.observations.numpy())
    assert seen["count"].dtype == np.float64 and seen["count"][..., 0].tolist() == [[0, 1, 2, 3]] * 2
    assert (seen["count"][:, 1:, 1] == seen["count"][:, :-1, 1]).all() and seen["count"][0, 0, 1] != seen["count"][
        1, 0, 1
    ]
    assert seen["pixels"].dtype == np.uint8 and seen["pixels"][:, :, 0, 1].tolist() == [[0, 1, 2, 3]] * 2
    assert seen["room"].tolist() == [[0, 1, 2, 0]] * 2


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_the_stored_action_is_the_one_that_is_executed(kind: str) -> None:
    env = Counter(action_space=ACTION_SPACES[kind])
    found = collect(env, lambda _: env.action_space.sample(), 3, seed=1, progress=False)
    executed = np.stack(env.executed).reshape(3, 4, *env.action_space.shape)
    stored = np.stack([episode.actions for episode in found.to_episodes()])
    assert np.array_equal(stored, executed) and stored.dtype == executed.dtype == env.action_space.dtype
    assert len(np.unique(stored)) > 1


def test_another_action_may_be_executed() -> None:
    env = Counter(length=3, action_space=spaces.Discrete(4))
    asked: list[tuple[float, int, bool]] = []

    def execute(observation: Any, action: Any, episode_start: Any) -> int:
        asked.append((float(observation["count"][0]), int(action), bool(episode_start)))
        return int(action) + 1

    found = collect(env, lambda seen: int(seen["count"][0]), 2, execute=execute, progress=False)
    assert found.actions.tolist() == [[0, 1, 2, 4]] * 2
    assert env.executed == [1, 2, 3] * 2
    assert asked == [(0.0, 0, True), (1.0, 1, False), (2.0, 2, False)] * 2


def test_a_time_limit_truncates_and_an_end_of_its_own_does_not() -> None:
    found = collect(Counter(length=4), nothing, 2, max_steps=3, progress=False)
    assert found.lengths.tolist() == [4, 4] and found.truncated.all() and not found.terminated.any()
    both = collect(Counter(length=3), nothing, 2, max_steps=3, progress=False)
    assert both.terminated.all() and not both.truncated.any()
    of_env = collect(gymnasium.make("CartPole-v1", max_episode_steps=30), CartPoleTeacher(), 2, progress=False)
    assert of_env.lengths.tolist() == [31, 31] and of_env.truncated.all() and not of_env.terminated.any()


@pytest.mark.parametrize(("labels", "lengths", "ended"), [(10, [5, 5, 3], [1, 1, 0]), (8, [5, 5], [1, 1])])
def test_labels_are_counted_exactly(labels: int, lengths: list[int], ended: list[int]) -> None:
    found = collect(Counter(length=4), nothing, None, max_labels=labels, progress=False)
    assert found.lengths.tolist() == lengths and int(found.acted.sum()) == labels
    assert found.terminated.tolist() == ended and not found.truncated.any()
    assert len(collect(Counter(length=4), nothing, 1, max_labels=labels, progress=False)) == 1


# Policies


class Remembering:
    """Takes as action how often it was asked since the episode began; its state is a tensor."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, bool, bool]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        self.asked.append((state is None, bool(np.any(episode_start)), deterministic))
        start = np.asarray(episode_start)
        count = torch.zeros(start.shape) if state is None else torch.where(torch.from_numpy(start), 0, state)
        return count.long().numpy()[()], count + 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_state_and_episode_start_reach_the_policy(deterministic: bool) -> None:
    policy = Remembering()
    env = Counter(length=3, action_space=spaces.Discrete(3))
    found = collect(env, policy, 2, deterministic=deterministic, progress=False)
    assert found.actions[:, :-1].tolist() == [[0, 1, 2]] * 2
    assert policy.asked == [(True, True, deterministic), *[(False, False, deterministic)] * 2] * 2


def test_a_stable_baselines_model_collects() -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make("Pendulum-v1", max_episode_steps=20)
    model = stable_baselines3.PPO("MlpPolicy", env, seed=0, device="cpu")
    found = collect(env, model, 2, seed=3, progress=False)
    assert same(found, collect(env, model, 2, seed=3, progress=False))
    assert not same(found, collect(env, model, 2, seed=4, progress=False))
    greedy = collect(env, model, 2, seed=3, deterministic=True, progress=False)
    along = predict_along(model, greedy)[:, :-1]
    assert np.allclose(along, greedy.actions[:, :-1], atol=1e-6) and greedy.actions[:, :-1].unique().numel() > 10


def test_what_cannot_act_or_be_stored_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="is no controller"):
        collect(Counter(), 3, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="action spaces are"):
        collect(Counter(action_space=spaces.MultiBinary(2)), nothing, 1)
    env = Counter()
    env.observation_space = spaces.Text(5)
    with pytest.raises(TypeError, match="observation spaces are"):
        collect(env, nothing, 1)
    with pytest.raises(TypeError, match="not a vector"):
        collect(gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), nothing, 1)


@pytest.mark.parametrize("numbers", [{"episodes": 0}, {"max_steps": 0}, {"max_labels": 0}, {"seed": -1}])
def test_bad_numbers_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(numbers))} must be"):
        collect(Counter(), nothing, **{"episodes": 1} | numbers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="how many episodes or how many labels"):
        collect(Counter(), nothing, None)


# The same again


def random_policy(_: Any) -> float:
    """Draws from torch, NumPy and Python."""
    import random

    return np.array([np.tanh(torch.randn(()).item()) + np.random.rand() / 2 + random.random() / 2 - 0.5], np.float32)


def test_one_seed_gives_the_same_demonstrations_and_leaves_the_random_state_alone() -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=15)
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    found = collect(env, random_policy, 3, seed=5, progress=False)
    assert (torch.rand(1).item(), np.random.rand()) == expected
    assert same(found, collect(env, random_policy, 3, seed=5, progress=False))
    assert not same(found, collect(env, random_policy, 3, seed=6, progress=False))
    # Also where the actions come from the environment's space.
    cartpole = gymnasium.make("CartPole-v1")
    pair = [collect(cartpole, lambda _: cartpole.action_space.sample(), 3, seed=5, progress=False) for _ in range(2)]
    assert same(*pair)


def test_runs_of_a_collector_go_on_where_the_last_one_stopped() -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=15)
    collector = Collector(env, seed=5, progress=False)
    first = collector.run(random_policy, 2)
    torch.manual_seed(99), env.np_random  # what others draw meanwhile does not matter
    second = collector.run(random_policy, 1)
    whole = collect(env, random_policy, 3, seed=5, progress=False)
    assert same(first + second, whole) and collector.labels == 45
    collected = collector.collected()
    assert collected is not None and same(collected, whole)


# Errors midway


def failing(place: tuple[int, int], error: BaseException) -> Callable[[Any], int]:
    """A policy that raises at (episode, step) of episodes of four steps."""
    calls = iter(range(1000))

    def policy(_: Any) -> int:
        if next(calls) == 4 * place[0] + place[1]:
            raise error
        return 0

    return policy


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (2, 3)])
@pytest.mark.parametrize("who", ["policy", "environment", "Ctrl-C"])
def test_what_was_collected_before_an_error_is_kept(place: tuple[int, int], who: str) -> None:
    original: BaseException = KeyboardInterrupt() if who == "Ctrl-C" else ValueError("the teacher has left")
    if who == "environment":
        env, policy, said = Counter(raise_at=place), nothing, "the environment raised RuntimeError: the motor is gone"
    else:
        env, policy, said = Counter(), failing(place, original), "the policy raised ValueError: the teacher has left"
    with pytest.raises(CollectionError) as caught:
        collect(env, policy, 5, seed=2, progress=False)
    error = caught.value
    where = f"episode {place[0]}, step {place[1]}"
    steps, episodes = 4 * place[0] + place[1], place[0] + (place[1] > 0)
    assert where in str(error) and f"kept {episodes} episode" in str(error) and f"{steps} steps in all" in str(error)
    assert isinstance(error, KeyboardInterrupt) == isinstance(error, CollectionInterrupted) == (who == "Ctrl-C")
    if who == "environment":
        assert isinstance(error.__cause__, RuntimeError)
    else:
        assert error.__cause__ is original
    if who != "Ctrl-C":
        assert said in str(error)

    kept = error.collected
    assert kept is not None and len(kept) == episodes
    assert (kept.lengths - 1).tolist() == [4] * place[0] + [place[1]] * (place[1] > 0)
    assert kept.terminated.tolist() == [True] * place[0] + [False] * (place[1] > 0) and not kept.truncated.any()
    untroubled = collect(Counter(), nothing, None, seed=2, max_labels=steps, progress=False)
    assert same(kept, untroubled)


def test_an_error_before_the_first_step_keeps_nothing() -> None:
    with pytest.raises(CollectionError, match="episode 0, step 0: .* nothing was collected") as caught:
        collect(Counter(), failing((0, 0), ValueError()), 1, progress=False)
    assert caught.value.collected is None


def test_the_random_state_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(CollectionError):
        collect(Counter(), failing((0, 0), ValueError()), 1, progress=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("discrete", 4, "an action outside 5..7 .it is 4."),
        ("discrete", 5.0, "actions must be integers"),
        ("discrete", np.array([5]), r"one action was asked for, it gave an array of shape \[1\]"),
        ("multidiscrete", [1, 4], "an action outside 0..3 .component 1 is 4."),
        ("box", [[0.0, 0.6]], "an action outside -2..0.5 .component 1 is 0.6."),
        ("box", [[np.nan, 0.0]], "the action is NaN or infinite"),
        ("box", [0.0, 0.0, 0.0], "actions must have shape"),
    ],
)
def test_every_action_is_checked_at_its_step(kind: str, action: Any, message: str) -> None:
    env = Counter(action_space=ACTION_SPACES[kind])
    good = env.action_space.sample()

    def policy(seen: Any) -> Any:
        return action if env.episode == 1 and seen["count"][0] == 2 else good

    with pytest.raises(CollectionError, match=f"episode 1, step 2: the policy: {message}") as caught:
        collect(env, policy, 2, progress=False)
    assert caught.value.collected is not None and (caught.value.collected.lengths - 1).tolist() == [4, 2]


@pytest.mark.parametrize("part", ["observation", "reward", "shape"])
def test_bad_numbers_of_an_environment_are_found_at_their_step(part: str) -> None:
    class Broken(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, reward, *rest = super().step(action)
            if self.episode == 1 and self.steps == 3:
                if part == "reward":
                    reward = np.nan
                else:
                    seen["count"] = np.array([np.nan, 0.0] if part == "observation" else [0.0])
            return seen, reward, *rest  # type: ignore[return-value]

    message = {"observation": "NaN", "reward": "the reward is nan", "shape": "must have shape"}[part]
    with pytest.raises(CollectionError, match=f"episode 1, step 2: .*{message}") as caught:
        collect(Broken(), nothing, 3, progress=False)
    assert caught.value.collected is not None and (caught.value.collected.lengths - 1).tolist() == [4, 2]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="SIGINT is not Python's own"
)
def test_a_pressed_ctrl_c_keeps_what_was_collected() -> None:
    calls = iter(range(100))

    def policy(_: Any) -> int:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    with pytest.raises(KeyboardInterrupt) as caught:
        collect(Counter(), policy, 5, progress=False)
    assert isinstance(caught.value, CollectionInterrupted)
    assert caught.value.collected is not None and int(caught.value.collected.acted.sum()) in (6, 7)


# Along demonstrations


def test_a_policy_is_asked_along_demonstrations_with_its_memory() -> None:
    env = Counter(length=4, action_space=spaces.Discrete(9))
    demos = collect(env, nothing, 2, progress=False) + collect(env, nothing, 1, max_steps=2, progress=False)
    assert demos.lengths.tolist() == [5, 5, 3]
    asked = predict_along(Remembering(), demos)
    assert asked.tolist() == [[0, 1, 2, 3, 4]] * 3
    counts = predict_along(lambda seen: int(seen["count"][0]), demos)  # a function takes one observation
    assert counts.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]


def test_actions_along_demonstrations_are_clipped_to_a_box_and_checked_elsewhere() -> None:
    env = Counter(action_space=ACTION_SPACES["box"])
    demos = collect(env, lambda _: np.zeros((1, 2)), 2, progress=False)
    assert predict_along(lambda _: np.array([[3.0, -9.0]]), demos).tolist() == [[[1.0, -2.0]] * 5] * 2
    demos = collect(Counter(), nothing, 2, progress=False)
    with pytest.raises(ValueError, match="an action outside 0..1"):
        predict_along(lambda _: 2, demos)


# Progress


def test_progress_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    collect(Counter(), nothing, 20)
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 11 and told.err.startswith("episode 0/20\n")
    assert "episode 20/20" in told.err and "steps/s" in told.err and "mean return 5" in told.err
    collect(Counter(), nothing, None, max_labels=30)
    assert "step 30/30" in capsys.readouterr().err
    collect(Counter(), nothing, 20, progress=False)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    collect(Counter(), nothing, 7)
    told = capsys.readouterr().err
    assert "7/7" in told and "mean return 5" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"env": "CartPole-v1"}, "env must be a Gymnasium environment, .* got the text 'CartPole-v1'"),
        ({"env": 3}, "env must be a Gymnasium environment, .* got int"),
        ({"episodes": 1.5}, "episodes must be a whole number, not 1.5"),
    ],
)
def test_other_kinds_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        collect(**{"env": Counter(), "policy": nothing, "episodes": 1, "progress": False} | given)
