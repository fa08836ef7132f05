"""The point mass: its dynamics by hand, skills that add up exactly, the teacher under noise, the renders."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs.point_skills import (
    COMPOSITES,
    POINT_SKILLS,
    PointSkillsEnv,
    PointTeacher,
    demonstrations,
    parts_of,
    reference,
)

NAME = "pyrocontrol/PointSkills-v0"


def run(env: Any, forces: np.ndarray) -> tuple[np.ndarray, list[float], list[tuple[bool, bool]], dict[str, Any]]:
    """Positions (the first included) in float64, rewards, ends, and the last info."""
    _, info = env.reset(seed=0)
    positions, rewards, ends = [info["position"]], [], []
    for force in forces:
        _, reward, terminated, truncated, info = env.step(force)
        positions.append(info["position"]), rewards.append(reward), ends.append((terminated, truncated))
    return np.stack(positions), rewards, ends, info


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
@pytest.mark.parametrize("skill", ["toy", "circle"])
def test_gymnasium_accepts_the_environment(skill: str, render_mode: str | None) -> None:
    check_env(gymnasium.make(NAME, skill=skill, steps=5, render_mode=render_mode).unwrapped)


def test_dynamics_reward_and_ends_by_hand() -> None:
    env = PointSkillsEnv("push", steps=10)
    observation, info = env.reset()
    assert not observation.any() and info["tracking_error"] == 0
    forces = np.random.default_rng(0).uniform(-0.6, 0.6, (10, 2))
    position, velocity = np.zeros(2), np.zeros(2)
    path = reference("push", 10)[0]
    for time, force in enumerate(forces):
        observation, reward, terminated, truncated, info = env.step(force)
        velocity = math.exp(-0.2) * velocity + (1 - math.exp(-0.2)) / 2 * 40 * force
        position = position + 0.1 * velocity
        assert env.observation_space.contains(observation)
        assert np.allclose(observation, [(time + 1) / 10, *position, *velocity], rtol=1e-6, atol=1e-6)
        assert np.allclose(info["position"], position, rtol=1e-13, atol=0)
        distance = np.hypot(*(position - path[time + 1]))
        assert info["tracking_error"] == pytest.approx(distance, rel=1e-12)
        assert reward == pytest.approx(-(distance**2), rel=1e-12)
        assert not terminated and truncated == (time == 9) and info["cycles"] == info["phase"] == (time + 1) / 10


def test_one_held_force_is_integrated_exactly() -> None:
    """One step of a long duration ends with the velocity of many short ones."""
    ends = []
    for steps in (1, 100):
        env = PointSkillsEnv("push", steps=steps)
        env.reset()
        for _ in range(steps):
            observation, *_ = env.step(np.array([0.05, -0.05]))
        ends.append(observation[3:])
    assert np.allclose(ends[0], ends[1], rtol=1e-6) and ends[0][0] == pytest.approx(1 - math.exp(-2))


@pytest.mark.parametrize("skill", [*POINT_SKILLS, *COMPOSITES])
def test_the_forces_of_a_skill_follow_its_path(skill: str) -> None:
    for steps in (1, 7, 30):
        path, _, forces = reference(skill, steps)
        positions, rewards, ends, info = run(PointSkillsEnv(skill, steps), forces)
        assert np.abs(forces).max() < 1  # nothing is clipped
        assert np.allclose(positions, path, rtol=0, atol=1e-13)
        assert max(map(abs, rewards)) < 1e-25 and info["tracking_error"] < 1e-13 and ends[-1] == (False, True)


def test_the_displacement_of_a_composite_is_the_sum_of_its_parts() -> None:
    env = PointSkillsEnv("toy")
    rng = np.random.default_rng(1)
    for skills in [*COMPOSITES.values(), *combinations(POINT_SKILLS, 2)]:
        forces = [reference(skill)[2] for skill in skills]
        assert np.abs(sum(forces)).max() < 1
        apart = sum(run(env, force)[0] for force in forces)
        together = run(env, sum(forces))[0]
        assert np.allclose(together, apart, rtol=0, atol=1e-14 * 30)
        assert np.allclose(together, reference(skills)[0], rtol=0, atol=1e-13)
    assert np.abs(reference("weave+circle+sway")[2]).max() == pytest.approx(1.162, abs=1e-3)  # of three: clipped
    # Not only of the skills: the environment itself is linear, as long as no force is clipped.
    one, other = rng.uniform(-0.4, 0.4, (2, 30, 2))
    assert np.allclose(run(env, one + other)[0], run(env, one)[0] + run(env, other)[0], rtol=0, atol=1e-13)
    one, other = (np.full((5, 2), force) for force in (0.1, 1.0))
    assert not np.allclose(run(env, one + other)[0], run(env, one)[0] + run(env, other)[0], rtol=0, atol=1e-3)


def test_what_the_skills_look_like() -> None:
    rise, push, weave, circle, *_ = (reference(skill, 120)[0] for skill in POINT_SKILLS)
    assert not rise[:, 0].any() and rise[60, 1] == pytest.approx(0.6, rel=1e-3) and rise[-1, 1] == pytest.approx(0)
    assert not push[:, 1].any() and (np.diff(push[:, 0]) > -1e-12).all() and push[-1, 0] == pytest.approx(1.2)
    assert not weave[:, 1].any() and weave[-1, 0] == pytest.approx(0, abs=1e-9)
    assert weave[:, 0].max() == pytest.approx(0.18, rel=0.05) and weave[:, 0].min() == pytest.approx(-0.18, rel=0.05)
    assert np.allclose(np.hypot(*(circle + [0.2, 0]).T), 0.2, rtol=0.1)
    for skill in (*POINT_SKILLS, *COMPOSITES):
        assert np.allclose(reference(skill)[1][[0, -1]], 0, atol=1e-12)  # from rest to rest


@pytest.mark.parametrize("skill", [*POINT_SKILLS, *COMPOSITES])
def test_the_teacher_holds_noise_down(skill: str) -> None:
    noise = 0.05 * np.random.default_rng(2).standard_normal((50, 30, 2))
    env, teacher = PointSkillsEnv(skill), PointTeacher(skill)
    with_feedback, without = [], []
    for disturbance in noise:
        observation, _ = env.reset()
        for wind in disturbance:
            action, state = teacher.predict(observation, state="kept")
            observation, *_, info = env.step(action + wind)
        with_feedback.append(info["tracking_error"])
        without.append(run(env, reference(skill)[2] + disturbance)[3]["tracking_error"])
        assert state == "kept"
    assert 2 * np.mean(with_feedback) < np.mean(without) and np.mean(with_feedback) < 0.05


def test_the_teacher_takes_batches() -> None:
    teacher = PointTeacher("slalom")
    batch = demonstrations(["slalom"], 1).observations[0].numpy()
    actions, _ = teacher.predict(batch)
    assert actions.shape == (31, 2) and actions.dtype == np.float32
    for row, action in zip(batch, actions, strict=True):
        assert np.array_equal(teacher.predict(row)[0], action)


def test_demonstrations_and_their_tasks() -> None:
    found = demonstrations(["push", "toy"], 3, names=["rise", "push", "toy"])
    assert found.observations.shape == (6, 31, 5) and found.actions.shape == (6, 31, 2)
    assert found.task.tolist() == [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3
    assert found.truncated.all() and (found.lengths == 31).all() and found.rewards is not None
    assert demonstrations(["push", "toy"], 1).task.tolist() == [[1, 0], [0, 1]]
    # Doing nothing is zeros, unless it is named.
    assert demonstrations(["push", "rest", "toy"], 1).task.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert demonstrations(["rest+push", "rest"], 1, names=["rest", "push"]).task.tolist() == [[1, 1], [1, 0]]
    assert demonstrations(["toy+toy"], 1, names=["toy", "rise"]).task.tolist() == [[2, 0]]
    found = demonstrations(["toy", "rest", "weave+rise"], 1, names=["rise", "push", "weave"])
    assert found.task.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert found.observations[1, :, 1:3].abs().max() < 0.1
    assert demonstrations(["rise"], 1, steps=7).observations.shape == (1, 8, 5)
    # What was done is what is written down: the actions lead from one observation to the next.
    env = PointSkillsEnv("push")
    env.reset()
    for action, after in zip(found.actions[0, :-1].numpy(), found.observations[0, 1:].numpy(), strict=True):
        assert np.array_equal(env.step(action)[0], after)
    quiet = demonstrations(["push"], 1, noise=0).observations[0, :, 1:3].numpy()
    assert np.allclose(quiet, reference("push")[0], atol=1e-5)


def test_demonstrations_have_streams_of_their_own() -> None:
    both, one = demonstrations(["rise", "push"], 3, seed=4), demonstrations(["push"], 2, seed=4)
    assert np.array_equal(both.actions[3:5], one.actions)
    other = demonstrations(["push"], 2, seed=5)
    noise = [a.actions[:, :30].numpy() - reference("push")[2] for a in (one, other)]
    drawn = np.concatenate([*noise, both.actions[:3, :30].numpy() - reference("rise")[2]])[:, 0].ravel()
    assert len(set(drawn.tolist())) == len(drawn)


def test_bad_use_is_refused() -> None:
    known = "rise, push, weave, circle, bob, sway, climb, toy, slalom, rest"
    for use in (
        lambda: PointSkillsEnv("flip"),
        lambda: PointTeacher(("rise", "flip")),
        lambda: demonstrations(["rise", "flip"]),
        lambda: parts_of("flip"),
    ):
        with pytest.raises(ValueError, match=f"there is no skill 'flip'; there are {known}"):
            use()
    for nobody in ((), "", "rise+", "+rise"):
        with pytest.raises(ValueError, match="at least one skill is needed, with a name"):
            parts_of(nobody)
    for use in (
        lambda: PointSkillsEnv(steps=0),
        lambda: PointTeacher("rise", 0),
        lambda: demonstrations(["rise"], steps=0),
    ):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            use()
    with pytest.raises(ValueError, match="per_skill must be at least 1, got 0"):
        demonstrations(["rise"], 0)
    for noise in (-0.1, math.nan):
        with pytest.raises(ValueError, match="noise must be finite and not negative"):
            demonstrations(["rise"], noise=noise)
    for skills in ("rise", []):
        with pytest.raises(ValueError, match="skills must be several names"):
            demonstrations(skills)
    with pytest.raises(ValueError, match="'rise' is not among the names push"):
        demonstrations(["rise"], names=["push"])
    with pytest.raises(ValueError, match="names must be given each once, got rise, rise"):
        demonstrations(["rise"], names=["rise", "rise"])
    with pytest.raises(ValueError, match="names must be several names, at least one, got 'rise'"):
        demonstrations(["rise"], names="rise")
    with pytest.raises(ValueError, match="seed must be at least 0, not -1"):
        demonstrations(["rise"], seed=-1)
    with pytest.raises(ValueError, match="render_mode"):
        PointSkillsEnv(render_mode="human")
    with pytest.raises(ValueError, match=r"shape \[5\]"):
        PointTeacher("rise").predict(np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        PointTeacher("rise").predict(np.full(5, np.nan))


def test_bad_actions_are_refused() -> None:
    env = PointSkillsEnv(steps=1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([0.0, np.nan]))
    env.step(np.zeros(2))
    with pytest.raises(RuntimeError, match="over"):
        env.step(np.zeros(2))


def test_the_edge_of_the_arena_ends_an_episode() -> None:
    env = PointSkillsEnv("rise")
    observation, _ = env.reset()
    terminated = False
    while not terminated:
        observation, _, terminated, truncated, info = env.step(np.array([5.0, 0.0]))
        assert env.observation_space.contains(observation) and not truncated
    assert info["position"].tolist() == [2, 0] and info["phase"] < 0.5
    with pytest.raises(RuntimeError, match="over"):
        env.step(np.zeros(2))


def test_renders() -> None:
    env = PointSkillsEnv("rise", render_mode="ansi")
    with pytest.raises(RuntimeError, match="reset"):
        env.render()
    env.reset()
    lines = env.render().splitlines()
    assert len(lines) == 23 and {len(line) for line in lines} == {43} and lines[11][21] == "@"
    assert [line[21] for line in lines[8:11]] == ["."] * 3
    env = PointSkillsEnv("toy", render_mode="rgb_array")
    env.reset()
    pictures, positions = [env.render()], [np.zeros(2)]
    for force in reference("toy")[2]:
        *_, info = env.step(force)
        pictures.append(env.render()), positions.append(info["position"])
    assert all(picture.shape == pictures[0].shape and picture.dtype == np.uint8 for picture in pictures)
    for picture, position in zip(pictures, positions, strict=True):
        row, column = np.argwhere((picture == (214, 94, 30)).all(-1)).mean(0)
        assert column == pytest.approx(10 + 319 * (position[0] / 4 + 0.5), abs=1)
        assert row == pytest.approx(10 + 319 * (0.5 - position[1] / 4), abs=1)
    assert PointSkillsEnv().render() is None
