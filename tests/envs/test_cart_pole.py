"""Teachers by classical control: the CartPole regulator, its linearisation against the simulator, its gain."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from pyrocontrol.envs import CartPoleTeacher
from pyrocontrol.envs.cart_pole import _linearised, _regulator


def cart_pole(integrator: str = "euler", **constants: float) -> Any:
    env = gymnasium.make("CartPole-v1").unwrapped
    env.kinematics_integrator = integrator
    for name, value in constants.items():
        setattr(env, name, value)
    return env


@pytest.mark.parametrize("seed", range(2))
def test_the_pole_stays_up_for_a_whole_episode(seed: int) -> None:
    env = gymnasium.make("CartPole-v1")
    teacher = CartPoleTeacher()
    observation, _ = env.reset(seed=seed)
    steps, done = 0, False
    while not done:
        action, state = teacher.predict(observation, state="kept")
        assert env.action_space.contains(action) and state == "kept"
        observation, _, terminated, truncated, _ = env.step(action)
        steps, done = steps + 1, terminated or truncated
    assert steps == 500 and truncated and not terminated
    assert abs(observation[0]) < 0.2


@pytest.mark.parametrize("integrator", ["euler", "semi-implicit"])
def test_the_linearisation_is_that_of_the_simulator(integrator: str) -> None:
    env = cart_pole(integrator, gravity=7.0, length=0.8)
    transition, control = _linearised(env)
    generator = np.random.default_rng(0)
    for _ in range(5):
        state = 1e-4 * generator.standard_normal(4)
        following = []
        for action in (0, 1):
            env.reset(seed=0)
            env.state = state
            env.step(action)
            following.append(env.state)
        # The force is +-10 N: the mean of the two steps is A s, half their difference 10 B.
        assert np.allclose((following[0] + following[1]) / 2, transition @ state, rtol=0, atol=1e-9)
        assert np.allclose((following[1] - following[0]) / 2, 10 * control, rtol=0, atol=1e-7)


def test_the_gain_is_optimal_for_the_linear_task() -> None:
    transition, control = _linearised(cart_pole())
    cost, effort = np.diag([1.0, 0.1, 10.0, 0.1]), 1e-3
    gain = _regulator(transition, control, cost, effort)
    assert np.abs(np.linalg.eigvals(transition - np.outer(control, gain))).max() < 1

    def total(trial: np.ndarray) -> float:
        costs = []
        for state in np.eye(4):
            value = 0.0
            for _ in range(3000):
                force = -trial @ state
                value += state @ cost @ state + effort * force**2
                state = transition @ state + control * force
            costs.append(value)
        return sum(costs)

    best = total(gain)
    for index in range(4):
        for factor in (0.98, 1.02):
            trial = gain.copy()
            trial[index] *= factor
            assert total(trial) > best


def test_the_environments_own_constants_count() -> None:
    heavy = cart_pole(gravity=15.0)
    assert not np.allclose(CartPoleTeacher(heavy).gain, CartPoleTeacher().gain)
    assert np.array_equal(CartPoleTeacher(gymnasium.make("CartPole-v1")).gain, CartPoleTeacher().gain)
    assert abs(CartPoleTeacher(position_weight=10.0).gain[0]) > abs(CartPoleTeacher().gain[0])


def test_batches() -> None:
    teacher = CartPoleTeacher()
    observations = np.random.default_rng(0).uniform(-0.1, 0.1, (20, 4)).astype(np.float32)
    actions, _ = teacher.predict(observations)
    assert actions.shape == (20,) and actions.dtype == np.int64 and set(actions) == {0, 1}
    assert actions.tolist() == [teacher.predict(row)[0] for row in observations]
    assert teacher.predict(np.array([0, 0, 0.05, 0]))[0] == 1  # push towards the side to which the pole leans


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[4\]"):
        CartPoleTeacher().predict(np.zeros(3))
    with pytest.raises(TypeError, match="CartPole"):
        CartPoleTeacher(gymnasium.make("MountainCar-v0"))
    with pytest.raises(ValueError, match="position_weight"):
        CartPoleTeacher(position_weight=0.0)
    with pytest.raises(RuntimeError, match="no solution"):
        _regulator(2 * np.eye(4), np.zeros(4), np.eye(4), 1.0)
