"""Frozen policies as part of an environment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from torch import Tensor, nn

from pyrocontrol.envs.latent_action import LatentActionEnv
from pyrocontrol.envs.point_maze import PointMaze, PointMove
from pyrocontrol.guides.policies.flow_policy import FlowPolicy
from pyrocontrol.guides.policies.gaussian_policy import MixturePolicy
from pyrocontrol.models.policies.level import columns_of, from_box, to_box


class Shift(nn.Module):
    """a = h + w s, through tanh at the lowest level: small enough to compute by hand."""

    invertible = True

    def __init__(self, weight: list[list[float]], squash: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.action_size, self.observation_size = self.weight.shape
        self.squash = squash

    def actions(self, latents: Tensor, observations: Tensor) -> Tensor:
        raw = latents + observations @ self.weight.mT
        return raw.tanh() if self.squash else raw

    def signature(self) -> str:
        return "Shift"


class Counter(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes how often it has stepped, twice over and negated; rewards that number; ends after `length` steps."""

    def __init__(self, length: int = 7, low: float = -1.0, high: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(low, high, (1,), np.float64)
        self.length, self.count = length, 0
        self.actions: list[float] = []

    def observe(self) -> np.ndarray:
        return np.array([self.count, -2.0 * self.count])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.actions = 0, []
        return self.observe(), {"begun": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.actions.append(float(action[0]))
        self.count += 1
        return self.observe(), float(self.count), self.count == self.length, False, {"count": self.count}


FIRST = [0]  # the number of steps alone
LOW = [[0.1]]
HIGH = [[0.3, 0.05]]
WIDE = np.finfo(np.float64).max


def test_the_loop_is_closed_while_a_latent_is_held() -> None:
    inner = Counter()
    env = LatentActionEnv(inner, Shift(LOW), observation=FIRST, hold=3)
    observation, info = env.reset(seed=0)
    assert info["begun"] and env.action_space == spaces.Box(-np.inf, np.inf, (1,), np.float64)
    observation, reward, terminated, truncated, info = env.step(np.array([0.2]))
    np.testing.assert_allclose(inner.actions, np.tanh([0.2, 0.3, 0.4]), rtol=1e-15)
    np.testing.assert_array_equal(observation, [3, -6])
    assert (reward, terminated, truncated) == (1 + 2 + 3, False, False)
    assert info == {"count": 3, "environment_steps": 3}
    # An open loop, which looks once, is something else.
    assert abs(np.array(inner.actions) - np.tanh(0.2))[1:].min() > 0.05


def test_a_hold_ends_with_the_episode() -> None:
    env = LatentActionEnv(Counter(length=4), Shift(LOW), observation=FIRST, hold=3)
    env.reset()
    env.step(np.zeros(1))
    _, reward, terminated, _, info = env.step(np.zeros(1))
    assert terminated and reward == 4 and info["environment_steps"] == 1
    limited = LatentActionEnv(TimeLimit(Counter(), 5), Shift(LOW), observation=FIRST, hold=3)
    limited.reset()
    limited.step(np.zeros(1))
    _, reward, terminated, truncated, info = limited.step(np.zeros(1))
    assert truncated and not terminated and reward == 4 + 5 and info["environment_steps"] == 2


def test_levels_stack() -> None:
    inner = Counter(length=100)
    low = LatentActionEnv(inner, Shift(LOW), observation=FIRST, hold=2)
    env = LatentActionEnv(RecordEpisodeStatistics(low), Shift(HIGH, squash=False), hold=3)
    env.reset()
    _, reward, *_, info = env.step(np.array([0.5]))
    expected, count = [], 0
    for _ in range(3):
        between = 0.5 + 0.3 * count + 0.05 * -2 * count
        for _ in range(2):
            expected.append(np.tanh(between + 0.1 * count))
            count += 1
    np.testing.assert_allclose(inner.actions, expected, rtol=1e-14)
    assert info["environment_steps"] == 6 and reward == sum(range(1, 7))


def test_what_is_latent_can_be_seen_from_outside() -> None:
    env = TimeLimit(LatentActionEnv(Counter(), Shift(LOW), observation=FIRST), 3)
    assert env.get_wrapper_attr("latent") is True
    assert not TimeLimit(Counter(), 3).has_wrapper_attr("latent")


def test_actions_are_scaled_to_the_bounds() -> None:
    inner = Counter(low=-0.5, high=2.5)
    env = LatentActionEnv(inner, Shift(LOW), observation=FIRST)
    env.reset()
    for latent in (0.3, 50.0, -50.0):
        env.reset()
        env.step(np.array([latent]))
        assert inner.actions == [pytest.approx(1 + 1.5 * np.tanh(latent))]
        assert from_box(np.array(inner.actions), inner.action_space) == pytest.approx(np.tanh(latent))


def test_scaling_to_bounds_and_back() -> None:
    box = spaces.Box(np.array([-1, -0.4, 0], np.float32), np.array([1, 0.4, 3], np.float32))
    actions = np.array([[0.1, 1, -1], [-0.7, 0, 0.5]], np.float32)
    scaled = to_box(actions, box)
    assert scaled.dtype == np.float32 and all(box.contains(row) for row in scaled)
    np.testing.assert_allclose(scaled, [[0.1, 0.4, 0], [-0.7, 0, 2.25]], rtol=1e-6)
    np.testing.assert_allclose(from_box(scaled, box), actions, atol=1e-6)


def test_the_embedded_policy_stays_as_it_was() -> None:
    policy = Shift(LOW)
    env = LatentActionEnv(Counter(), policy, observation=FIRST)
    with torch.no_grad():
        policy.weight.fill_(9.0)
    assert policy.weight.requires_grad and not env.policy.weight.requires_grad
    inner = env.unwrapped
    env.reset()
    env.step(np.zeros(1))
    env.step(np.zeros(1))
    assert inner.actions == [0.0, pytest.approx(np.tanh(0.1))]


@pytest.mark.parametrize("hold", [1, 3])
def test_a_flow_leads_wherever_the_actions_do(hold: int) -> None:
    """With the latents f^-1(a; s) the environment goes the way of the actions a."""
    policy = FlowPolicy(2, 2, hidden=(8,)).double()
    env, free = LatentActionEnv(PointMaze(), policy, observation=slice(2, None), hold=hold), PointMaze()
    seen, expected = env.reset(seed=1)[0], free.reset(seed=1)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_allclose(seen, expected, atol=1e-6)
        latent = rng.normal(size=2)
        for _ in range(hold):
            observed = torch.as_tensor(expected[2:], dtype=torch.float64)
            action = policy.actions(torch.as_tensor(latent), observed).detach().numpy()
            expected = free.step(action.astype(np.float32))[0]
        if hold == 1:
            found = policy.latents(torch.as_tensor(action), observed).detach().numpy()
            np.testing.assert_allclose(found, latent, atol=1e-6)
        seen = env.step(latent)[0]


def test_columns() -> None:
    np.testing.assert_array_equal(columns_of(None, 3, 3), [0, 1, 2])
    np.testing.assert_array_equal(columns_of(slice(2, None), 5, 3), [2, 3, 4])
    np.testing.assert_array_equal(columns_of((4, 0), 5, 2), [4, 0])
    with pytest.raises(ValueError, match="not all indices of an observation of 4 numbers"):
        columns_of([1, 4], 4, 2)
    with pytest.raises(ValueError, match="takes observations of 3 numbers, it is to see 2 of 4"):
        columns_of(slice(2), 4, 3)


class Unbounded(Counter):
    def __init__(self) -> None:
        super().__init__(low=-np.inf, high=np.inf)


class Discrete(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)


class Picture(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (4, 4, 3), np.uint8)


class Nameless(Shift):
    signature = property()  # type: ignore[assignment]


class Weightless(Shift):
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(())


def embedded() -> LatentActionEnv:
    return LatentActionEnv(Counter(), Shift(LOW), observation=FIRST)


MISFITS: list[tuple[Any, type[Exception], str]] = [
    (lambda: LatentActionEnv(Counter(), Shift(LOW)), ValueError, "takes observations of 1 numbers, it is to see 2"),
    (lambda: LatentActionEnv(Counter(), Shift(HIGH), hold=0), ValueError, "hold must be at least 1, got 0"),
    (lambda: LatentActionEnv(PointMove(), Shift([[0.0] * 4])), ValueError, "acts with 1 numbers, the space of"),
    (lambda: LatentActionEnv(Counter(), Shift(HIGH), hold=1.5), TypeError, "hold must be a whole number, got 1.5"),
    (lambda: LatentActionEnv(Counter(), Shift(HIGH), observation=3), TypeError, "a slice or indices, got 3"),
    (lambda: LatentActionEnv(Counter(low=1.0), Shift(HIGH)), ValueError, "the actions have no bounds to scale to"),
    (
        lambda: LatentActionEnv(Counter(low=-WIDE, high=WIDE), Shift(HIGH)),
        ValueError,
        "the actions have no bounds to scale to",
    ),
    (lambda: LatentActionEnv(Unbounded(), Shift(HIGH)), ValueError, "the actions have no bounds to scale to"),
    (lambda: LatentActionEnv(Discrete(), Shift(HIGH)), TypeError, "the actions must be a Box of floats"),
    (lambda: LatentActionEnv(Picture(), Shift(HIGH)), TypeError, "observations must be a Box of one row"),
    (lambda: LatentActionEnv(Counter(), Shift(HIGH, False)), ValueError, "was trained for a level above"),
    (
        lambda: LatentActionEnv(embedded(), Shift(HIGH)),
        ValueError,
        "was trained for an environment, not for latents",
    ),
    (
        lambda: LatentActionEnv(embedded(), Shift([[0, 0]] * 2, False)),
        ValueError,
        "the level below has other latents",
    ),
    (lambda: LatentActionEnv(PointMove(), MixturePolicy(4, 2)), ValueError, "it can only be the top level"),
    (
        lambda: LatentActionEnv(PointMove(), "policy"),
        TypeError,
        "a level must be a policy and a torch module, got str",
    ),
    (
        lambda: LatentActionEnv(Counter(), Nameless(HIGH)),
        TypeError,
        "the Nameless is no level: it has no signature",
    ),
    (
        lambda: LatentActionEnv(Counter(), Weightless(HIGH)),
        ValueError,
        "the Weightless has no parameters, by which",
    ),
]


def test_what_does_not_fit_is_refused() -> None:
    for make, error, message in MISFITS:
        with pytest.raises(error, match=re.escape(message)):
            make()
            pytest.fail(f"not refused: {message}")


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (np.zeros(2), "a latent must have shape [1], got [2]"),
        (np.array([np.nan]), "a latent must be finite"),
    ],
    ids=["shape", "nan"],
)
def test_wrong_latents_are_refused(latent: np.ndarray, message: str) -> None:
    env = embedded()
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(np.zeros(1))
    env.reset()
    with pytest.raises(ValueError, match=re.escape(message)):
        env.step(latent)


def test_latents_that_overflow_are_named() -> None:
    policy = Shift([[np.inf]])
    env = LatentActionEnv(Counter(), policy, observation=FIRST)
    env.reset()
    with pytest.raises(ValueError, match="lead to an action that is not finite"):
        env.step(np.zeros(1))  # inf * 0


class Breaks(Counter):
    """Observes something else at one step."""

    def __init__(self, at: int, observation: list[float]) -> None:
        super().__init__()
        self.at, self.other = at, np.array(observation)

    def observe(self) -> np.ndarray:
        return self.other if self.count == self.at else super().observe()


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize(
    ("observation", "error", "message"),
    [
        ([1, 2, 3], ValueError, "the environment's observation has shape [3], not [2]"),
        ([1], ValueError, "the environment's observation has shape [1], not [2]"),
        ([1, np.nan], FloatingPointError, "the environment's observation is [ 1. nan]"),
    ],
    ids=["more", "less", "nan"],
)
def test_every_observation_of_a_hold_is_looked_at(
    at: int, observation: list[float], error: type[Exception], message: str
) -> None:
    env = LatentActionEnv(Breaks(at, observation), Shift(LOW), observation=FIRST, hold=3)
    with pytest.raises(error, match=re.escape(message)):
        env.reset()
        env.step(np.zeros(1))


def test_a_fingerprint_tells_levels_apart() -> None:
    policy, above = FlowPolicy(4, 2), FlowPolicy(4, 2, squash=False)
    env = LatentActionEnv(PointMove(), policy)
    assert env.fingerprint == LatentActionEnv(TimeLimit(PointMove(), 9), policy).fingerprint
    others = [
        LatentActionEnv(PointMove(), FlowPolicy(4, 2)),
        LatentActionEnv(PointMove(), policy, hold=2),
        LatentActionEnv(PointMove(), policy, observation=[1, 0, 2, 3]),
        LatentActionEnv(env, above),
        LatentActionEnv(LatentActionEnv(PointMove(), policy, hold=2), above),
    ]
    assert len({env.fingerprint, *(other.fingerprint for other in others)}) == 6
