"""DAgger and DART: whose actions are executed, whose are stored, what is learnt from what, what errors leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pyrocontrol.envs import CollectionError, CollectionInterrupted, Demonstrations, TMazeTeacher, collect
from pyrocontrol.envs.acting.collect import predict_along
from pyrocontrol.inference import ConfusionNoise, GaussianNoise, constant, dagger, dart, geometric, linear

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=2),
    "multidiscrete": spaces.MultiDiscrete([3, 2], start=[0, 5]),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
}


class Walk(gymnasium.Env[Any, Any]):
    """Shows the last executed action and the step; truncated after `length` steps."""

    def __init__(self, action_space: spaces.Space[Any], length: int = 10) -> None:
        self.action_space, self.length = action_space, length
        self.size = max(1, int(np.prod(action_space.shape or ())))
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.size + 2,), np.float64)
        self.executed: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(np.zeros(self.size)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.executed.append(np.array(action))
        self.steps += 1
        return self.observe(action), 1.0, False, self.steps == self.length, {}

    def observe(self, action: Any) -> np.ndarray:
        return np.array([*np.reshape(action, -1), self.steps, self.np_random.random()])


class Constant:
    """Always the same action; counts how often it is asked and keeps the states and starts that it was given."""

    def __init__(self, action: Any) -> None:
        self.action, self.asked = action, 0
        self.log: list[tuple[Any, bool]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        self.asked += 1
        self.log.append((state, bool(np.any(episode_start))))
        shape = np.shape(observation)[:-1]
        return np.broadcast_to(self.action, (*shape, *np.shape(self.action))), (state or 0) + 1


TEACHERS = {
    "discrete": np.int64(3),
    "multidiscrete": np.array([1, 5]),
    "box": np.array([0.25, -0.5], np.float32),
}
LEARNERS = {
    "discrete": np.int64(2),
    "multidiscrete": np.array([1, 6]),
    "box": np.array([0.75, -2.0], np.float32),  # the second component is clipped to -1
}
KINDS = list(ACTION_SPACES)


def recorded(data: list[Demonstrations], policy: Any) -> Callable[[Demonstrations], Any]:
    """A `learn` that keeps what it was given and returns `policy`."""

    def learn(demonstrations: Demonstrations) -> Any:
        data.append(demonstrations)
        return policy

    return learn


def same(one: Demonstrations, other: Demonstrations) -> bool:
    return one.fingerprint() == other.fingerprint()


def stored(kind: str, action: Any) -> list[Any]:
    start = getattr(ACTION_SPACES[kind], "start", 0)
    return (np.asarray(action) - start).tolist()


# DAgger


@pytest.mark.parametrize(
    ("kind", "beta"),
    [("discrete", 0.3), ("discrete", 1.0), ("multidiscrete", 0.0), ("multidiscrete", 0.3), ("box", 0.3)],
)
def test_executed_actions_are_the_teachers_as_often_as_beta_says_and_labels_always_are(kind: str, beta: float) -> None:
    env, teacher, learner = Walk(ACTION_SPACES[kind], 50), Constant(TEACHERS[kind]), Constant(LEARNERS[kind])
    data: list[Demonstrations] = []
    found = dagger(
        env, teacher, recorded(data, learner), rounds=3, episodes=20, schedule=constant(beta), seed=4, progress=False
    )
    labels = found.demonstrations.actions[found.demonstrations.acted]
    assert len(labels) == 3000 and (labels == torch.tensor(stored(kind, TEACHERS[kind]))).all()
    executed = np.stack(env.executed)
    by_teacher = (executed == TEACHERS[kind]).reshape(3000, -1).all(1)
    clipped = np.clip(LEARNERS[kind], -1, 1) if kind == "box" else LEARNERS[kind]
    assert (by_teacher | (executed == clipped).reshape(3000, -1).all(1)).all()
    assert by_teacher[:1000].all()  # without a learner, the teacher acts
    expected = 2000 * beta
    assert abs(by_teacher[1000:].sum() - expected) <= 4 * np.sqrt(2000 * beta * (1 - beta))
    # What was executed is what was seen next.
    seen = found.demonstrations.observations[:, 1:, : env.size].reshape(3000, -1)
    assert np.array_equal(seen.numpy(), executed.reshape(3000, -1).astype(np.float64))
    assert teacher.asked == 3000  # once a step
    assert [r.beta for r in found.rounds] == [1.0, beta, beta]


def test_data_are_aggregated_and_learnt_from_once_a_round() -> None:
    data: list[Demonstrations] = []

    def learner(_: Any) -> int:
        return 2

    env = Walk(ACTION_SPACES["discrete"])
    found = dagger(env, Constant(np.int64(3)), recorded(data, learner), rounds=3, episodes=2, progress=False)
    assert found.policy is learner
    assert [len(d) for d in data] == [2, 4, 6] and data[-1] is found.demonstrations
    assert same(data[0], data[2][:2]) and same(data[1], data[2][:4])
    assert [r.round for r in found.rounds] == [0, 1, 2] and [r.labels for r in found.rounds] == [20, 40, 60]
    assert [(r.episodes, r.steps) for r in found.rounds] == [(2, 20)] * 3
    assert [r.mean_return for r in found.rounds] == [10.0] * 3
    assert [r.beta for r in found.rounds] == [1.0, 0.5, 0.25]
    assert [r.disagreement for r in found.rounds] == [None, 1.0, 1.0]
    assert [r.noise for r in found.rounds] == [None] * 3 and found.noise is None


def random_teacher(observation: Any) -> np.ndarray:
    return np.tanh(torch.randn(1).numpy())


def test_with_beta_one_dagger_is_plain_collection() -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)

    def learn(demonstrations: Demonstrations) -> Any:
        torch.randn(7)  # what learning draws does not change what is collected
        return lambda _: np.zeros(1, np.float32)

    found = dagger(env, random_teacher, learn, rounds=3, episodes=2, schedule=constant(1), seed=8, progress=False)
    assert same(found.demonstrations, collect(env, random_teacher, 6, seed=8, progress=False))
    mixed = dagger(env, random_teacher, learn, rounds=3, episodes=2, schedule=constant(0), seed=8, progress=False)
    assert same(mixed.demonstrations[:2], found.demonstrations[:2])
    assert not same(mixed.demonstrations, found.demonstrations)


@pytest.mark.parametrize("loop", [dagger, dart])
def test_one_seed_gives_the_same_again_and_leaves_the_random_state_alone(loop: Any) -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)

    def learn(demonstrations: Demonstrations) -> Any:
        gain = torch.rand(1).item()  # the learner depends on the random state, as weights do
        return lambda seen: np.array([gain * seen[2]], np.float32)

    def go(seed: int) -> Demonstrations:
        torch.rand(seed + 1)
        before = torch.get_rng_state()
        found = loop(env, random_teacher, learn, rounds=3, episodes=2, seed=seed, progress=False)
        assert torch.equal(before, torch.get_rng_state())
        return found.demonstrations

    assert same(go(1), go(1)) and not same(go(1), go(2))


def test_the_learners_state_begins_anew_with_each_episode_and_follows_every_step() -> None:
    env, learner = Walk(ACTION_SPACES["discrete"], 4), Constant(np.int64(2))
    dagger(
        env,
        Constant(np.int64(3)),
        lambda _: learner,
        rounds=2,
        episodes=3,
        schedule=constant(0.5),
        max_steps=4,
        progress=False,
    )
    acting = learner.log[:12]  # what follows is along the demonstrations
    assert acting == [(None, True), (1, False), (2, False), (3, False)] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_learners_disagreement_is_measured_along_what_it_has_not_seen(kind: str) -> None:
    env = Walk(ACTION_SPACES[kind])
    found = dagger(
        env, Constant(TEACHERS[kind]), lambda _: Constant(LEARNERS[kind]), rounds=2, episodes=1, progress=False
    )
    expected = 1.0 if kind != "box" else 0.5**2 + 0.5**2  # clipped as it would be
    assert found.rounds[1].disagreement == pytest.approx(expected)


def test_dagger_teaches_a_learner_with_memory() -> None:
    """A teacher that needs memory labels along the way that the mixture goes."""
    env = gymnasium.make("pyrocontrol/TMaze-v0", length=3)
    found = dagger(env, TMazeTeacher(), lambda _: Constant(np.int64(3)), rounds=3, episodes=4, progress=False)
    along = predict_along(TMazeTeacher(), found.demonstrations)
    acted = found.demonstrations.acted.numpy()
    assert (along[acted] == found.demonstrations.actions.numpy()[acted]).all()
    assert found.demonstrations.lengths.float().mean() > 5  # backing learners stay longer than the teacher's 4 steps


# What is collected before, and how much


def test_initial_demonstrations_make_a_first_learner_and_stay_in_the_data() -> None:
    env, data = Walk(ACTION_SPACES["discrete"]), []
    initial = collect(env, lambda _: 5, 3, seed=1, progress=False)
    found = dagger(
        env,
        Constant(np.int64(3)),
        recorded(data, Constant(np.int64(2))),
        rounds=2,
        episodes=2,
        schedule=constant(0),
        initial=initial,
        progress=False,
    )
    assert [len(d) for d in data] == [3, 5, 7] and same(data[0], initial)
    assert same(found.demonstrations[:3], initial)
    assert [r.beta for r in found.rounds] == [0, 0] and [r.labels for r in found.rounds] == [20, 40]
    assert (np.stack(env.executed[30:]) == 2).all()


def test_initial_demonstrations_may_have_no_rewards_but_no_other_spaces() -> None:
    env = Walk(ACTION_SPACES["discrete"])
    collected = collect(env, lambda _: 5, 1, progress=False)
    bare = collected.replace(rewards=None)
    found = dart(env, lambda _: 3, lambda _: lambda _: 3, rounds=1, episodes=1, initial=bare, progress=False)
    assert len(found.demonstrations) == 2 and found.demonstrations.rewards is None
    assert found.rounds[0].mean_return == 10
    other = Walk(spaces.Discrete(4))
    with pytest.raises(
        ValueError, match="the action_space of initial is Discrete.4, start=2., that of the environment"
    ):
        dagger(other, lambda _: 3, lambda _: lambda _: 3, rounds=1, episodes=1, initial=collected)


def test_an_initial_policy_acts_in_the_first_round() -> None:
    env = Walk(ACTION_SPACES["discrete"])
    dagger(
        env,
        lambda _: 3,
        lambda _: lambda _: 3,
        rounds=1,
        episodes=1,
        schedule=constant(0),
        initial=lambda _: 4,
        progress=False,
    )
    assert env.executed == [4] * 10


@pytest.mark.parametrize("loop", [dagger, dart])
@pytest.mark.parametrize(("episodes", "labels"), [(None, 57), (3, 57), (None, 100)])
def test_labels_stop_exactly_where_asked(loop: Any, episodes: int | None, labels: int) -> None:
    teacher = Constant(np.int64(3))
    env = Walk(ACTION_SPACES["discrete"])
    found = loop(env, teacher, lambda _: lambda _: 2, rounds=4, episodes=episodes, max_labels=labels, progress=False)
    assert teacher.asked == labels == found.rounds[-1].labels == int(found.demonstrations.acted.sum())
    assert [r.labels for r in found.rounds] == [labels * (i + 1) // 4 for i in range(4)]
    cut = found.demonstrations[found.demonstrations.lengths < 11]
    assert not cut.truncated.any() and not cut.terminated.any()


def test_fewer_episodes_than_labels_end_by_the_episodes() -> None:
    env = Walk(ACTION_SPACES["discrete"])
    found = dagger(env, lambda _: 3, lambda _: lambda _: 2, rounds=2, episodes=1, max_labels=90, progress=False)
    assert [r.labels for r in found.rounds] == [10, 20]
    short = dagger(env, lambda _: 3, lambda _: lambda _: 2, rounds=2, episodes=1, max_steps=3, progress=False)
    assert [r.labels for r in short.rounds] == [3, 6] and short.demonstrations.truncated.all()
    unfinished = dagger(env, lambda _: 3, lambda _: lambda _: 2, rounds=1, episodes=1, max_labels=4, progress=False)
    assert unfinished.rounds[0].mean_return is None


# Schedules


def test_schedules() -> None:
    assert [geometric(0.5)(i) for i in range(4)] == [1, 0.5, 0.25, 0.125]
    assert [geometric(0)(i) for i in range(3)] == [1, 0, 0]
    assert [linear(4)(i) for i in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert [constant(0.2)(i) for i in range(2)] == [0.2, 0.2]
    for make, value in ((geometric, 1.1), (constant, -0.1), (linear, 0)):
        with pytest.raises(ValueError, match="must be"):
            make(value)  # type: ignore[operator]
    with pytest.raises(ValueError, match="beta must be in 0..1, not 1.5"):
        dagger(Walk(spaces.Discrete(2)), lambda _: 0, lambda _: None, rounds=2, episodes=1, schedule=lambda _: 1.5)


# DART


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_action_is_executed_with_noise_and_the_meant_one_is_stored(kind: str) -> None:
    noise: Any = {
        "discrete": ConfusionNoise(np.roll(np.eye(4), 1, 1) * 0.25 + np.eye(4) * 0.75),
        "multidiscrete": ConfusionNoise([np.eye(3), np.full((2, 2), 0.5)]),
        "box": GaussianNoise(np.diag([0.09, 0.25])),
    }[kind]
    env, teacher = Walk(ACTION_SPACES[kind], 50), Constant(TEACHERS[kind])
    found = dart(env, teacher, lambda _: teacher, rounds=1, episodes=40, noise=noise, seed=2, progress=False)
    labels = found.demonstrations.actions[found.demonstrations.acted]
    assert (labels == torch.tensor(stored(kind, TEACHERS[kind]))).all()
    executed = np.stack(env.executed).astype(np.float64).reshape(2000, -1)
    if kind == "discrete":
        assert set(executed[:, 0]) == {3.0, 4.0} and abs((executed == 4).mean() - 0.25) < 4 * np.sqrt(0.1875 / 2000)
    elif kind == "multidiscrete":
        assert (executed[:, 0] == 1).all() and abs((executed[:, 1] == 6).mean() - 0.5) < 4 * np.sqrt(0.25 / 2000)
    else:
        assert executed.min() == -1 and executed.max() == 1  # clipped to the bounds
        drawn = np.array([0.25, -0.5]) + np.random.default_rng(0).normal(size=(100_000, 2)) * (0.3, 0.5)
        drawn = drawn.clip(-1, 1)
        assert (np.abs(executed.mean(0) - drawn.mean(0)) < 4 * drawn.std(0) / np.sqrt(2000)).all()
        np.testing.assert_allclose(executed.std(0), drawn.std(0), rtol=0.08)
    assert teacher.asked >= 2000 and found.rounds[0].noise is noise and found.rounds[0].beta is None


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_fitted_to_the_learners_errors_in_every_round(kind: str) -> None:
    learner = Constant(LEARNERS[kind])
    found = dart(
        Walk(ACTION_SPACES[kind]), Constant(TEACHERS[kind]), lambda _: learner, rounds=2, episodes=2, progress=False
    )
    noises = [found.rounds[0].noise, found.rounds[1].noise, found.noise]
    begun, fitted, last = (matrices(noise) for noise in noises)
    if kind == "box":
        error = np.array([0.5, -0.5])  # the second one clipped
        expected = [np.outer(error, error)]
        nothing = [np.zeros((2, 2))]
    else:
        nothing = [np.eye(4)] if kind == "discrete" else [np.eye(3), np.eye(2)]
        meant, done = np.atleast_1d(stored(kind, TEACHERS[kind])), np.atleast_1d(stored(kind, LEARNERS[kind]))
        expected = [one.copy() for one in nothing]
        for matrix, row, column in zip(expected, meant, done, strict=True):  # 20 steps, and a prior of 0.1
            matrix[row] = 0.1 / len(matrix) / 20.1
            matrix[row, column] += 20 / 20.1
    for one, other in zip(begun + fitted, nothing + expected, strict=True):
        np.testing.assert_allclose(one, other)
    # After the second round, from both rounds.
    acted = found.demonstrations.acted.numpy()
    pairs = found.demonstrations.actions.numpy()[acted], predict_along(learner, found.demonstrations)[acted]
    assert noises[0] is not None and len(pairs[0]) == 40
    for one, other in zip(last, matrices(noises[0].fit(*pairs)), strict=True):
        np.testing.assert_allclose(one, other)


def matrices(noise: Any) -> list[np.ndarray]:
    if isinstance(noise, GaussianNoise):
        return [noise.covariance]
    assert isinstance(noise, ConfusionNoise)
    return [np.asarray(noise.matrix)] if noise.single else list(noise.matrix)


def test_an_anticipated_error_scales_the_noise() -> None:
    env = Walk(ACTION_SPACES["box"])
    learner = Constant(LEARNERS["box"])
    found = dart(env, Constant(TEACHERS["box"]), lambda _: learner, rounds=2, episodes=1, alpha=0.02, progress=False)
    assert isinstance(found.noise, GaussianNoise) and np.trace(found.noise.covariance) == pytest.approx(0.02)
    initial = collect(env, Constant(TEACHERS["box"]), 1, progress=False)
    found = dart(
        env,
        Constant(TEACHERS["box"]),
        lambda _: learner,
        rounds=1,
        episodes=1,
        initial=initial,
        alpha=0.02,
        progress=False,
    )
    assert isinstance(found.rounds[0].noise, GaussianNoise)  # fitted to the initial demonstrations
    assert np.trace(found.rounds[0].noise.covariance) == pytest.approx(0.02)


def test_noise_may_be_fitted_to_errors_on_what_the_learner_has_not_seen() -> None:
    """Learners that err by 0.1, 0.2, 0.3, ... in turn."""
    errors = iter([0.1, 0.2, 0.3])

    def learn(_: Demonstrations) -> Any:
        error = next(errors)
        return lambda seen: np.array([0.0, error], np.float32)

    def teacher(_: Any) -> np.ndarray:
        return np.zeros(2, np.float32)

    env = Walk(ACTION_SPACES["box"])
    found = dart(env, teacher, learn, rounds=3, episodes=1, fit_to="new", progress=False)
    fitted = [matrices(noise)[0][1, 1] for noise in (*(r.noise for r in found.rounds), found.noise)]
    np.testing.assert_allclose(fitted, np.array([0.0, 0.1, 0.1, 0.2]) ** 2)
    assert [r.disagreement for r in found.rounds] == [None, pytest.approx(0.1**2), pytest.approx(0.2**2)]


def test_dart_takes_any_noise_with_fit_and_sample() -> None:
    class Flip:
        fits = 0

        def fit(self, teacher_actions: np.ndarray, learner_actions: np.ndarray) -> Flip:
            assert teacher_actions.shape == learner_actions.shape
            Flip.fits += 1
            return self

        def sample(self, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return 1 - actions

    env = Walk(spaces.Discrete(2))
    found = dart(env, lambda _: 0, lambda _: lambda _: 0, rounds=3, episodes=1, noise=Flip(), progress=False)
    assert env.executed == [1] * 30 and Flip.fits == 3
    assert not found.demonstrations.actions[found.demonstrations.acted].any()


# Errors


@pytest.mark.parametrize("loop", [dagger, dart])
@pytest.mark.parametrize(("round_", "step"), [(0, 3), (1, 0), (2, 17)])
def test_a_teacher_that_raises_leaves_exactly_what_came_before(loop: Any, round_: int, step: int) -> None:
    """Three rounds of two episodes of ten steps; the teacher raises at `step` of the steps of `round_`."""
    before = 20 * round_ + step
    original = ConnectionError("the teacher has gone home")

    def teacher_of(last: int) -> Callable[[Any], int]:
        calls = iter(range(1000))

        def teacher(_: Any) -> int:
            if (call := next(calls)) == last:
                raise original
            return 2 + call % 3

        return teacher

    def go(teacher: Any) -> Any:
        return loop(
            Walk(ACTION_SPACES["discrete"]),
            teacher,
            lambda _: lambda _: 3,
            rounds=3,
            episodes=2,
            seed=6,
            progress=False,
        )

    untroubled = go(teacher_of(-1)).demonstrations
    with pytest.raises(
        CollectionError, match=f"episode {before // 10}, step {before % 10}: the policy raised"
    ) as caught:
        go(teacher_of(before))
    assert caught.value.__cause__ is original and f"{before} steps in all" in str(caught.value)
    kept = caught.value.collected
    assert kept is not None
    assert (kept.lengths - 1).tolist() == [10] * (before // 10) + [before % 10] * (before % 10 > 0)
    assert kept.truncated.tolist() == [True] * (before // 10) + [False] * (before % 10 > 0)
    whole = before // 10
    if whole:
        assert same(kept[:whole], untroubled[:whole])
    if before % 10:
        assert torch.equal(kept.actions[whole, : before % 10], untroubled.actions[whole, : before % 10])
        assert torch.equal(kept.observations[whole, : before % 10], untroubled.observations[whole, : before % 10])


@pytest.mark.parametrize("error", [ValueError("diverged"), KeyboardInterrupt()])
def test_what_was_collected_survives_an_error_of_learning(error: BaseException) -> None:
    calls = iter(range(10))

    def learn(_: Demonstrations) -> Any:
        if next(calls) == 1:
            raise error
        return lambda _: 2

    with pytest.raises(CollectionError, match="learning after 2 rounds.* kept 4 episodes, 40 steps in all") as caught:
        dagger(Walk(ACTION_SPACES["discrete"]), lambda _: 3, learn, rounds=3, episodes=2, progress=False)
    assert caught.value.__cause__ is error and caught.value.collected is not None and len(caught.value.collected) == 4
    assert isinstance(caught.value, CollectionInterrupted) == isinstance(error, KeyboardInterrupt)


def test_bad_actions_of_a_learner_are_named() -> None:
    env = Walk(ACTION_SPACES["discrete"])
    with pytest.raises(CollectionError, match="episode 1, step 0: executing the action: an action outside 2..5"):
        dagger(env, lambda _: 3, lambda _: lambda _: 7, rounds=2, episodes=1, schedule=constant(0), progress=False)
    box = Walk(ACTION_SPACES["box"])
    nan = np.full(2, np.nan, np.float32)
    with pytest.raises(CollectionError, match="episode 1, step .: executing the action: the action is NaN"):
        dagger(box, Constant(TEACHERS["box"]), lambda _: lambda _: nan, rounds=2, episodes=1, progress=False)
    with pytest.raises(CollectionError, match="learning after 1 round raised TypeError: the NoneType is no controller"):
        dagger(env, lambda _: 3, lambda _: None, rounds=2, episodes=1, progress=False)


def test_what_makes_no_sense_is_refused_before_anything_is_asked() -> None:
    env, teacher = Walk(ACTION_SPACES["discrete"]), Constant(np.int64(3))

    def learn(_: Demonstrations) -> Any:
        return teacher

    for loop in (dagger, dart):
        with pytest.raises(ValueError, match="rounds must be at least 1"):
            loop(env, teacher, learn, rounds=0, episodes=1)  # type: ignore[operator]
        with pytest.raises(ValueError, match="max_labels must be at least 1 for each of 4 rounds"):
            loop(env, teacher, learn, rounds=4, episodes=None, max_labels=3)  # type: ignore[operator]
        with pytest.raises(ValueError, match="how many episodes a round or how many labels"):
            loop(env, teacher, learn, rounds=4, episodes=None)  # type: ignore[operator]
        with pytest.raises(TypeError, match="a policy has a method predict"):
            loop(env, 3, learn, rounds=1, episodes=1)  # type: ignore[operator]
    with pytest.raises(ValueError, match="noise must be 'auto'"):
        dart(env, teacher, learn, rounds=1, episodes=1, noise="gaussian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha goes with noise='auto'"):
        dart(env, teacher, learn, rounds=1, episodes=1, noise=ConfusionNoise(np.eye(4)), alpha=0.1)
    with pytest.raises(TypeError, match="a policy has a method predict"):
        dagger(env, teacher, learn, rounds=1, episodes=1, initial=3)
    with pytest.raises(ValueError, match="fit_to must be"):
        dart(env, teacher, learn, rounds=1, episodes=1, fit_to="old")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initial must be demonstrations"):
        dart(env, teacher, learn, rounds=1, episodes=1, initial=teacher)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="action spaces are Discrete"):
        dart(Walk(spaces.MultiBinary(2)), teacher, learn, rounds=1, episodes=1)
    assert teacher.asked == 0


# What it is for


def test_dagger_learns_what_cloning_cannot_see() -> None:
    """A teacher that keeps x at 0 never shows what to do elsewhere; a learner that drifts asks."""

    class Drift(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            self.x = np.zeros(1, np.float32)
            return self.x.copy(), {}

        def step(self, action: Any) -> Any:
            self.x = self.x + action + np.float32(0.05)
            return self.x.copy(), -float(abs(self.x[0])), False, False, {}

    def teacher(seen: Any) -> np.ndarray:
        return np.clip(-seen - 0.05, -1, 1).astype(np.float32)

    def clone(demonstrations: Demonstrations) -> Any:  # ridge: a clone that errs a little where it has no data
        acted = demonstrations.acted
        x = demonstrations.observations[acted].double().numpy()[:, 0]
        slope = x @ demonstrations.actions[acted].double().numpy()[:, 0] / (x @ x + 0.01)
        return lambda seen: np.clip(slope * seen, -1, 1).astype(np.float32)

    plain = dagger(Drift(), teacher, clone, rounds=3, episodes=1, schedule=constant(1), max_steps=20, progress=False)
    asked = dagger(Drift(), teacher, clone, rounds=3, episodes=1, schedule=constant(0), max_steps=20, progress=False)

    def off(policy: Any) -> float:
        found = collect(Drift(), policy, 1, max_steps=20, progress=False)
        return float(found.observations.abs().max())

    assert off(plain.policy) > 0.9 and off(asked.policy) < 0.1


@pytest.mark.parametrize("loop", [dagger, dart])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"episodes": 0}, ValueError, "episodes must be at least 1"),
        ({"episodes": 1.5}, TypeError, "episodes must be a whole number"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"rounds": None}, TypeError, "rounds must be an integer"),
        ({"learn": None}, TypeError, "learn must be a function from demonstrations"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"env": "CartPole-v1"}, TypeError, "env must be a Gymnasium environment"),
    ],
)
def test_everything_is_checked_before_the_first_learning(
    loop: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    env, seen = Walk(ACTION_SPACES["discrete"]), []
    initial = collect(env, lambda _: 3, 1, progress=False)
    arguments = {"env": env, "teacher": lambda _: 3, "learn": seen.append, "rounds": 1, "episodes": 1}
    with pytest.raises(error, match=message):
        loop(**arguments | {"initial": initial} | given)
    assert not seen


def test_schedules_and_noise_are_checked() -> None:
    env, asked = Walk(ACTION_SPACES["discrete"]), Constant(np.int64(3))
    wrong: Any = 0.5
    with pytest.raises(TypeError, match="schedule must be a function of a round's number"):
        dagger(env, asked, lambda _: asked, rounds=1, episodes=1, schedule=wrong)
    with pytest.raises(TypeError, match="noise must be 'auto' or have the methods fit and sample, got 0.5"):
        dart(env, asked, lambda _: asked, rounds=1, episodes=1, noise=wrong)
    assert not asked.asked


def test_initial_demonstrations_may_be_on_disk(tmp_path: Path) -> None:
    env, first = (
        Walk(ACTION_SPACES["discrete"]),
        collect(Walk(ACTION_SPACES["discrete"]), lambda _: 3, 1, progress=False),
    )
    first.save(tmp_path / "a.npz", compressed=False)
    stored = Demonstrations.load(tmp_path / "a.npz", memory=False)
    for loop in (dagger, dart):
        found = [
            loop(env, lambda _: 3, lambda _: lambda _: 2, rounds=1, episodes=1, initial=initial, progress=False)
            for initial in (first, stored)
        ]
        assert same(found[0].demonstrations, found[1].demonstrations) and len(found[1].demonstrations) == 2
