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


def test_parts() -> None:
    assert parts_of("spinkick") == ("kick", "spin", "jump") and parts_of("kick+walk") == ("kick", "walk")
    assert parts_of("walk") == ("walk",) and parts_of(STAND) == ()
