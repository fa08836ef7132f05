"""Demonstrations from and to trajectories of the package imitation: bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

from ..demonstrations import Demonstrations
from .arrays import demonstrations_of
from .files import imported

__all__ = ["from_imitation", "refuse_extras", "to_imitation"]

Space = spaces.Space[Any]

# The info by which imitation tells an end that was truncated too from one that only terminated. Stable-Baselines3's
# TimeLimit.truncated says nothing of a truncation at a terminal state.
_TRUNCATED, _ALSO_TRUNCATED = "TimeLimit.truncated", "pyrocontrol.truncated"


def from_imitation(
    trajectories: Iterable[Any], action_space: Space | int, observation_space: Space | None = None
) -> Demonstrations:
    """Return demonstrations from trajectories of the package imitation.

    A terminal trajectory is truncated where its last info says so under ``TimeLimit.truncated``, and terminated
    otherwise; one that is not terminal is a fragment. Other infos are not kept.

    Args:
        trajectories: ``imitation.data.types.Trajectory``, or all of them ``TrajectoryWithRew``.
        action_space: of the environment, or a number of actions.
        observation_space: of the environment; None for vectors, images, and ``DictObs`` of these.

    Raises:
        ImportError: without imitation.
        TypeError: for something else than trajectories, or spaces that are not supported.
        ValueError: naming trace and step, where `Demonstrations` refuses something or a space's type cannot hold a
            number.
    """
    types = imported("imitation.data.types")
    names = ("observations", "actions", "rewards", "terminated", "truncated")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for index, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, types.Trajectory):
            raise TypeError(f"trace {index} must be a Trajectory of imitation, got {type(trajectory).__name__}")
        seen = trajectory.obs
        info = {} if trajectory.infos is None else dict(trajectory.infos[-1])
        cut = bool(info.get(_TRUNCATED, False))
        row = (
            seen.unwrap() if isinstance(seen, types.DictObs) else seen,
            trajectory.acts,
            getattr(trajectory, "rews", None),
            bool(trajectory.terminal) and not cut,
            cut or bool(info.get(_ALSO_TRUNCATED, False)),
        )
        for name, value in zip(names, row, strict=True):
            columns[name].append(value)
    if all(one is None for one in columns["rewards"]):
        del columns["rewards"]
    return demonstrations_of(columns, action_space, observation_space)


def to_imitation(demonstrations: Demonstrations) -> list[Any]:
    """Return demonstrations as trajectories of the package imitation; :func:`from_imitation` returns them bit for bit.

    Args:
        demonstrations: without tasks, arguments and calls. Observations of a Dict space become ``DictObs``.

    Returns:
        ``TrajectoryWithRew`` where there are rewards, else ``Trajectory``; ``terminal`` if terminated or truncated, and
        ``infos[-1]["TimeLimit.truncated"]`` as Stable-Baselines3 has it: if truncated and not terminated.

    Raises:
        ImportError: without imitation.
        TypeError: for observations that are tuples or nested dicts, which imitation does not have.
        ValueError: for demonstrations with tasks, arguments or calls.
    """
    types = imported("imitation.data.types")
    refuse_extras(demonstrations, "a trajectory of imitation")
    space = demonstrations.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if any(isinstance(part, spaces.Dict | spaces.Tuple) for part in parts):
        raise TypeError(f"imitation has observations that are arrays or dicts of arrays, not of {space}")
    trajectories = []
    for episode in demonstrations.to_episodes():
        infos = np.array([{} for _ in episode.actions])
        infos[-1] = {_TRUNCATED: episode.truncated and not episode.terminated}
        if episode.truncated and episode.terminated:
            infos[-1][_ALSO_TRUNCATED] = True
        observations = episode.observations
        fields = {
            "obs": types.DictObs(observations) if isinstance(observations, dict) else observations,
            "acts": episode.actions,
            "infos": infos,
            "terminal": bool(episode.terminated or episode.truncated),
        }
        if episode.rewards is None:
            trajectories.append(types.Trajectory(**fields))
        else:
            trajectories.append(types.TrajectoryWithRew(**fields, rews=episode.rewards))
    return trajectories


def refuse_extras(demonstrations: Demonstrations, target: str) -> None:
    """Refuse demonstrations with tasks, arguments or calls.

    Raises:
        ValueError: saying that ``target`` has no place for them.
    """
    found = [name for name in ("task", "arguments") if getattr(demonstrations, name).shape[-1]]
    found += ["calls"] * (demonstrations.calls is not None)
    if found:
        raise ValueError(f"{target} has no place for the {' and '.join(found)} of these demonstrations")
