"""Tasks of the DeepMind Control Suite: Gymnasium's contract, the suite's own numbers, pictures, and demonstrations."""

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

from painter import Painter
from pyrocontrol.envs import DMControl, MPPITeacher
from pyrocontrol.envs.dm_control import FRAMES, TASKS
from pyrocontrol.envs.planning.mujoco_rollouts import Rollouts

pytest.importorskip("mujoco")
suite = pytest.importorskip("dm_control.suite")


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mujoco.Renderer", Painter)


@pytest.mark.filterwarnings("ignore:.*Box observation space")
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_accepts_it(task: str, painter: None) -> None:
    env = gymnasium.make(f"pyrocontrol/{task.title().replace('-', '')}-v0", render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.reset(seed=0)[0].shape == env.observation_space.shape and env.render().shape == (256, 256, 3)
    check_env(DMControl(task, "pixels"), skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_numbers_are_the_suites(task: str) -> None:
    env = DMControl(task)
    env.reset(seed=0)
    theirs = suite.load(*TASKS[task].name)
    theirs.reset()
    with theirs.physics.reset_context():
        theirs.physics.data.qpos[:], theirs.physics.data.qvel[:] = env.data.qpos, env.data.qvel
        theirs.physics.data.qacc_warmstart[:] = env.data.qacc_warmstart
        theirs.physics.model.geom_pos[:] = env.model.geom_pos  # where the target is
    generator = np.random.default_rng(0)
    for _ in range(20):
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        steps = [theirs.step(action) for _ in range(2)]
        seen = np.concatenate([np.ravel(part) for part in steps[1].observation.values()])
        np.testing.assert_allclose(observation, seen, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(steps[0].reward + steps[1].reward, abs=1e-6) and not (terminated or truncated)


@pytest.mark.parametrize("task", TASKS)
def test_simulated_states_and_their_rewards_are_those_of_step(task: str) -> None:
    env = DMControl(task)
    env.reset(seed=1)
    generator = np.random.default_rng(0)
    for _ in range(60):
        env.step(0.3 * generator.uniform(-1, 1, env.action_space.shape))
    sequences = generator.uniform(-1, 1, (3, 12, *env.action_space.shape)).astype(np.float32).astype(np.float64)
    if task == "reacher-easy":  # from where the arm is, the target is reached and left
        env.model.geom("target").pos[:2] = env.data.geom("finger").xpos[:2] + [0.03, 0.0]
        sequences *= 8
    simulation = Rollouts(env, env.rewards, samples=3, horizon=12)
    found = simulation.trajectories(np.clip(sequences, -1, 1))
    rewards, ended = env.rewards(found)
    totals = []
    for sample in range(3):
        twin = copy.deepcopy(env)
        for step in range(12):
            _, reward, *_ = twin.step(sequences[sample, step])
            assert np.array_equal(twin.data.qpos, found.positions[sample, 2 * step + 2])
            assert rewards[sample, 2 * step : 2 * step + 2].sum() == pytest.approx(reward, abs=1e-12)
            totals.append(reward)
    assert not ended.any() and np.ptp(totals) > 1e-4


def test_an_episode_is_truncated_after_a_thousand_frames_and_is_what_seed_and_actions_make_it() -> None:
    env = DMControl("cartpole-swingup", action_repeat=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (FRAMES // 3 + 1, 1))
    runs = []
    for seed in (3, 3, 4):
        first, _ = env.reset(seed=seed)
        steps = [env.step(action) for action in actions]
        assert [step[3] for step in steps] == [False] * (FRAMES // 3) + [True] and not any(step[2] for step in steps)
        with pytest.raises(RuntimeError, match="reset"):
            env.step(actions[0])
        runs.append(np.stack([first, *(step[0] for step in steps)]))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("task", TASKS)
def test_a_copy_goes_on_alike(task: str, copied: Any) -> None:
    env = DMControl(task)
    env.reset(seed=0)
    action = np.full(env.action_space.shape, 0.5, np.float32)
    for _ in range(30):
        env.step(action)
    twin = copied(env)
    for _ in range(5):
        assert np.array_equal(env.step(-action)[0], twin.step(-action)[0])
    assert np.array_equal(env.reset()[0], twin.reset()[0])


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        (("walker-fly",), "task must be one of 'cheetah-run'"),
        (("walker-walk", "states"), "'vectors' or 'pixels'"),
        (("walker-walk", "vectors", 0), "action_repeat"),
    ):
        with pytest.raises(ValueError, match=message):
            DMControl(*arguments)
    env = DMControl("walker-walk")
    env.reset(seed=0)
    for action in (np.zeros(3), np.full(6, np.nan)):
        with pytest.raises(ValueError, match="an action must"):
            env.step(action)

    class Missing:
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("no OpenGL here")

    monkeypatch.setattr("mujoco.Renderer", Missing)
    with pytest.raises(DependencyNotInstalled, match="install libegl1 and libgl1-mesa-dri and set MUJOCO_GL=egl"):
        DMControl("walker-walk", "pixels")
    monkeypatch.setitem(__import__("sys").modules, "shimmy", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'pyrocontrol-ppl\[dm-control\]'"):
        DMControl("walker-walk")


def test_renderers_are_freed_in_their_own_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[Any] = [None]
    freed = []

    class Contextual(Painter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._gl_context = type("Context", (), {"make_current": lambda context: current.__setitem__(0, context)})()
            self._gl_context.make_current()

        def close(self) -> None:
            freed.append(current[0] is self._gl_context)

    monkeypatch.setattr("mujoco.Renderer", Contextual)
    first, second = DMControl("reacher-easy", "pixels"), DMControl("reacher-easy", "pixels")
    first.close()
    del second
    assert freed == [True, True]


def test_the_planner_swings_up() -> None:
    env = DMControl("cartpole-swingup")
    observation, _ = env.reset(seed=0)
    expert, state, total = MPPITeacher(env, samples=32), None, 0.0
    for _ in range(80):
        action, state = expert.predict(observation, state)
        observation, reward, *_ = env.step(action)
        total += reward
    assert reward > 1.7 and total > 30  # of 2 at most a step
