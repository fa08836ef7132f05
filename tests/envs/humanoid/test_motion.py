"""Motion clips: reading, interpolation, repetition, velocities, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyrocontrol.envs import HumanoidMotion
from pyrocontrol.envs.humanoid.motion import JOINTS, SPHERICAL, bullet_data, shipped_motions
from pyrocontrol.envs.humanoid.quaternions import from_axis_angle, inverse, product, rotation_vector

Y = np.array([0.0, 1.0, 0.0])
# Where each joint's numbers begin in a frame: duration, root's position and rotation come first.
STARTS = dict(zip(JOINTS, np.cumsum([8, *(4 if ball else 1 for ball in SPHERICAL)]), strict=False))


def frame(
    duration: float = 0.1, x: float = 0.0, turn: float = 0.0, chest: float = 0.0, knee: float = 0.0
) -> list[float]:
    """A frame: the root at x, turned about the vertical, the chest about z, the right knee bent."""
    numbers = np.zeros(44)
    numbers[0], numbers[1:4] = duration, [x, 0.9, 0.0]
    for start in (4, *(STARTS[name] for name, ball in zip(JOINTS, SPHERICAL, strict=True) if ball)):
        numbers[start] = 1.0
    numbers[4:8] = [np.cos(turn / 2), 0.0, np.sin(turn / 2), 0.0]
    numbers[8:12] = [np.cos(chest / 2), 0.0, 0.0, np.sin(chest / 2)]
    numbers[STARTS["right_knee"]] = knee
    return numbers.tolist()


def test_between_frames_everything_goes_evenly() -> None:
    motion = HumanoidMotion([frame(), frame(x=0.3, turn=0.4, chest=0.6, knee=-0.8), frame(x=0.3)])
    pose = motion.at(0.025)
    np.testing.assert_allclose(pose.position, [0.075, 0.9, 0.0])
    np.testing.assert_allclose(pose.rotation, from_axis_angle(Y, np.array(0.1)))
    np.testing.assert_allclose(rotation_vector(pose.joints[0]), [0, 0, 0.15], atol=1e-15)
    np.testing.assert_allclose(pose.joints[JOINTS.index("right_knee")], [-0.2])
    np.testing.assert_allclose(pose.velocity, [3, 0, 0])
    np.testing.assert_allclose(pose.angular_velocity, [0, 4, 0], atol=1e-12)
    np.testing.assert_allclose(pose.joint_velocities[0], [0, 0, 6], atol=1e-12)
    np.testing.assert_allclose(pose.joint_velocities[JOINTS.index("right_knee")], [-8])
    assert [joint.shape for joint in pose.joints] == [(4,) if ball else (1,) for ball in SPHERICAL]
    assert [speed.shape for speed in pose.joint_velocities] == [(3,) if ball else (1,) for ball in SPHERICAL]


def test_the_root_turns_in_the_world_and_joints_in_their_own_frame() -> None:
    # Both go from 1 rad about x to that followed by 0.2 rad about the world's y.
    start = from_axis_angle(np.array([1.0, 0, 0]), np.array(1.0))
    end = product(from_axis_angle(Y, np.array(0.2)), start)
    frames = np.array([frame(), frame()])
    for index, rotation in enumerate((start, end)):
        frames[index, 4:8] = frames[index, 8:12] = rotation[[3, 0, 1, 2]]
    pose = HumanoidMotion(frames).at(0.05)
    np.testing.assert_allclose(pose.angular_velocity, [0, 2, 0], atol=1e-12)
    own = np.array([0.0, 2 * np.cos(1.0), -2 * np.sin(1.0)])  # R' y: the same axis, seen from the turned frame
    np.testing.assert_allclose(pose.joint_velocities[0], own, atol=1e-12)


def test_a_quaternion_and_its_negative_are_the_same_rotation() -> None:
    frames = np.array([frame(turn=0.1, chest=0.2), frame(turn=0.2, chest=0.4)])
    flipped = frames.copy()
    flipped[1, 4:12] *= -1
    one, other = HumanoidMotion(frames).at(0.03), HumanoidMotion(flipped).at(0.03)
    for a, b in zip(one[:2] + one[3:5], other[:2] + other[3:5], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)
    np.testing.assert_allclose(other.joint_velocities[0], [0, 0, 2], atol=1e-12)


def test_quaternions_of_other_lengths_are_brought_to_length_1() -> None:
    frames = np.array([frame(turn=0.4), frame(turn=0.4)])
    frames[:, 4:8] *= 1.4
    np.testing.assert_allclose(HumanoidMotion(frames).at(0.0).rotation, from_axis_angle(Y, np.array(0.4)))


def test_a_clip_that_loops_goes_on_from_where_it_is() -> None:
    motion = HumanoidMotion([frame(), frame(x=0.1, knee=0.5), frame(x=0.4)])
    assert motion.seconds == pytest.approx(0.2)
    np.testing.assert_allclose(motion.path, [0.4, 0, 0])
    for repetition in (-1, 1, 7):
        first, later = motion.at(0.13), motion.at(0.13 + 0.2 * repetition)
        np.testing.assert_allclose(later.position - first.position, [0.4 * repetition, 0, 0], atol=1e-12)
        np.testing.assert_allclose(later.joints[3], first.joints[3], atol=1e-12)


def test_a_clip_that_does_not_loop_stays_in_its_last_frame() -> None:
    motion = HumanoidMotion([frame(), frame(x=0.1, knee=0.5), frame(x=0.4, knee=1.0)], loops=False)
    for seconds in (0.2, 5.0):
        pose = motion.at(seconds)
        np.testing.assert_allclose(pose.position, [0.4, 0.9, 0])
        np.testing.assert_allclose(pose.joints[3], [1.0])
        assert not pose.velocity.any() and not any(speed.any() for speed in pose.joint_velocities)
    np.testing.assert_allclose(motion.at(-1.0).position, [0.0, 0.9, 0])


def test_each_frame_lasts_as_long_as_it_says() -> None:
    motion = HumanoidMotion([frame(0.1), frame(0.3, x=1.0), frame(0.0, x=4.0)])
    assert motion.seconds == pytest.approx(0.4)
    for seconds, x, speed in ((0.05, 0.5, 10.0), (0.1, 1.0, 10.0), (0.25, 2.5, 10.0)):
        assert motion.at(seconds).position[0] == pytest.approx(x)
        assert motion.at(seconds).velocity[0] == pytest.approx(speed)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(json.dumps({"Loop": "none", "Frames": [frame(), frame(x=1.0)]}))
    motion = HumanoidMotion.load(path)
    assert not motion.loops and len(motion) == 2 and motion.name == str(path)
    path.write_text(json.dumps({"Frames": [frame(), frame(x=1.0)]}))
    assert HumanoidMotion.load(path).loops


BAD_FRAMES: list[tuple[Callable[[list[list[float]]], None], str]] = [
    (lambda f: f[2].pop(), "frame 2 has 43 numbers, a humanoid's has 44"),
    (lambda f: f.__setitem__(1, 3.0), "frame 1 is no list of numbers, but a float"),
    (lambda f: f[2].__setitem__(3, "1"), "frame 2 holds a str among its numbers"),
    (lambda f: f[1].__setitem__(3, [1.0]), "frame 1 holds a list among its numbers"),
    (lambda f: f[1].__setitem__(3, None), "frame 1 holds a NoneType among"),
    (lambda f: f[2].__setitem__(3, 10**400), "frame 2 holds a number that is NaN or inf"),
    (lambda f: f[1].__setitem__(9, float("nan")), "frame 1 holds a number that is NaN"),
    (lambda f: f[2].__setitem__(3, float("inf")), "frame 2 holds a number that is NaN or inf"),
    (lambda f: f[1].__setitem__(0, 0.0), "frame 1 does not last"),
    (lambda f: f[0].__setitem__(0, -0.1), "frame 0 does not last"),
    (lambda f: f[1].__setitem__(slice(8, 12), [0] * 4), "frame 1 has a quaternion of length 0"),
    (lambda f: f.__delitem__(slice(1, 3)), "has 1 frames, a motion needs at least 2"),
]


def test_bad_frames_are_named(tmp_path: Path) -> None:
    for change, message in BAD_FRAMES:
        frames = [frame(), frame(), frame()]
        change(frames)
        path = tmp_path / "bad.txt"
        path.write_text(json.dumps({"Frames": frames}))
        with pytest.raises(ValueError, match=f"bad.txt:? ?{message}" if "needs" in message else f"bad.txt: {message}"):
            HumanoidMotion.load(path)
            pytest.fail(f"not refused: {message}")


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1, 2]", '{"Frames": 3}', "{}"),
        pytest.param('{"Frames": ' + 100_000 * "[" + 100_000 * "]" + "}", id="deep"),
    ],
)
def test_a_file_that_is_no_motion_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.txt is no motion file"):
        HumanoidMotion.load(path)


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.humanoid.motion.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pybullet, with Python 3.11"):
        HumanoidMotion.load("spinkick")


@pytest.mark.parametrize("module", ["pybullet", "pybullet_data"])
def test_half_of_pybullet_is_not_enough(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match="pybullet is missing: pip install"):
        bullet_data()


def test_shipped_clips_are_read_and_others_refused() -> None:
    pytest.importorskip("pybullet_data")
    assert len(shipped_motions()) == 15
    for name in shipped_motions():
        motion = HumanoidMotion.load(name)
        assert motion.loops == (name not in ("kick", "punch", "getup_facedown", "getup_faceup"))
        before, after = motion.at(0.3), motion.at(0.3 + 1e-3)
        assert np.abs(rotation_vector(product(after.rotation, inverse(before.rotation)))).max() < 0.05
    with pytest.raises(ValueError, match="no motion 'flip': no such file, and pybullet ships backflip, cartwheel,"):
        HumanoidMotion.load("flip")
