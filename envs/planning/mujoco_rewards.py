"""Rewards of MuJoCo tasks, of many trajectories at once.

Gymnasium computes a reward from a live simulator, one step at a time. A planner asks for the rewards of thousands of
simulated steps, of which it has states and controls; here they are, as functions of arrays. They are those of the
tasks' fifth version, with the constants of the environment that is given, and are tested against its `step`. The
tasks of this library that can be planned for bring theirs with them (`Plannable`).

Shapes: K trajectories, H steps, Q positions, V velocities, A actuators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

__all__ = ["Plannable", "Reward", "Trajectories", "body_position", "reward_of"]


class Trajectories(NamedTuple):
    """Simulated steps of one environment.

    Attributes:
        positions: `[K, H + 1, Q]`, before the first step and after each.
        velocities: `[K, H + 1, V]`, likewise.
        seen: `[K, H, Q]`, the positions to which the simulator's bodies belong after each step: MuJoCo places bodies
            before it integrates, so where it integrates in one go they are one time step old.
        controls: `[K, H, A]`.
        sensors: `[K, H, S]`, what the model's sensors read in the state after each step.
    """

    positions: np.ndarray
    velocities: np.ndarray
    seen: np.ndarray
    controls: np.ndarray
    sensors: np.ndarray


Reward = Callable[[Trajectories], tuple[np.ndarray, np.ndarray]]
"""Rewards `[K, H]`, and whether each step ends the episode, bool `[K, H]`."""


@runtime_checkable
class Plannable(Protocol):
    """A MuJoCo environment that says what a planner has to know.

    Attributes:
        model: MuJoCo's `MjModel`.
        data: MuJoCo's `MjData`, the state in which the environment is; what depends on positions and velocities is
            up to date.
        frame_skip: time steps of a frame.
        dt: seconds of a frame.
        action_repeat: frames of a step.
        planning: what suits the task, by the names of the settings of `MPPITeacher`.
    """

    model: Any
    data: Any
    frame_skip: int
    dt: float
    action_repeat: int
    planning: dict[str, Any]

    def rewards(self, trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
        """A `Reward`, of frames."""


def reward_of(env: Any) -> Reward | None:
    """Return the reward of a MuJoCo environment, or None where it is not known here.

    Known are those of a `Plannable`, and of Gymnasium's Reacher, Pusher, HalfCheetah, Swimmer, Hopper and Walker2d,
    version 5. A class derived from one of the latter may have another reward and is not known.

    Args:
        env: the environment itself, unwrapped.
    """
    if isinstance(env, Plannable):
        return env.rewards
    kind = type(env)
    module = kind.__module__.rpartition(".")
    if module[0] != "gymnasium.envs.mujoco" or not module[2].endswith("_v5"):
        return None
    found = _REWARDS.get(kind.__name__)
    return None if found is None else lambda trajectories: found(env, trajectories)


def _effort(t: Trajectories) -> np.ndarray:
    return np.square(t.controls).sum(-1)


def _speed(env: Any, t: Trajectories) -> np.ndarray:
    """Forward velocity of each step, m/s."""
    return np.diff(t.positions[..., 0], axis=1) / env.dt


def _never(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rewards, np.zeros(rewards.shape, bool)


def _reacher(env: Any, t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    gap = body_position(env.model, t.seen, "fingertip") - body_position(env.model, t.seen, "target")
    distance = np.linalg.norm(gap, axis=-1)
    return _never(-env._reward_dist_weight * distance - env._reward_control_weight * _effort(t))


def _pusher(env: Any, t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    item = body_position(env.model, t.seen, "object")
    near = np.linalg.norm(item - body_position(env.model, t.seen, "tips_arm"), axis=-1)
    distance = np.linalg.norm(item - body_position(env.model, t.seen, "goal"), axis=-1)
    cost = env._reward_near_weight * near + env._reward_dist_weight * distance
    return _never(-cost - env._reward_control_weight * _effort(t))


def _runner(env: Any, t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """HalfCheetah and Swimmer."""
    return _never(env._forward_reward_weight * _speed(env, t) - env._ctrl_cost_weight * _effort(t))


def _walker(env: Any, t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Walker2d, and Hopper, which has bounds on the other states too."""
    height, angle = t.positions[:, 1:, 1], t.positions[:, 1:, 2]
    healthy = _inside(height, env._healthy_z_range) & _inside(angle, env._healthy_angle_range)
    if hasattr(env, "_healthy_state_range"):
        rest = np.concatenate([t.positions[:, 1:, 2:], t.velocities[:, 1:]], -1)
        healthy &= _inside(rest, env._healthy_state_range).all(-1)
    rewards = env._forward_reward_weight * _speed(env, t) + env._healthy_reward * healthy
    return rewards - env._ctrl_cost_weight * _effort(t), ~healthy & env._terminate_when_unhealthy


def _inside(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return (bounds[0] < values) & (values < bounds[1])


_REWARDS = {
    "ReacherEnv": _reacher,
    "PusherEnv": _pusher,
    "HalfCheetahEnv": _runner,
    "SwimmerEnv": _runner,
    "HopperEnv": _walker,
    "Walker2dEnv": _walker,
}


# ---------------------------------------------------------------------- forward kinematics

_SLIDE, _HINGE = 2, 3  # MuJoCo's mjtJoint


def body_position(model: Any, positions: np.ndarray, name: str) -> np.ndarray:
    """Where a body is, for any number of joint positions at once.

    Args:
        model: MuJoCo's `MjModel`; joints on the way to the body must be hinges and slides.
        positions: `[..., Q]`.
        name: of the body.

    Returns:
        `[..., 3]`, its frame's origin in the world (m).

    Raises:
        ValueError: if there is another joint on the way.
    """
    chain = []
    body = model.body(name).id
    while body != 0:
        chain.append(body)
        body = int(model.body_parentid[body])
    place = np.zeros((*positions.shape[:-1], 3))
    turn: np.ndarray = np.broadcast_to(np.eye(3), (*positions.shape[:-1], 3, 3))
    for body in reversed(chain):
        place = place + turn @ model.body_pos[body]
        turn = turn @ _of_quaternion(model.body_quat[body])
        first = int(model.body_jntadr[body])
        for joint in range(first, first + int(model.body_jntnum[body])):
            address = int(model.jnt_qposadr[joint])
            moved = positions[..., address] - model.qpos0[address]
            axis, pivot = model.jnt_axis[joint], model.jnt_pos[joint]
            if model.jnt_type[joint] == _SLIDE:
                place = place + (turn @ axis) * moved[..., None]
            elif model.jnt_type[joint] == _HINGE:
                anchor = place + turn @ pivot
                turn = turn @ _about(axis, moved)
                place = anchor - turn @ pivot
            else:
                raise ValueError(f"the joint {model.joint(joint).name!r} of body {name!r} is no hinge and no slide")
    return place


def _about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """`[..., 3, 3]`: rotations by angles `[...]` about a unit axis (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle)[..., None, None] * cross + (1 - np.cos(angle))[..., None, None] * (cross @ cross)


def _of_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """`[3, 3]`: the rotation of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * (cross @ cross)
