"""Skills of a planar point mass that add up: a small task to learn compositions of skills from.

Each skill is a profile of forces over one cycle. The mass is linear, so that what two profiles do when they act at the
same time is what each does alone, added:

    v' = e^(-c dt) v + (1 - e^(-c dt)) / c * 40 a,  x' = x + dt v',  c = 2, dt = 1 / steps.

The first line is exact for a force that is held for a step and friction c; a cycle lasts one unit of time, whatever the
number of its steps. What the embedding of a composite should be, if embeddings are to add up as well, is thus known
here: rising while pushing forward is a hop, and no demonstration of a hop is needed to say how it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._saved import Saved
from .._verify import verify_options, verify_seed
from ..models.policies.episodes import Episodes
from .data import tasks
from .data.demonstrations import Demonstrations
from .data.episodes import Episode

__all__ = [
    "COMPOSITES",
    "POINT_SKILLS",
    "REST",
    "PointSkillsEnv",
    "PointTeacher",
    "demonstrations",
    "parts_of",
    "reference",
]

_FRICTION = 2.0  # per unit of time
_STRENGTH = 40.0  # acceleration of a unit of force
_TOP = _STRENGTH / _FRICTION  # no speed is greater
ARENA = 2.0  # half its side
SIDE, MARGIN = 320, 10  # of a picture, pixels: the arena, and what is left around it
_STIFFNESS, _RESISTANCE = 0.5, 0.15  # of the teacher, units of force a unit of distance and of speed


def _clock(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A clock from 0 to 1 that starts and stops at rest, in radians, and how fast it turns."""
    return 2 * np.pi * phase - np.sin(2 * np.pi * phase), 2 * np.pi * (1 - np.cos(2 * np.pi * phase))


def _rise(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(phase), 0.6 * np.pi * np.sin(2 * np.pi * phase)


def _push(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 1.2 * _clock(phase)[1] / (2 * np.pi), np.zeros_like(phase)


def _weave(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle, rate = _clock(phase)
    return 0.18 * rate * np.cos(angle), np.zeros_like(phase)


def _circle(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle, rate = _clock(phase)
    return -0.2 * rate * np.sin(angle), 0.2 * rate * np.cos(angle)


def _bob(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(phase), 0.25 * np.pi * np.sin(4 * np.pi * phase)


def _sway(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 0.2 * np.pi * np.sin(4 * np.pi * phase), np.zeros_like(phase)


def _climb(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(phase), 0.8 * _clock(phase)[1] / (2 * np.pi)


# Velocities (x, y) over a cycle; each is 0 at both ends. The forces follow from them.
_VELOCITIES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "rise": _rise,
    "push": _push,
    "weave": _weave,
    "circle": _circle,
    "bob": _bob,
    "sway": _sway,
    "climb": _climb,
}

#: The skills: up 0.6 and down again; forward 1.2; right and left by 0.18; around a circle of radius 0.2; up 0.125 and
#: down again, twice; 0.1 to the right and back, twice; up 0.8.
POINT_SKILLS = tuple(_VELOCITIES)

#: Doing nothing: the composite of no skill.
REST = "rest"

#: Which skills at the same time make a composite.
COMPOSITES: dict[str, tuple[str, ...]] = {"toy": ("rise", "push"), "slalom": ("rise", "push", "weave")}
_COMPOSITES = {**COMPOSITES, REST: ()}


def parts_of(skill: str | Sequence[str]) -> tuple[str, ...]:
    """Return the sub-skills of a skill, of a composite, or of several of these at once; ``"rise+push"`` is both.

    Raises:
        ValueError: if one of them is not known, or there are none.
    """
    parts = tasks.parts_of(skill, _COMPOSITES)
    for part in parts:
        if part not in POINT_SKILLS:
            raise ValueError(f"there is no skill {part!r}; there are {', '.join((*POINT_SKILLS, *_COMPOSITES))}")
    return parts


def reference(skill: str | Sequence[str], steps: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a skill does without noise: positions, velocities and forces, float64.

    Args:
        skill: a skill, a composite, or several at the same time, whose forces and displacements are added.
        steps: T, steps of a cycle.

    Returns:
        Positions ``[T + 1, 2]`` and velocities ``[T + 1, 2]`` from rest at the origin, and forces ``[T, 2]`` in units
        of the action. Those of one skill or two, or of a composite, are within its bounds; those of three may not be
        (weave + circle + sway reaches 1.16), and the environment clips them.

    Raises:
        ValueError: if a skill is not known, or ``steps`` is less than 1.
    """
    dt, decay, gain = _dynamics(steps)
    phase = np.arange(steps + 1) / steps
    velocities = np.zeros((steps + 1, 2))
    for part in parts_of(skill):
        velocities += np.stack(_VELOCITIES[part](phase), -1)
    forces = (velocities[1:] - decay * velocities[:-1]) / gain
    positions = np.concatenate([np.zeros((1, 2)), dt * velocities[1:].cumsum(0)])
    return positions, velocities, forces


def _dynamics(steps: int) -> tuple[float, float, float]:
    """The duration of a step, what is left of a velocity after it, and what a unit of force adds."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    decay = math.exp(-_FRICTION / steps)
    return 1 / steps, decay, (1 - decay) * _TOP


class PointSkillsEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Do what a skill does, for one cycle.

    Observation: ``[5]`` float32: the phase (0 at the start, 1 at the end of the cycle), x, y, and their velocities.
    Action: ``[2]`` float32, the force in x and y, clipped to -1 to 1. An episode starts at rest at the origin; nothing
    is random. It is truncated at the end of the cycle, and terminates where the mass hits the edge of the arena, -2 to
    2 in both directions. The reward of a step is minus the squared distance to where the skill would be now.

    `info` holds `position` (``[2]`` float64), `phase`, `cycles` (the same: how much of the cycle was played), and
    `tracking_error`, that distance.

    Args:
        skill: a skill, a composite, or several at the same time; see `parts_of`.
        steps: steps of the cycle.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the skill is not known, or the steps or the render mode make no sense.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 30}

    def __init__(self, skill: str | Sequence[str] = "toy", steps: int = 30, render_mode: str | None = None) -> None:
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.skill, self.steps, self.render_mode = skill, steps, render_mode
        self._dt, self._decay, self._gain = _dynamics(steps)
        self._reference = reference(skill, steps)[0]
        high = np.array([1, ARENA, ARENA, _TOP, _TOP], np.float32)
        low = -high
        low[0] = 0
        self.observation_space = spaces.Box(low, high)
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._velocity = np.zeros(2)
        self._track: list[np.ndarray] = []  # positions so far, [2] float64 each
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at rest at the origin."""
        verify_options(options)
        super().reset(seed=seed)
        self._velocity, self._track, self._over = np.zeros(2), [np.zeros(2)], False
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply a force for one step; see the class for the reward."""
        position, time = self._now()
        if self._over:
            raise RuntimeError("the episode is over: call reset before step")
        if np.shape(action) != (2,):
            raise ValueError(f"an action must have shape [2], got {action!r}")
        force = np.asarray(action, np.float64)
        if not np.isfinite(force).all():
            raise ValueError(f"an action must be finite, got {action!r}")
        self._velocity = self._decay * self._velocity + self._gain * np.clip(force, -1, 1)
        free = position + self._dt * self._velocity
        self._track.append(np.clip(free, -ARENA, ARENA))
        terminated = bool((np.abs(free) > ARENA).any())
        truncated = not terminated and time + 1 == self.steps
        self._over = terminated or truncated
        info = self._info()
        return self._observe(), -(info["tracking_error"] ** 2), terminated, truncated, info

    def _now(self) -> tuple[np.ndarray, int]:
        """The position and the time."""
        if not self._track:
            raise RuntimeError("call reset before step or render")
        return self._track[-1], len(self._track) - 1

    def _observe(self) -> np.ndarray:
        position, time = self._now()
        return np.concatenate([[time / self.steps], position, self._velocity]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        position, time = self._now()
        error, phase = float(np.linalg.norm(position - self._reference[time])), time / self.steps
        return {"position": position.copy(), "phase": phase, "cycles": phase, "tracking_error": error}

    def render(self) -> Any:
        """The arena, the path of the skill and the mass: text for `"ansi"`, `[H, W, 3]` uint8 for `"rgb_array"`."""
        if self.render_mode is None:
            return None
        self._now()
        if self.render_mode == "ansi":
            return _text(self._reference, self._track[-1])
        return _picture(self._reference, np.stack(self._track))


class PointTeacher(Saved):
    """Follows a skill: the skill's own forces, and a spring and a damper towards where the skill would be.

    a = f_t + 0.5 (x_t - x) + 0.15 (v_t - v), clipped to -1 to 1, where t is read off the phase.

    Args:
        skill: a skill, a composite, or several at the same time; see `parts_of`.
        steps: steps of the cycle.

    Raises:
        ValueError: if the skill is not known, or ``steps`` is less than 1.
    """

    def __init__(self, skill: str | Sequence[str], steps: int = 30) -> None:
        self.skill, self.steps = skill, steps
        self._positions, self._velocities, self._forces = reference(skill, steps)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Return the action for one observation or a batch, and the state as it was.

        Args:
            observation: `[5]` or `[B, 5]`.
            state: not used: all that matters can be observed.
            episode_start: not used.
            deterministic: without effect, the teacher is deterministic.

        Returns:
            The action, `[2]` or `[B, 2]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape or is not finite.
        """
        seen = np.asarray(observation, np.float64)
        if seen.ndim not in (1, 2) or seen.shape[-1] != 5:
            raise ValueError(f"the observation must have shape [5] or [B, 5], got {list(seen.shape)}")
        if not np.isfinite(seen).all():
            raise ValueError("the observation is NaN or infinite")
        # After the end of the cycle there is nothing left to do; the last force stands for it.
        time = np.clip(np.rint(seen[..., 0] * self.steps).astype(int), 0, self.steps - 1)
        action = self._forces[time] + _STIFFNESS * (self._positions[time] - seen[..., 1:3])
        action = action + _RESISTANCE * (self._velocities[time] - seen[..., 3:])
        return np.clip(action, -1, 1).astype(np.float32), state


def demonstrations(
    skills: Sequence[str],
    per_skill: int = 20,
    *,
    seed: int = 0,
    noise: float = 0.05,
    steps: int = 30,
    names: Sequence[str] | None = None,
) -> Demonstrations:
    """Let the teacher show skills, each for one cycle.

    The actions are those that were taken: the teacher's, with Gaussian noise added, clipped to the space. Every
    demonstration has random numbers of its own, which depend on ``seed``, its skill and its number alone.

    Args:
        skills: skills and composites; their demonstrations follow each other in this order.
        per_skill: demonstrations of each.
        seed: of the noise.
        noise: standard deviation of what is added to each action.
        steps: steps of a cycle.
        names: what the numbers of the task stand for; by default the ``skills`` but ``REST``, whose task is zeros. See
            `envs.data.tasks.task_of`.

    Returns:
        Demonstrations of ``steps`` actions, `task` saying which of the ``names`` each shows.

    Raises:
        ValueError: if a skill is not known, neither it nor its parts are among the names, one is given twice, or there
            are none; if ``per_skill`` or ``steps`` is less than 1, ``seed`` is negative, or ``noise`` is negative or
            not finite.
    """
    names = tasks.verify_names(skills, names, _COMPOSITES)
    verify_seed(seed)
    if per_skill < 1:
        raise ValueError(f"per_skill must be at least 1, got {per_skill}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be finite and not negative, got {noise}")
    pairs = [(PointSkillsEnv(skill, steps), PointTeacher(skill, steps)) for skill in skills]
    shown = [tasks.task_of(skill, _COMPOSITES, names) for skill in skills]
    episodes = []
    for skill, task, (env, teacher) in zip(skills, shown, pairs, strict=True):
        for number in range(per_skill):
            disturbances = noise * np.random.default_rng([seed, number, *skill.encode()]).standard_normal((steps, 2))
            episodes.append(_episode(env, teacher, disturbances, task))
    env = pairs[0][0]
    return Demonstrations.from_episodes(episodes, env.action_space, env.observation_space)


def _episode(env: PointSkillsEnv, teacher: PointTeacher, disturbances: np.ndarray, task: np.ndarray) -> Episode:
    """One episode of a teacher whose actions are disturbed by ``[T, 2]``."""
    pushes = iter(disturbances)

    def disturbed(_observation: Any, action: np.ndarray, _start: Any) -> np.ndarray:
        return np.clip(action + next(pushes), -1, 1).astype(np.float32)

    acting = Episodes(env, teacher, execute=disturbed, max_steps=len(disturbances))
    first = acting.begin()
    taken = list(acting)
    return Episode(
        np.stack([first, *(step.next_observation for step in taken)]),
        np.stack([step.action for step in taken]),
        task=task,
        rewards=np.array([step.reward for step in taken], np.float32),
        terminated=taken[-1].terminated,
        truncated=not taken[-1].terminated,
    )


# ---------------------------------------------------------------------- rendering

_COLUMNS, _ROWS = 41, 21  # of the text
_GROUND, _FLOOR, _PATH, _TRAIL, _MASS = (40, 44, 52), (250, 250, 247), (150, 206, 170), (226, 160, 120), (214, 94, 30)


def _text(path: np.ndarray, position: np.ndarray) -> str:
    """The arena in a frame: `.` the path of the skill, `@` the mass."""
    rows = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for mark, points in ((".", path), ("@", position[None])):
        for x, y in np.clip(points, -ARENA, ARENA) / (2 * ARENA) + 0.5:
            rows[round((1 - y) * (_ROWS - 1))][round(x * (_COLUMNS - 1))] = mark
    edge = "+" + "-" * _COLUMNS + "+"
    return "\n".join([edge, *("|" + "".join(row) + "|" for row in rows), edge]) + "\n"


def _picture(path: np.ndarray, track: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` uint8: the path of the skill, the trail, and the mass as a disc."""
    image = np.empty((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN, 3), np.uint8)
    image[:] = _GROUND
    image[MARGIN:-MARGIN, MARGIN:-MARGIN] = _FLOOR
    rows, columns = np.indices(image.shape[:2])
    for points, radius, colour in ((path, 3, _PATH), (track, 2, _TRAIL), (track[-1:], 8, _MASS)):
        for x, y in np.clip(points, -ARENA, ARENA) / (2 * ARENA) + 0.5:
            row, column = MARGIN + round((1 - y) * (SIDE - 1)), MARGIN + round(x * (SIDE - 1))
            image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = colour
    return image
