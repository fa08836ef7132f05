"""The lane task: its dynamics and losses by hand, its weather, its teacher, and that a clone does not return."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs import LaneEnv, LaneTeacher

NAME = "pyrocontrol/Lane-v0"


def positions(observations: np.ndarray) -> np.ndarray:
    return observations[..., 0] + 4 * observations[..., 1]


def gusts(observations: np.ndarray) -> np.ndarray:
    return 0.25 * observations[..., 2] * observations[..., 3:].argmax(-1)


def drive(
    env: gymnasium.Env, policy: Any, seed: int | None
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]], list[float]]:
    """Observations `[T + 1, 16]`, actions `[T, 1]`, infos after the steps, rewards."""
    observation, _ = env.reset(seed=seed)
    observations, actions, infos, rewards, truncated = [observation], [], [], [], False
    while not truncated:
        action, _ = policy.predict(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        observations.append(observation), actions.append(action), infos.append(info), rewards.append(reward)
    return np.stack(observations), np.stack(actions), infos, rewards


class Idle:
    """Never steers."""

    def predict(self, observation: np.ndarray) -> tuple[np.ndarray, None]:
        return np.zeros(1, np.float32), None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasium_accepts_the_environment(render_mode: str | None) -> None:
    check_env(gymnasium.make(NAME, horizon=50, render_mode=render_mode).unwrapped)


def test_dynamics_reward_and_losses_by_hand() -> None:
    env = LaneEnv(horizon=400)
    observation, info = env.reset(seed=0)
    generator = np.random.default_rng(0)
    lanes = set()
    for _ in range(400):
        before, gust = info["position"], float(gusts(observation))
        assert float(positions(observation)) == pytest.approx(before, abs=1e-6)
        assert observation[1] * 2 == info["lane"] and abs(before - 2 * info["lane"]) <= 1
        action = generator.uniform(-0.6, 0.6, 1).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        assert env.observation_space.contains(observation)
        free = before + 3.5 * float(action[0]) + gust
        assert abs(info["position"]) <= 5
        if abs(free) < 4.5:  # the drift is at most 0.45
            assert abs(info["position"] - free) <= 0.45 + 1e-9
        assert reward == float(abs(info["position"]) <= 1) == float(info["lane"] == 0)
        error = abs(3.5 * float(action[0]) - np.clip(-(before + gust), -3.5, 3.5))
        assert info["imitation_loss"] == float(error > 0.5)
        assert info["squared_loss"] == pytest.approx(min(1, error**2), abs=1e-5)
        lanes.add(info["lane"])
    assert lanes == {-2, -1, 0, 1, 2}


def test_steering_is_clipped() -> None:
    one, other = LaneEnv(), LaneEnv()
    one.reset(seed=1), other.reset(seed=1)
    assert one.step(np.array([2.0]))[4] == other.step(np.array([1.0]))[4]


def test_the_teacher_stays_in_its_lane_and_loses_nothing() -> None:
    env = gymnasium.make(NAME)
    for seed in range(20):
        observations, actions, infos, rewards = drive(env, LaneTeacher(), seed)
        assert len(rewards) == 800 and all(rewards)
        assert np.abs(positions(observations)).max() <= 0.46 and not observations[:, 1].any()
        assert not any(info["imitation_loss"] for info in infos)
        assert max(info["squared_loss"] for info in infos) < 1e-10
        assert all(env.action_space.contains(action) for action in actions)


def test_the_teacher_returns_from_every_lane_and_takes_batches() -> None:
    env = LaneEnv()
    for push in (-1.0, 1.0):
        observation, info = env.reset(seed=2)
        for _ in range(4):
            observation, _, _, _, info = env.step(np.array([push]))
        assert info["lane"] == 2 * np.sign(push)
        for _ in range(3):
            action, state = LaneTeacher().predict(observation, state="kept")
            observation, _, _, _, info = env.step(action)
        assert info["lane"] == 0 and state == "kept"
    batch = np.stack([env.observation_space.sample() for _ in range(5)])
    actions, _ = LaneTeacher().predict(batch)
    assert actions.shape == (5, 1) and actions.dtype == np.float32
    for row, action in zip(batch, actions, strict=True):
        assert np.allclose(LaneTeacher().predict(row)[0], action)
    with pytest.raises(ValueError, match=r"shape \[16\]"):
        LaneTeacher().predict(np.zeros(3))


def test_the_weather_has_the_announced_distribution() -> None:
    env = LaneEnv(horizon=100_000)
    observations, _, infos, _ = drive(env, LaneTeacher(), 0)
    forces, directions = observations[:, 3:].argmax(-1), observations[:, 2]
    assert (observations[:, 3:].sum(-1) == 1).all()
    assert ((directions == 0) == (forces == 0)).all()
    counts = np.bincount(forces, minlength=13)
    expected = len(forces) * 0.6 * 0.4 ** np.arange(13)
    expected[12] /= 0.6
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 5).all()
    assert abs(directions.sum()) < 5 * np.sqrt((forces > 0).sum())
    drift = np.array([info["position"] for info in infos])  # the teacher takes away all the rest
    assert drift.std() == pytest.approx(0.15, rel=0.02) and np.abs(drift).max() < 0.451


def test_the_weather_is_the_seeds_whatever_the_car_does() -> None:
    env = gymnasium.make(NAME, horizon=200)
    teacher, idle, again, other = (
        drive(env, policy, seed)[0]
        for policy, seed in ((LaneTeacher(), 5), (Idle(), 5), (LaneTeacher(), 5), (LaneTeacher(), 6))
    )
    assert np.array_equal(teacher, again) and not np.array_equal(teacher, other)
    assert np.array_equal(teacher[:, 2:], idle[:, 2:]) and not np.array_equal(teacher[:, 0], idle[:, 0])
    following = drive(env, LaneTeacher(), None)[0]  # the next episode has its own weather
    assert not np.array_equal(other[:, 2:], following[:, 2:])


class Clone:
    """A network that learnt from 2000 steps of the teacher."""

    def __init__(self, observations: np.ndarray, actions: np.ndarray) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        optimizer = torch.optim.Adam(self.network.parameters(), 3e-3)
        inputs, targets = torch.from_numpy(observations), torch.from_numpy(actions)
        for _ in range(1000):
            batch = torch.randint(len(inputs), (64,))
            loss = (self.network(inputs[batch]) - targets[batch]).square().mean()
            optimizer.zero_grad(), loss.backward(), optimizer.step()

    def predict(self, observation: np.ndarray) -> tuple[np.ndarray, None]:
        with torch.no_grad():
            return self.network(torch.from_numpy(observation)).numpy(), None


def test_a_clone_stays_where_the_teacher_would_return() -> None:
    env = gymnasium.make(NAME, horizon=100)
    episodes = [drive(env, LaneTeacher(), seed) for seed in range(20)]
    clone = Clone(np.concatenate([e[0][:-1] for e in episodes]), np.concatenate([e[1] for e in episodes]))
    inside, outside = [], []
    for seed in range(100, 105):
        infos = drive(env, clone, seed)[2]
        inside += [info["imitation_loss"] for info in infos]
        env.reset(seed=seed)
        for _ in range(3):
            observation, _, _, _, info = env.step(np.array([0.6], np.float32))  # blown off its lane
        for _ in range(50):
            observation, _, _, _, info = env.step(clone.predict(observation)[0])
            outside.append(info["imitation_loss"])
    assert np.mean(inside) < 0.05 and np.mean(outside) > 0.8


def test_bad_use_is_refused() -> None:
    env = LaneEnv(horizon=1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    for action in (np.zeros(2), 0.0):
        with pytest.raises(ValueError, match=r"shape \[1\]"):
            env.step(action)
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([np.nan]))
    env.step(np.zeros(1))
    with pytest.raises(RuntimeError, match="over"):
        env.step(np.zeros(1))
    with pytest.raises(ValueError, match="horizon"):
        LaneEnv(horizon=0)
    with pytest.raises(ValueError, match="render_mode"):
        LaneEnv(render_mode="human")


def test_ansi_render() -> None:
    env = LaneEnv(render_mode="ansi")
    observation, info = env.reset(seed=0)
    for _ in range(20):
        line = env.render()
        road, wind = line.rstrip("\n")[:41], line[41:].split()
        assert road.index("A") == round(4 * (info["position"] + 5))
        assert [road[column] for column in (0, 8, 16, 24, 32, 40)].count("A") <= 1 and set(road) <= set("|: A")
        force, direction = int(observation[3:].argmax()), observation[2]
        assert wind == ["wind", str(force), *([("<" if direction < 0 else ">") * force] if force else [])]
        observation, _, _, _, info = env.step(np.array([0.15]))


def test_rgb_render() -> None:
    env = LaneEnv(render_mode="rgb_array")
    _, info = env.reset(seed=0)
    shapes = set()
    for _ in range(12):
        picture = env.render()
        shapes.add((picture.shape, picture.dtype))
        car = np.flatnonzero((picture[200] == (214, 94, 30)).all(-1)).mean()
        assert car == pytest.approx(20 + 28 * (info["position"] + 5) - 0.5, abs=1)
        *_, info = env.step(np.array([-0.3]))
    assert len(shapes) == 1 and info["lane"] == -2
