"""The humanoid without physics: angles of joints alone, which go where they are told.

What of a skill is lost to contacts and balance can be told from what is not: here there are neither. Pictures and
distances are those of `DeepMimicEnv`; the root is where the clip has it.

Shapes: 28 joint numbers, see `joint_vectors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ..._verify import verify_options, verify_seed
from ..data.demonstrations import Demonstrations
from ..data.episodes import Episode
from ..data.tasks import task_of, verify_names
from .deep_mimic import Camera, DeepMimicEnv
from .experts import ALL_COMPOSITES
from .motion import CONTROL_RATE, STAND, HumanoidMotion, busiest_phase, pose_of

__all__ = ["JointsEnv", "JointsTeacher", "clip_vectors", "demonstrations"]

_STEPS = 45


def clip_vectors(motion: HumanoidMotion, steps: int = _STEPS) -> np.ndarray:
    """Return the joints of a clip from its `busiest_phase` on, ``[steps + 1, 28]``, see `HumanoidMotion.vectors`."""
    return motion.vectors(steps)


class JointsEnv(DeepMimicEnv):
    """Do with the joints what a clip does, for 1.5 s: a body that has neither mass nor ground.

    Observation, `[29]` float32: the phase, from 0 to 1 in these 1.5 s; the joints, see `joint_vectors`. Action, `[28]`
    float32: by how much they change in 1/30 s (rad). An episode begins in the clip's pose. Reward and `info` are those
    of `DeepMimicEnv`, as the arguments are; the phase and the cycles are of the 1.5 s. `reset` takes no options.
    """

    def __init__(
        self,
        motion: Any = "spinkick",
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: Camera | tuple[float, float, float] = (2.7, 30.0, 12.0),
    ) -> None:
        super().__init__(motion, assisted=True, render_mode=render_mode, width=width, height=height, camera=camera)
        self._vectors = clip_vectors(self.motion)
        bound = np.float32(np.pi)
        self.observation_space = spaces.Box(-np.inf, np.inf, (29,), np.float32)
        self.action_space = spaces.Box(-bound, bound, (28,), np.float32)
        self._joints = self._vectors[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the joints where the clip has them."""
        verify_options(options)
        _, info = super().reset(seed=seed, options={"phase": busiest_phase(self.motion, _STEPS)})
        self._joints = self._vectors[0].copy()
        return self._seen(), info | self._played()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Change the joints; see the class."""
        if self._ended:
            raise RuntimeError("the episode has ended: call reset" if self._begun else "call reset before step")
        change = np.asarray(action, np.float64)
        if change.shape != (28,) or not np.isfinite(change).all():
            raise ValueError(f"an action must be 28 finite numbers, got {action!r}")
        self._joints = self._joints + np.clip(change, -np.pi, np.pi)
        self._steps += 1
        self._time = self._start + self._steps / CONTROL_RATE
        clip = self._clip()
        self._put(self._world, self._body, clip._replace(joints=pose_of(self._joints)))
        reward, measured = self._compare(clip)
        self._ended = self._steps >= _STEPS
        return self._seen(), reward, False, self._ended, self._info(False) | self._played() | measured

    def full(self, joints: np.ndarray) -> np.ndarray:
        """Return states ``[T, 197]`` of `DeepMimicEnv`, at rest and upright, of observations ``[T, 29]``: to draw.

        Raises:
            ValueError: for another shape, or numbers that are not finite.
        """
        joints = _observed(joints)
        if joints.ndim != 2:
            raise ValueError(f"observations over time are needed, of shape [T, 29], got {list(joints.shape)}")
        if not self._begun:
            self.reset()
        stand = HumanoidMotion.load(STAND).at(0.0)
        found = []
        for row in joints:
            self._put(self._world, self._body, stand._replace(joints=pose_of(row[1:])))
            found.append(self._state())
        return np.array(found, np.float32)

    def _played(self) -> dict[str, Any]:
        return {"phase": self._steps / _STEPS, "cycle": 0, "cycles": self._steps / _STEPS}

    def _seen(self) -> np.ndarray:
        return np.concatenate([[self._steps / _STEPS], self._joints]).astype(np.float32)


class JointsTeacher:
    """Goes to where the clip is one step later.

    Args:
        motion: a clip, see `HumanoidMotion.load`.
    """

    def __init__(self, motion: Any) -> None:
        self._vectors = clip_vectors(motion if isinstance(motion, HumanoidMotion) else HumanoidMotion.load(motion))

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """Return the change for one observation ``[29]`` or a batch, and the state as it was.

        Raises:
            ValueError: for another shape, or numbers that are not finite.
        """
        seen = _observed(observation)
        then = np.rint(seen[..., 0] * _STEPS).astype(int) + 1
        return (self._vectors[np.clip(then, 0, _STEPS)] - seen[..., 1:]).astype(np.float32), state


def _observed(observation: Any) -> np.ndarray:
    seen = np.asarray(observation, np.float64)
    if seen.ndim not in (1, 2) or seen.shape[-1] != 29:
        raise ValueError(f"the observation must have shape [29] or [B, 29], got {list(seen.shape)}")
    if not np.isfinite(seen).all():
        raise ValueError("the observation is NaN or infinite")
    return seen


def demonstrations(
    skills: Sequence[str],
    per_skill: int = 20,
    *,
    seed: int = 0,
    noise: float = 0.05,
    names: Sequence[str] | None = None,
) -> Demonstrations:
    """Let the teacher show clips with noise on the changes of the joints, in 45 steps.

    Args:
        skills: names of clips, see `HumanoidMotion.load`.
        per_skill: demonstrations of each.
        seed: of the noise.
        noise: its standard deviation (rad).
        names: what the numbers of the task stand for; by default the ``skills`` but ``"stand"``, whose task is zeros.
            See `envs.data.tasks.task_of`.

    Raises:
        ModuleNotFoundError, ValueError: see `HumanoidMotion.load` and `task_of`; also for skills or names that are
            given twice, and numbers that make no sense.
    """
    if per_skill < 1 or not 0 <= noise < np.inf:
        raise ValueError(f"per_skill must be at least 1 and noise not negative, got {per_skill} and {noise}")
    verify_seed(seed)
    names, episodes = verify_names(skills, names, ALL_COMPOSITES), []
    for skill in skills:
        task, vectors = task_of(skill, ALL_COMPOSITES, names), clip_vectors(HumanoidMotion.load(skill))
        for number in range(per_skill):
            # The teacher makes good in every step for the noise of the step before.
            shaken = noise * np.random.default_rng([seed, number, *skill.encode()]).standard_normal((_STEPS, 28))
            joints = vectors + np.concatenate([np.zeros((1, 28)), shaken])
            phase = np.arange(_STEPS + 1)[:, None] / _STEPS
            observations = np.concatenate([phase, joints], 1).astype(np.float32)
            changes = np.diff(observations[:, 1:], axis=0)
            episodes.append(Episode(observations, changes, task=task, terminated=False, truncated=True))
    bound = np.float32(np.pi)
    boxes = spaces.Box(-bound, bound, (28,), np.float32), spaces.Box(-np.inf, np.inf, (29,), np.float32)
    return Demonstrations.from_episodes(episodes, *boxes)
