"""The humanoid: against pybullet's own environment, what it observes and is rewarded for, determinism, bad input."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs import DeepMimicEnv, HumanoidMotion
from pyrocontrol.envs.humanoid.deep_mimic import ACTION_HIGH, ACTION_LOW, Camera
from pyrocontrol.envs.humanoid.motion import JOINTS, HumanoidPose, bullet_data
from pyrocontrol.envs.humanoid.quaternions import from_axis_angle, product

NAME = "pyrocontrol/DeepMimic-v0"
Y = np.array([0.0, 1.0, 0.0])


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.humanoid.motion.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^pybullet is missing: pip install pybullet.*wheel\)$"):
        DeepMimicEnv()


@pytest.fixture
def bullet() -> Any:
    return pytest.importorskip("pybullet")


pytestmark_bullet = pytest.mark.usefixtures("bullet")


def actions(count: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).normal(size=(count, 36))).astype(np.float32)


def play(env: DeepMimicEnv, taken: np.ndarray, **options: float) -> np.ndarray:
    """Observations and rewards of an episode, `[A + 1, 198]`."""
    observation, _ = env.reset(seed=0, options=options or None)
    rows = [np.append(observation, 0.0)]
    for action in taken:
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.append(observation, reward))
        if terminated or truncated:
            break
    return np.array(rows)


# ---------------------------------------------------------------------- against pybullet's own


@pytest.fixture
def own_class(monkeypatch: pytest.MonkeyPatch, bullet: Any) -> Iterator[Any]:
    """pybullet's own environment. Importing its package fails, its modules load under an empty package of its name."""
    package = types.ModuleType("pybullet_envs")
    package.__path__ = [str(bullet_data().parent / "pybullet_envs")]
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "pybullet_envs", package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pybullet_envs.deep_mimic.env import pybullet_deep_mimic_env
        from pybullet_utils.arg_parser import ArgParser

        def make(motion: str) -> Any:
            arguments = ArgParser()
            arguments.load_file(str(bullet_data() / "args" / f"run_humanoid3d_{motion}_args.txt"))
            with contextlib.redirect_stdout(io.StringIO()):
                return pybullet_deep_mimic_env.PyBulletDeepMimicEnv(
                    arguments, False, init_strategy=pybullet_deep_mimic_env.InitializationStrategy.START
                )

        yield make
    for name in set(sys.modules) - before:
        if name.startswith(("pybullet_envs", "pybullet_utils")):
            del sys.modules[name]


def own_pose(humanoid: Any, seconds: float) -> HumanoidPose:
    """The clip's pose as pybullet's own code computes it."""
    humanoid.setSimTime(seconds)
    humanoid.computePose(humanoid._frameFraction)
    found = humanoid._poseInterpolator
    names = [name.split("_") for name in JOINTS]
    camel = [first + "".join(word.title() for word in rest) for first, *rest in names]
    return HumanoidPose(
        np.array(found._basePos),
        np.array(found._baseOrn),
        [np.array(getattr(found, f"_{name}Rot")) for name in camel],
        np.array(found._baseLinVel),
        np.array(found._baseAngVel),
        [np.array(getattr(found, f"_{name}Vel")) for name in camel],
    )


def links(bullet: Any, body: int, client: int) -> np.ndarray:
    """Positions, rotations and velocities of the links, as Bullet has them: `[15, 13]`."""
    states = bullet.getLinkStates(
        body, range(15), computeLinkVelocity=True, computeForwardKinematics=True, physicsClientId=client
    )
    return np.array([np.concatenate([state[part] for part in (0, 1, 6, 7)]) for state in states])


@pytest.mark.parametrize("motion", ["walk", "spinkick", "kick"])
def test_state_reward_and_steps_are_those_of_pybullets_own(own_class: Any, bullet: Any, motion: str) -> None:
    """The bodies move alike to the last bit, given the same poses of the clip and the same targets.

    What is computed from them agrees to 1e-6, because pybullet's helpers compute in single precision.
    """
    own, env = own_class(motion), DeepMimicEnv(motion)
    humanoid, client = own._humanoid, own._pybullet_client
    clip: Any = SimpleNamespace(at=lambda seconds: own_pose(humanoid, seconds), seconds=env.motion.seconds, loops=True)
    env.motion = clip
    own.reset()
    env.reset(seed=0)
    np.testing.assert_allclose(env._state(), own.record_state(0), atol=1e-6)
    for action in actions(6):
        targets = np.concatenate(env._targets(action))
        own.set_action(0, action.astype(np.float64))
        np.testing.assert_allclose(targets, own.desiredPose[7:], atol=1e-6)
        own.desiredPose[7:] = targets.tolist()
        for _ in range(8):
            own.update(1 / 240)
        # Its reward takes the clip's joints to be at rest: Bullet has stepped the body that stands for the clip, too.
        # Put there again, it is what the definition says.
        humanoid.computePose(humanoid._frameFraction)
        humanoid.initializePose(humanoid._poseInterpolator, humanoid._kin_model, initBase=True)
        _, reward, terminated, _, _ = env.step(action)
        np.testing.assert_array_equal(
            links(bullet, env._body, env._world), links(bullet, humanoid._sim_model, client._client)
        )
        np.testing.assert_allclose(env._state(), own.record_state(0), atol=5e-6)
        assert reward == pytest.approx(own.calc_reward(0), abs=1e-6)
        assert terminated == own.is_episode_end()


@pytest.mark.parametrize("motion", ["walk", "spinkick", "kick"])
def test_poses_of_the_clip_are_those_of_pybullets_own(own_class: Any, motion: str) -> None:
    """To the precision of its arc cosine, which loses half the digits at small angles."""
    humanoid, clip = own_class(motion)._humanoid, HumanoidMotion.load(motion)
    for seconds in np.linspace(0.001, clip.seconds - 0.001, 37):
        own, ours = own_pose(humanoid, seconds), clip.at(seconds)
        np.testing.assert_allclose(ours.position, own.position, atol=1e-12)
        np.testing.assert_allclose(ours.velocity, own.velocity, atol=1e-9)
        turned = own.rotation * np.sign(own.rotation @ ours.rotation) / np.linalg.norm(own.rotation)
        np.testing.assert_allclose(ours.rotation, turned, atol=1e-6)
        np.testing.assert_allclose(ours.angular_velocity, own.angular_velocity, atol=5e-3)


# ---------------------------------------------------------------------- the environment


@pytestmark_bullet
@pytest.mark.filterwarnings("ignore:.*Box (observation|action) space")
def test_gymnasium_accepts_it() -> None:
    check_env(gymnasium.make(NAME, motion="kick", render_mode="rgb_array", width=32, height=24).unwrapped)


@pytestmark_bullet
def test_the_same_seed_and_actions_give_the_same_bits() -> None:
    env, taken = DeepMimicEnv("spinkick"), actions(25)
    first = play(env, taken, phase=0.3)
    assert len(first) > 15
    play(env, actions(7, seed=1))  # another episode, cut off in the middle
    play(env, actions(25, seed=2), phase=0.8)
    other = DeepMimicEnv("spinkick", render_mode="rgb_array", width=16, height=16)
    play(other, actions(3, seed=3))
    other.render()
    for again in (play(env, taken, phase=0.3), play(other, taken, phase=0.3), play(env, taken, phase=0.3)):
        np.testing.assert_array_equal(again, first)
    assert not np.array_equal(play(env, taken, phase=0.31), first)


@pytestmark_bullet
def test_seeds_determine_where_a_random_episode_begins() -> None:
    env = DeepMimicEnv("walk", init="random")
    phases = [env.reset(seed=seed)[1]["phase"] for seed in (1, 2, 1)]
    assert phases[0] == phases[2] != phases[1]
    assert env.reset()[1]["phase"] != phases[2]
    assert env.reset(seed=1, options={"phase": 0.25})[1]["phase"] == pytest.approx(0.25)
    assert DeepMimicEnv("walk").reset(seed=5)[1]["phase"] == 0


@pytestmark_bullet
def test_a_body_that_is_where_the_clip_is_has_reward_1() -> None:
    env = DeepMimicEnv("backflip")
    env.reset(options={"phase": 0.4})
    pose = env._clip()
    reward, measured = env._compare(pose)
    assert reward == pytest.approx(1, abs=1e-9) and measured["tracking_error"] < 1e-6
    # The negative quaternion is the same rotation.
    env._put(env._world, env._body, pose._replace(rotation=-pose.rotation))
    assert env._compare(pose)[0] == pytest.approx(1, abs=1e-9)


@pytestmark_bullet
def test_each_term_of_the_reward_by_hand() -> None:
    env = DeepMimicEnv("walk")
    env.reset()
    pose = env._clip()

    def terms(**changes: Any) -> tuple[dict[str, float], dict[str, Any]]:
        env._put(env._world, env._body, pose._replace(**changes))
        reward, measured = env._compare(pose)
        found = measured["reward_terms"]
        weights = {"pose": 0.5, "velocity": 0.05, "end_effectors": 0.15, "root": 0.2}
        assert reward == pytest.approx(sum(weights[name] * found[name] for name in weights) / 0.9)
        return found, measured

    found, measured = terms(position=pose.position + [0.1, 0, 0])
    assert found == pytest.approx({"pose": 1, "velocity": 1, "end_effectors": math.exp(-0.4), "root": math.exp(-0.05)})
    assert measured["root_error"] == pytest.approx(0.1) and measured["tracking_error"] == pytest.approx(0, abs=1e-6)

    found, _ = terms(velocity=pose.velocity + [2, 0, 0], angular_velocity=pose.angular_velocity + [0, 3, 0])
    root = math.exp(-5 * (0.01 * 4 + 0.001 * 9))
    speed = math.exp(-0.1 * 0.20833 * 9)
    assert found == pytest.approx({"pose": 1, "velocity": speed, "end_effectors": 1, "root": root})

    knee = JOINTS.index("right_knee")
    bent = [joint - 0.5 if index == knee else joint for index, joint in enumerate(pose.joints)]
    found, measured = terms(joints=bent)
    assert found["pose"] == pytest.approx(math.exp(-2 * 0.0625 * 0.25)) and found["end_effectors"] < 1
    assert measured["tracking_error"] == pytest.approx(0.5 / math.sqrt(13))

    turned = [
        product(from_axis_angle(Y, np.array(0.4)), joint) if not i else joint for i, joint in enumerate(pose.joints)
    ]
    assert terms(joints=turned)[0]["pose"] == pytest.approx(math.exp(-2 * 0.10416 * 0.16))


@pytestmark_bullet
def test_neither_place_nor_direction_in_the_world_is_seen() -> None:
    env = DeepMimicEnv("walk")
    env.reset(options={"phase": 0.2})
    pose, seen = env._clip(), env._state()
    turn = from_axis_angle(Y, np.array(2.0))

    def turned(vector: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(2.0), np.sin(2.0)
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ vector

    elsewhere = pose._replace(
        position=turned(pose.position) + [3, 0, -5],
        rotation=product(turn, pose.rotation),
        velocity=turned(pose.velocity),
        angular_velocity=turned(pose.angular_velocity),
    )
    env._put(env._world, env._body, elsewhere)
    np.testing.assert_allclose(env._state(), seen, atol=1e-9)
    # Heights and leaning are.
    env._put(env._world, env._body, pose._replace(position=pose.position + 0.1 * Y))
    np.testing.assert_allclose(env._state()[:3] - seen[:3], [0, 0.1, 0], atol=1e-9)


@pytestmark_bullet
def test_an_observation_says_phase_height_links_and_their_motion() -> None:
    env = DeepMimicEnv("walk")
    observation, _ = env.reset(options={"phase": 0.2})
    assert observation.shape == (197,) and observation.dtype == np.float32
    pose = env._clip()
    assert observation[0] == pytest.approx(0.2) and observation[1] == pytest.approx(pose.position[1])
    rotations = observation[2:107].reshape(15, 7)[:, 3:]
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=1), 1, atol=1e-6)
    assert (rotations[:, 0] >= 0).all()
    # The root's link hangs stiffly on the root, 0.07 m above.
    speed = observation[107:113]
    assert np.linalg.norm(speed[:3]) == pytest.approx(np.linalg.norm(pose.velocity), abs=0.1)
    assert np.linalg.norm(speed[3:]) == pytest.approx(np.linalg.norm(pose.angular_velocity), rel=1e-5)


@pytestmark_bullet
def test_a_limp_body_falls_and_the_episode_ends() -> None:
    env = DeepMimicEnv("walk")
    env.reset()
    ended, steps = False, 0
    while not ended:
        _, _, ended, truncated, info = env.step(np.zeros(36, np.float32))
        steps += 1
        assert not truncated and info["fallen"] == ended
    assert 5 < steps < 60
    with pytest.raises(RuntimeError, match="the episode has ended: call reset"):
        env.step(np.zeros(36, np.float32))
    env.reset()
    env.step(np.zeros(36, np.float32))


@pytestmark_bullet
def test_which_links_must_not_touch_the_ground_is_the_clips_own() -> None:
    everything_but_the_feet = (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14)
    assert DeepMimicEnv("spinkick").fall_links == everything_but_the_feet
    assert DeepMimicEnv("cartwheel").fall_links == (0, 1, 2, 3, 4, 6, 7, 9, 10, 12, 13)  # the hands may
    assert DeepMimicEnv("roll").fall_links == DeepMimicEnv("spinkick", assisted=True).fall_links == ()
    env = DeepMimicEnv("walk", fall_links=(5, 11))
    env.reset()
    assert env.step(np.zeros(36, np.float32))[2]  # it stands on one


@pytestmark_bullet
def test_a_held_root_is_where_the_clip_has_it() -> None:
    env = DeepMimicEnv("spin", assisted=True)
    _, info = env.reset(options={"phase": 0.3})
    for action in actions(5):
        *_, info = env.step(action)
        assert info["assisted"] and info["root_error"] < 1e-12
    assert not DeepMimicEnv("spin").reset()[1]["assisted"]


@pytestmark_bullet
def test_an_episode_is_truncated_in_time_and_when_the_clip_is_over() -> None:
    env = DeepMimicEnv("roll", max_seconds=0.1)
    assert len(play(env, actions(9))) == 4
    env = DeepMimicEnv("kick", assisted=True)
    env.reset(options={"phase": 0.95})
    ends = [env.step(action)[2:4] for action in actions(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env = DeepMimicEnv("roll")  # goes on in the next repetition
    env.reset(options={"phase": 0.97})
    infos = [env.step(action)[-1] for action in actions(3)]
    assert [info["cycle"] for info in infos] == [0, 1, 1] and 0.01 < infos[-1]["phase"] < 0.03
    assert infos[-1]["cycles"] == pytest.approx(0.1 / env.motion.seconds)


@pytestmark_bullet
def test_a_clip_is_played_faster_or_slower() -> None:
    env = DeepMimicEnv("spin", assisted=True)
    _, still = env.reset(options={"phase": 0.3})
    velocity = env._clip().velocity
    env.reset(options={"phase": 0.3, "speed": 0.5})
    np.testing.assert_allclose(env._clip().velocity, 0.5 * velocity)
    info = env.step(np.zeros(36, np.float32))[-1]
    assert (info["phase"] - still["phase"]) * env.motion.seconds == pytest.approx(0.5 / 30)


@pytestmark_bullet
def test_actions_outside_the_bounds_are_clipped() -> None:
    env = DeepMimicEnv("walk")
    beyond = np.full((1, 36), 100, np.float64)
    np.testing.assert_array_equal(play(env, beyond), play(env, env.action_space.high[None]))
    np.testing.assert_array_equal(play(env, -beyond), play(env, env.action_space.low[None]))
    assert ACTION_LOW.shape == ACTION_HIGH.shape == (36,) and (ACTION_LOW < 0).all() and (ACTION_HIGH > 0).all()


# ---------------------------------------------------------------------- pictures


@pytestmark_bullet
def test_pictures_follow_the_root() -> None:
    env = DeepMimicEnv("walk", assisted=True, render_mode="rgb_array", width=64, height=48)
    env.reset()
    first = env.render()
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8

    def body(picture: np.ndarray) -> np.ndarray:
        """Where the orange and green limbs are."""
        colours = picture.astype(int)
        return np.argwhere(np.ptp(colours, axis=2) * (colours[..., 2] <= colours.max(2) - 20) > 30).mean(0)

    for action in actions(40):  # a metre further
        env.step(action)
    assert env._clip().position[0] > 1
    np.testing.assert_allclose(body(env.render()), body(first), atol=6)
    np.testing.assert_allclose(body(first)[1], 32, atol=6)
    assert env.render().std() > 10


@pytestmark_bullet
def test_a_camera_is_placed() -> None:
    pictures = []
    for camera in (Camera(2.0, 0.0, 10.0), (2.0, 90.0, 10.0), Camera(5.0, 0.0, 10.0)):
        env = DeepMimicEnv("walk", render_mode="rgb_array", width=32, height=32, camera=camera)
        env.reset()
        pictures.append(env.render())
    assert all(not np.array_equal(pictures[0], picture) for picture in pictures[1:])


@pytestmark_bullet
def test_without_a_mode_there_is_no_picture() -> None:
    env = DeepMimicEnv("walk")
    env.reset()
    assert env.render() is None


# ---------------------------------------------------------------------- bad input


@pytestmark_bullet
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"motion": "flip"}, "no motion 'flip': no such file, and pybullet ships backflip"),
        ({"init": "end"}, "init must be 'start' or 'random', got 'end'"),
        ({"max_seconds": 0}, "max_seconds must be at least 1/30, got 0"),
        ({"max_seconds": math.nan}, "max_seconds"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"width": 0}, "at least one pixel"),
        ({"fall_links": (15,)}, r"numbers in 0..14, got \(15,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepMimicEnv(**arguments)


@pytestmark_bullet
def test_a_bad_motion_file_is_refused_naming_the_frame(tmp_path: Path) -> None:
    source = (bullet_data() / "data/motions/humanoid3d_kick.txt").read_text().split("[")
    path = tmp_path / "kick.txt"
    path.write_text("[".join([*source[:5], "NaN," + source[5].split(",", 1)[1], *source[6:]]))
    with pytest.raises(ValueError, match="kick.txt: frame 3 holds a number that is NaN"):
        DeepMimicEnv(path)


@pytestmark_bullet
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": 1.0}, "phase must be in 0 <= phase < 1, got 1.0"),
        ({"phase": -0.1}, "phase must be"),
        ({"phase": math.nan}, "phase must be"),
        ({"speed": 0}, "speed must be positive, got 0"),
        ({"frame": 3}, "unknown options frame; known are phase, speed"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepMimicEnv("walk").reset(options=options)


@pytestmark_bullet
def test_bad_actions_are_refused_and_change_nothing() -> None:
    env, taken = DeepMimicEnv("walk"), actions(3)
    expected = play(env, taken)
    env.reset(seed=0)
    for bad, message in (
        (np.zeros(34, np.float32), r"an action must be 36 numbers, got shape \[34\]"),
        (np.zeros((1, 36)), r"got shape \[1, 36\]"),
        (np.array(["a"] * 36), "36 numbers"),
        (np.where(np.arange(36) == 7, np.nan, 0.0), "action number 7 is NaN or infinite"),
        (np.where(np.arange(36) == 0, np.inf, 0.0), "action number 0 is NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(bad)
    rows = [env.step(action)[:2] for action in taken]
    np.testing.assert_array_equal([np.append(*row) for row in rows], expected[1:])


@pytestmark_bullet
def test_what_comes_too_early_or_too_late_is_refused() -> None:
    env = DeepMimicEnv("walk", render_mode="rgb_array")
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(np.zeros(36, np.float32))
    with pytest.raises(RuntimeError, match="call reset before render"):
        env.render()
    env.reset()
    env.close()
    env.close()
    for call in (env.reset, env.render, lambda: env.step(np.zeros(36, np.float32))):
        with pytest.raises(RuntimeError, match="the environment is closed"):
            call()


@pytestmark_bullet
def test_environments_that_are_no_longer_used_make_room() -> None:
    clients = {DeepMimicEnv("walk")._world for _ in range(10)}
    assert len(clients) < 4
