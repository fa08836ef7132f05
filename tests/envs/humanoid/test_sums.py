"""Clips that are added, joints without physics, and rotation vectors: exact sums, the same states both ways."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("pybullet")

from pyrocontrol.envs.humanoid import joints
from pyrocontrol.envs.humanoid.demonstrations import demonstrations
from pyrocontrol.envs.humanoid.experts import AssistedPlayback, parts_of
from pyrocontrol.envs.humanoid.motion import STAND, HumanoidMotion, joint_vectors, pose_of
from pyrocontrol.envs.humanoid.tangent import RotationVectors, as_quaternions, in_rotation_vectors
from pyrocontrol.inference.imitation.skill_measures import play_cycle


def vectors(name: str) -> np.ndarray:
    return joints.clip_vectors(HumanoidMotion.load(name))


def test_the_joints_of_a_sum_are_the_sum_of_the_joints() -> None:
    assert np.abs(vectors(STAND)).max() == 0
    alone = vectors("kick") + vectors("spin")
    np.testing.assert_allclose(vectors("kick+spin"), alone, atol=1e-9)
    np.testing.assert_allclose(vectors("jump+stand"), vectors("jump"), atol=1e-9)
    assert np.abs(alone).max() > np.pi  # beyond half a turn, where a vector of the shorter way would jump


def test_a_sum_may_begin_beyond_half_a_turn() -> None:
    alone = vectors("dance_a") + vectors("kick")
    assert np.linalg.norm(alone[0, :24].reshape(8, 3), axis=-1).max() > np.pi
    both = HumanoidMotion.load("dance_a+kick")
    np.testing.assert_allclose(both.vectors(), alone, atol=1e-9)
    np.testing.assert_allclose(both.vectors(60)[45:], np.repeat(alone[45:], 16, 0), atol=1e-9)  # it stays there
    more = HumanoidMotion.summed([both, HumanoidMotion.load("spin")])
    np.testing.assert_allclose(more.vectors(), alone + vectors("spin"), atol=1e-9)
    env = gymnasium.make("pyrocontrol/HumanoidJoints-v0", motion=both)
    assert play_cycle(env, joints.JointsTeacher(both)).tracking_error < 1e-6


def test_the_root_of_a_sum_goes_where_both_roots_go() -> None:
    one, other, both = (HumanoidMotion.load(name) for name in ("jump", "kick", "jump+kick"))
    paths = [clip.at(0.7).position - clip.at(0.0).position for clip in (one, other)]
    np.testing.assert_allclose(both.at(0.7).position - both.at(0.0).position, sum(paths), atol=1e-3)
    assert both.seconds == pytest.approx(1.5) and not both.loops


def test_vectors_and_poses_are_inverse() -> None:
    motion = HumanoidMotion.load("spinkick")
    poses = [motion.at(tick / 30) for tick in range(10)]
    again = joint_vectors([poses[0]._replace(joints=pose_of(row)) for row in joint_vectors(poses)])
    np.testing.assert_allclose(again, joint_vectors(poses), atol=1e-9)


def test_without_physics_the_teacher_is_exact_and_its_demonstrations_are_its_own() -> None:
    env = gymnasium.make("pyrocontrol/HumanoidJoints-v0", motion="kick+spin")
    cycle = play_cycle(env, joints.JointsTeacher("kick+spin"))
    assert cycle.fraction == 1 and cycle.tracking_error < 1e-6
    found = joints.demonstrations(["kick+spin", STAND], 2, names=["spin", "kick"])
    assert found.task.tolist() == [[1, 1]] * 2 + [[0, 0]] * 2
    # The changes that were taken lead from each state to the next.
    seen = found.observations[..., 1:]
    torch.testing.assert_close(seen[:, :-1] + found.actions[:, :-1], seen[:, 1:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(seen[0].mean(0), vectors("kick+spin").mean(0), atol=0.05)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    with pytest.raises(ValueError, match="28 finite numbers"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="'kick' is not among the names spin"):
        joints.demonstrations(["kick"], names=["spin"])
    assert joints.demonstrations(["kick", STAND], 1).task.tolist() == [[1], [0]]
    assert joints.demonstrations([STAND], 1, names=[STAND]).task.tolist() == [[1]]


def test_what_joints_without_physics_do_not_take() -> None:
    for name in ("init", "max_seconds", "assisted", "fall_links"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            joints.JointsEnv("kick", **{name: None})  # type: ignore[arg-type]
    env = joints.JointsEnv("kick")
    for options in ({"phase": 0.5}, {"speed": 2.0}):
        with pytest.raises(ValueError, match=f"unknown options {next(iter(options))}; known are none"):
            env.reset(options=options)
    teacher = joints.JointsTeacher("kick")
    for seen in (np.zeros(28), np.zeros((2, 30)), np.zeros((1, 2, 29))):
        with pytest.raises(ValueError, match=r"shape \[29\] or \[B, 29\]"):
            teacher.predict(seen)
        with pytest.raises(ValueError, match=r"shape \[(T|29)"):
            env.full(seen)
    with pytest.raises(ValueError, match="NaN or infinite"):
        teacher.predict(np.full(29, np.nan))
    for given, match in (
        ({"skills": "kick"}, "skills must be several names"),
        ({"skills": ["kick"], "names": "kick"}, "names must be several names"),
        ({"skills": ["kick"], "names": ["kick", "kick"]}, "names must be given each once"),
        ({"skills": ["kick"], "seed": -1}, "seed must be at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=match):
            joints.demonstrations(**given)  # type: ignore[arg-type]


def test_rotation_vectors_stand_for_the_same_states_and_targets() -> None:
    shown = demonstrations(("kick+spin", "backflip"), 1, names=("kick", "spin", "backflip"), steps=40)
    assert shown.task.tolist() == [[1, 1, 0], [0, 0, 1]]
    found = in_rotation_vectors(shown)
    torch.testing.assert_close(as_quaternions(found.observations), shown.observations, atol=2e-4, rtol=0)
    # The same motion comes of the converted actions.
    clip = HumanoidMotion.load("kick+spin")
    env = RotationVectors(gymnasium.make("pyrocontrol/DeepMimic-v0", motion=clip, assisted=True))
    plain = gymnasium.make("pyrocontrol/DeepMimic-v0", motion=clip, assisted=True)
    observation, _ = env.reset(seed=0)
    before, _ = plain.reset(seed=0)
    assert env.observation_space.contains(observation)
    for action, taken in zip(found.actions[0, :20].numpy(), shown.actions[0, :20].numpy(), strict=True):
        observation, reward, *_ = env.step(action)
        before, expected, *_ = plain.step(taken)
        assert reward == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(as_quaternions(torch.as_tensor(observation)), before, atol=2e-2)
    assert AssistedPlayback(clip).predict(before)[0].shape == (36,)
    with pytest.raises(ValueError, match=r"have 197 and 36 numbers a step, got \(182, 28\)"):
        in_rotation_vectors(found)
    with pytest.raises(ValueError, match=r"states must have 182 numbers, got shape \[2, 197\]"):
        as_quaternions(torch.zeros(2, 197))


def test_parts() -> None:
    assert parts_of("spinkick") == ("kick", "spin", "jump") and parts_of("kick+walk") == ("kick", "walk")
    assert parts_of("walk") == ("walk",) and parts_of(STAND) == ()
    assert parts_of("stand+kick") == ("kick",) and parts_of("backflip+kick") == ("jump", "roll", "kick")
    with pytest.raises(ValueError, match="one on either side of a plus: got 'kick\\+'"):
        parts_of("kick+")
