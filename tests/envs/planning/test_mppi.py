"""The planner: it leaves the simulator as it is, foresees what `step` does, and does well on Reacher."""

from __future__ import annotations

import copy
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from pyrocontrol.envs import MPPITeacher
from pyrocontrol.envs.planning.mujoco_rewards import Trajectories, body_position, reward_of
from pyrocontrol.envs.planning.mujoco_rollouts import Rollouts, Steps

mujoco = pytest.importorskip("mujoco")

KNOWN = ["Reacher-v5", "Pusher-v5", "HalfCheetah-v5", "Swimmer-v5", "Hopper-v5", "Walker2d-v5"]


def make(name: str, steps: int = 0, seed: int = 0) -> gymnasium.Env:
    """An environment some random steps into an episode."""
    env = gymnasium.make(name)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env


def rollouts(env: gymnasium.Env, samples: int, horizon: int, **options: Any) -> Rollouts:
    inner = env.unwrapped
    return Rollouts(inner, reward_of(inner), samples=samples, horizon=horizon, **options)


def everything(env: gymnasium.Env) -> dict[str, Any]:
    """All that could be changed: the simulator's data, the random numbers, the counters."""
    inner: Any = env.unwrapped
    size = mujoco.mj_stateSize(inner.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(size)
    mujoco.mj_getState(inner.model, inner.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    # What the present solver does not use is never written: those arrays hold whatever was in memory.
    names = [name for name in dir(inner.data) if not name.startswith("_") and "island" not in name and "AR" not in name]
    values = {name: getattr(inner.data, name) for name in names}
    return {
        "integration": state.tobytes(),
        "data": {name: value.tobytes() for name, value in values.items() if isinstance(value, np.ndarray)},
        "timestep": inner.model.opt.timestep,
        "random": str(inner.np_random.bit_generator.state),
        "elapsed": env.get_wrapper_attr("_elapsed_steps"),
        "observation": inner._get_obs().tobytes(),
    }


# What it leaves behind


@pytest.mark.parametrize("name", [*KNOWN, "InvertedPendulum-v5", "Ant-v5"])
def test_planning_leaves_the_environment_bit_for_bit_as_it_was(name: str) -> None:
    planned, untouched = make(name, 7), make(name, 7)
    teacher = MPPITeacher(planned, horizon=4, samples=5)
    before = everything(planned)
    assert before["data"].keys() >= {"qpos", "qvel", "qacc_warmstart", "xpos", "ctrl"}
    state = None
    for _ in range(3):
        _, state = teacher.predict(None, state)
    assert everything(planned) == before
    for _ in range(5):
        action = untouched.action_space.sample()
        for one, other in zip(planned.step(action)[:4], untouched.step(action)[:4], strict=True):
            assert np.array_equal(one, other)
    assert everything(planned)["integration"] == everything(untouched)["integration"]


# What it foresees


@pytest.mark.parametrize("name", KNOWN)
def test_rollouts_and_rewards_are_those_of_step(name: str) -> None:
    env = make(name, 7)
    simulation = rollouts(env, 3, 12)
    generator = np.random.default_rng(0)
    size = 0.3 if name == "Reacher-v5" else 1.0  # stronger torques slam the elbow into its stop, where bodies lag
    sequences = size * generator.uniform(*simulation.bounds, (3, 12, env.action_space.shape[0]))
    sequences = sequences.astype(np.float32).astype(np.float64)
    found = Trajectories(*(part.copy() for part in simulation.trajectories(sequences)))
    rewards, ended = reward_of(env.unwrapped)(found)
    returns, survives = simulation.returns(sequences)
    for sample in range(3):
        twin = make(name, 7)
        total = 0.0
        for step in range(12):
            _, reward, terminated, _, _ = twin.step(sequences[sample, step].astype(np.float32))
            assert np.array_equal(twin.unwrapped.data.qpos, found.positions[sample, step + 1])
            assert np.array_equal(twin.unwrapped.data.qvel, found.velocities[sample, step + 1])
            assert rewards[sample, step] == pytest.approx(reward, abs=2e-6)
            assert ended[sample, step] == terminated
            total += reward
            if terminated:
                break
        assert returns[sample] == pytest.approx(total, abs=2e-5)
        assert survives[sample] == (not terminated)


def test_episodes_that_end_are_among_those_compared() -> None:
    env = make("Hopper-v5", 12)
    simulation = rollouts(env, 4, 60)
    sequences = np.random.default_rng(1).uniform(-1, 1, (4, 60, 3)).astype(np.float32).astype(np.float64)
    _, ended = reward_of(env.unwrapped)(simulation.trajectories(sequences))
    assert ended.any(1).all() and not ended[:, 0].any()
    returns, survives = simulation.returns(sequences)
    assert not survives.any()
    stepped, survived = Steps(env.unwrapped).returns(sequences)
    assert np.allclose(returns, stepped, atol=1e-4) and not survived.any()
    lost = 60 - 1 - ended.argmax(1)  # steps after the one that ends the episode
    assert np.allclose(rollouts(env, 4, 60, end_cost=2.0).returns(sequences)[0], returns - 2 * lost)


def test_constants_of_the_environment_count() -> None:
    env = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=3.0, forward_reward_weight=2.0)
    env.reset(seed=0)
    found, _ = rollouts(env, 2, 2).returns(np.full((2, 2, 6), 0.5))
    total = sum(env.step(np.full(6, 0.5, np.float32))[1] for _ in range(2))
    assert found[0] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "body"), [("Reacher-v5", "fingertip"), ("Pusher-v5", "tips_arm"), ("Pusher-v5", "goal")]
)
def test_forward_kinematics_are_the_simulators(name: str, body: str) -> None:
    env: Any = make(name).unwrapped
    positions = np.random.default_rng(0).uniform(-1, 1, (4, 2, env.model.nq))
    found = body_position(env.model, positions, body)
    for index in np.ndindex(4, 2):
        env.data.qpos[:] = positions[index]
        mujoco.mj_kinematics(env.model, env.data)
        assert np.allclose(found[index], env.data.body(body).xpos, atol=1e-12)


def test_free_joints_are_refused() -> None:
    env: Any = make("Ant-v5").unwrapped
    with pytest.raises(ValueError, match="no hinge and no slide"):
        body_position(env.model, np.zeros((1, env.model.nq)), "torso")


def test_rewards_of_derived_classes_are_not_assumed() -> None:
    from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

    class Lazy(ReacherEnv):
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, -float(np.square(action).sum()), terminated, truncated, info

    env = Lazy()
    env.reset(seed=0)
    assert reward_of(env) is None and reward_of(ReacherEnv()) is not None
    simulation = MPPITeacher(env)._simulation
    assert isinstance(simulation, Steps)
    assert simulation.returns(np.full((2, 3, 2), 0.5))[0].tolist() == pytest.approx([-1.5, -1.5])


def test_a_private_copy_follows_what_the_environment_keeps_beside_its_simulator() -> None:
    from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

    class Counted(InvertedPendulumEnv):
        count = 0

        def step(self, action: Any) -> Any:
            self.count += 1
            observation, _, _, truncated, info = super().step(action)
            return observation, float(self.count), False, truncated, info

    env = Counted()
    env.reset(seed=0)
    simulation = Steps(env)
    for _ in range(4):
        env.step(np.zeros(1, np.float32))
    assert simulation.returns(np.zeros((2, 3, 1)))[0].tolist() == [5 + 6 + 7] * 2 and env.count == 4


def test_a_reward_of_ones_own() -> None:
    def speed(t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
        assert t.positions.shape == (3, 5, 4) and t.controls.shape == (3, 4, 2)
        rewards = t.velocities[:, 1:, 0]
        return rewards, np.zeros(rewards.shape, bool)

    env = make("Reacher-v5")
    action, _ = MPPITeacher(env, horizon=4, samples=3, noise=0.5, iterations=20, reward=speed).predict(None)
    assert action[0] > 0.5
    hopper = make("Hopper-v5")
    assert MPPITeacher(hopper).settings.guidance and not MPPITeacher(hopper, reward=speed).settings.guidance


# Servos and larger time steps


def test_larger_time_steps_stay_close() -> None:
    env = make("Hopper-v5", 3)
    sequences = np.random.default_rng(0).uniform(-0.3, 0.3, (4, 10, 3))
    exact = rollouts(env, 4, 10).trajectories(sequences)
    coarse = rollouts(env, 4, 10, substeps=2).trajectories(sequences)
    assert exact.positions.shape == coarse.positions.shape
    assert not np.array_equal(exact.positions, coarse.positions)
    assert np.allclose(exact.positions, coarse.positions, atol=0.02)


def test_servos_hold_a_pose_and_their_controls_are_what_moves_the_robot() -> None:
    env = make("Hopper-v5")
    inner: Any = env.unwrapped
    simulation = rollouts(env, 2, 20, servo=0.25)
    pose = simulation.rest()
    assert np.array_equal(pose, np.clip(inner.data.qpos[3:], *simulation.bounds))
    bent = np.clip(pose + np.array([-0.3, -0.5, 0.2]), *simulation.bounds)
    trajectories = simulation.trajectories(np.stack([np.tile(pose, (20, 1)), np.tile(bent, (20, 1))]))
    held, reached = trajectories.positions[:, -1, 3:]
    assert np.allclose(held, pose, atol=0.1) and np.abs(reached - bent).max() < np.abs(pose - bent).max() / 2
    # The same joint torques in the environment, renewed each step instead of each time step.
    for step in range(3):
        control = simulation.control(bent)
        assert np.allclose(control, trajectories.controls[1, step], atol=0.15) and np.abs(control).max() > 0.3
        env.step(control.astype(np.float32))
    assert np.allclose(inner.data.qpos, trajectories.positions[1, 3], atol=0.02)
    assert not inner.model.actuator_biasprm.any()  # its own motors are as they were


def test_hopper_hops_on() -> None:
    env = gymnasium.make("Hopper-v5")
    total, actions = run(env, MPPITeacher(env), 0, steps=60)
    assert len(actions) == 60 and total > 70
    assert env.unwrapped.is_healthy


# How it plans


def run(env: gymnasium.Env, teacher: MPPITeacher, seed: int, steps: int | None = None) -> tuple[float, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    state, total, actions, done = None, 0.0, [], False
    while not done and len(actions) != steps:
        action, state = teacher.predict(observation, state, np.array(not actions))
        assert env.action_space.contains(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + reward, terminated or truncated
        actions.append(action)
    return total, np.stack(actions)


def test_reacher_is_solved() -> None:
    env = gymnasium.make("Reacher-v5")
    teacher = MPPITeacher(env)
    assert np.mean([run(env, teacher, seed)[0] for seed in range(4)]) > -5.0  # -43 without any torque


def test_the_goal_task_is_solved_too() -> None:
    env = gymnasium.make("pyrocontrol/ReacherGoal-v0")
    teacher = MPPITeacher(env)
    observation, _ = env.reset(seed=0, options={"goal": [0.1, 0.1]})
    state, info = None, {}
    for _ in range(50):
        action, state = teacher.predict(observation, state)
        observation, _, _, _, info = env.step(action)
    assert info["is_success"]


def test_plans_are_reproducible_and_threads_change_nothing() -> None:
    env = gymnasium.make("Reacher-v5")
    first, again, threaded, other = (
        run(env, MPPITeacher(env, samples=8, seed=seed, threads=threads), 3, steps=5)[1]
        for seed, threads in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert np.array_equal(first, again) and np.array_equal(first, threaded) and not np.array_equal(first, other)


def test_the_plan_is_the_state_and_is_forgotten_where_an_episode_starts() -> None:
    env = make("Reacher-v5")
    teacher = MPPITeacher(env)
    first, state = teacher.predict(None)
    assert state[0].shape == (teacher.settings.horizon, 2) and state[1] == 1
    warm, _ = teacher.predict(None, state)
    assert not np.array_equal(first, warm)
    assert np.array_equal(teacher.predict(None, state)[0], warm)  # asking changes nothing
    assert np.array_equal(teacher.predict(None, state, np.array([True]))[0], first)
    assert np.array_equal(teacher.predict(None, copy.deepcopy(state), False)[0], warm)


def test_more_iterations_find_better_plans() -> None:
    env = make("Reacher-v5", seed=1)
    found = []
    for iterations in (1, 10):
        teacher = MPPITeacher(env, iterations=iterations)
        action, (plan, *_) = teacher.predict(None)
        sequence = np.concatenate([action[None], plan[:-1]])
        found.append(teacher._simulation.returns(np.tile(sequence, (teacher.settings.samples, 1, 1)))[0][0])
    assert found[0] < found[1]


def test_smoothing_averages_each_control_with_its_neighbours() -> None:
    env = make("Reacher-v5")
    rough, (later, *_) = MPPITeacher(env).predict(None)
    action, (plan, age, last) = MPPITeacher(env, smoothing=0.4).predict(None)
    assert action == pytest.approx(0.6 * rough + 0.2 * (0 + later[0]), abs=1e-6)  # nothing was done before it
    assert plan[:-2] == pytest.approx(
        0.6 * later[:-2] + 0.2 * (np.concatenate([rough[None], later[:-3]]) + later[1:-1])
    )
    assert last == pytest.approx(action[None]) and age == 1


# Errors


def test_an_observation_of_another_state_is_refused() -> None:
    env = gymnasium.make("Reacher-v5")
    teacher = MPPITeacher(env)
    observation, _ = env.reset(seed=0)
    teacher.predict(observation)
    following = env.step(env.action_space.sample())[0]
    teacher.predict(following)
    for wrong in (observation, np.zeros(3)):
        with pytest.raises(ValueError, match="not that of the state"):
            teacher.predict(wrong)
    scaled = gymnasium.wrappers.TransformObservation(env, lambda o: 2 * o, env.observation_space)
    MPPITeacher(scaled).predict(2 * following)


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"horizon": 0}, "horizon"),
    ({"samples": 0}, "samples"),
    ({"iterations": 0}, "iterations"),
    ({"threads": 0}, "threads"),
    ({"temperature": 0.0}, "temperature"),
    ({"noise": 0.0}, "noise"),
    ({"noise": (0.1, 0.2, 0.3)}, "noise"),
    ({"correlation": 1.0}, "correlation"),
    ({"smoothing": 1.0}, "smoothing"),
]


def test_numbers_without_sense_are_refused() -> None:
    for arguments, message in SENSELESS:
        with pytest.raises(ValueError, match=message):
            MPPITeacher(make("Reacher-v5"), **arguments)
            pytest.fail(f"not refused: {message}")


def test_other_environments_are_refused() -> None:
    with pytest.raises(TypeError, match="MuJoCo environment"):
        MPPITeacher(gymnasium.make("CartPole-v1"))


def test_without_mujoco_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("Reacher-v5")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install 'mujoco<4'"):
        MPPITeacher(env)
