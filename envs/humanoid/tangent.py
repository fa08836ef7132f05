"""The humanoid's rotations and targets as rotation vectors, in which they add.

A sum of quaternions is no rotation, and of an angle and an axis neither is one. Axis times angle (rad), the tangent
space at no rotation, has nothing but rotations. A vector goes on from the one of the step before, beyond half a turn.

Shapes: T states; 15 links; 8 spherical joints, 4 revolute.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..data.demonstrations import Demonstrations
from .motion import BALL_STARTS, HINGE_STARTS, followed
from .quaternions import from_axis_angle, rotation_vector

__all__ = ["RotationVectors", "as_quaternions", "in_rotation_vectors"]

_LINKS, _HEAD = 15, 2  # the phase and the height come first
_LARGEST = np.float32(4 * np.pi)  # of a number of an action (rad)
_WIDTH, _QUATERNIONS = _HEAD + 12 * _LINKS, _HEAD + 13 * _LINKS  # numbers of a state
ACTIONS = spaces.Box(-_LARGEST, _LARGEST, (28,), np.float32)
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (_WIDTH,), np.float32)


class RotationVectors(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A `DeepMimicEnv` whose states and actions have rotation vectors.

    Observation, `[182]`: as before, with 3 numbers for the rotation of a link instead of 4. Action, `[28]`: the 8
    rotation vectors of the spherical joints' targets, then the 4 angles.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.observation_space, self.action_space = OBSERVATIONS, ACTIONS
        self._before: np.ndarray | None = None

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        self._before = None
        observation, info = self.env.reset(**given)
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Follow the targets of an action ``[28]``."""
        numbers = np.asarray(action, np.float64)
        if numbers.shape != (28,):
            raise ValueError(f"an action must be 28 numbers, got shape {list(numbers.shape)}")
        vectors = numbers[:24].reshape(8, 3)
        angles = np.linalg.norm(vectors, axis=-1)
        # The angle of the shorter way: those of an action have bounds, and a whole turn is none.
        turns = np.round(angles / (2 * np.pi)) * 2 * np.pi
        found = np.zeros(36)
        found[BALL_STARTS] = angles - turns
        found[BALL_STARTS[:, None] + [1, 2, 3]] = vectors / np.where(angles < 1e-12, 1.0, angles)[:, None]
        found[HINGE_STARTS] = numbers[24:]
        observation, reward, terminated, truncated, info = self.env.step(found.astype(np.float32))
        return self._seen(observation), reward, terminated, truncated, info

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        found = _vectors_of_links(observation[None], self._before)
        self._before = found[0, :, 3:6]
        return _flat(observation[None], found)[0]


def in_rotation_vectors(demos: Demonstrations) -> Demonstrations:
    """Return demonstrations of `DeepMimicEnv` as ones of `RotationVectors`, to the precision of 32 bits.

    Raises:
        ValueError: if they are of something else, such as those that it returns.
    """
    sizes = demos.observations.shape[-1], demos.actions.shape[-1]
    if sizes != (_QUATERNIONS, 36):
        raise ValueError(f"demonstrations of DeepMimicEnv have {_QUATERNIONS} and 36 numbers a step, got {sizes}")
    episodes = []
    for episode in demos.to_episodes():
        seen, taken = np.asarray(episode.observations), np.asarray(episode.actions, np.float64)
        axes, angles = taken[:, BALL_STARTS[:, None] + [1, 2, 3]], taken[:, BALL_STARTS]
        vectors = followed(rotation_vector(from_axis_angle(axes, angles)))
        actions = np.concatenate([vectors.reshape(len(taken), -1), taken[:, HINGE_STARTS]], 1).astype(np.float32)
        episodes.append(episode._replace(observations=_flat(seen, _vectors_of_links(seen)), actions=actions))
    return Demonstrations.from_episodes(episodes, ACTIONS, OBSERVATIONS)


def as_quaternions(states: Tensor) -> Tensor:
    """Return states ``[..., 182]`` as `DeepMimicEnv` has them, ``[..., 197]``.

    Raises:
        ValueError: for states of another size.
    """
    if states.shape[-1] != _WIDTH:
        raise ValueError(f"states must have {_WIDTH} numbers, got shape {list(states.shape)}")
    links = states[..., _HEAD : _HEAD + 6 * _LINKS].unflatten(-1, (_LINKS, 6))
    vectors = links[..., 3:]
    half = vectors.norm(dim=-1, keepdim=True) / 2
    quaternions = torch.cat([half.cos(), vectors / 2 * torch.sinc(half / np.pi)], -1)
    quaternions = torch.where(quaternions[..., :1] < 0, -quaternions, quaternions)
    poses = torch.cat([links[..., :3], quaternions], -1).flatten(-2)
    return torch.cat([states[..., :_HEAD], poses, states[..., _HEAD + 6 * _LINKS :]], -1)


def _vectors_of_links(states: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Positions and rotation vectors of the links, ``[T, 15, 6]``, in states ``[T, 197]`` after vectors ``[15, 3]``."""
    links = states[:, _HEAD : _HEAD + 7 * _LINKS].reshape(len(states), _LINKS, 7).astype(np.float64)
    vectors = rotation_vector(links[..., [4, 5, 6, 3]])
    vectors = followed(vectors) if before is None else followed(np.concatenate([before[None], vectors]))[1:]
    return np.concatenate([links[..., :3], vectors], -1)


def _flat(states: np.ndarray, links: np.ndarray) -> np.ndarray:
    head, motions = states[:, :_HEAD], states[:, _HEAD + 7 * _LINKS :]
    return np.concatenate([head, links.reshape(len(states), -1), motions], 1).astype(np.float32)
