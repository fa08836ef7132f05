"""Demonstrations from an HDF5 file of robomimic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ..demonstrations import Demonstrations
from .arrays import demonstrations_of
from .files import PATH, chosen
from .hdf5 import Hdf5, open_hdf5

__all__ = ["from_robomimic"]

Space = spaces.Space[Any]


def from_robomimic(
    path: PATH,
    observations: str | Sequence[str],
    filter: str | None = None,
    *,
    action_space: Space | int | None = None,
    observation_space: Space | None = None,
) -> Demonstrations:
    """Return the demonstrations in an HDF5 file of robomimic (the layout of versions 0.1 to 0.5).

    It holds a group a demonstration, ``data/demo_0`` and so on, taken in the order of their numbers, with A steps each:
    ``obs/NAME`` `[A, ...]`, ``next_obs/NAME`` `[A, ...]`, ``actions`` `[A, ...]`, ``rewards`` `[A]`, ``dones`` `[A]`;
    and lists of demonstrations, ``mask/FILTER``. Simulator states and the attributes (``env_args``) are not kept.

    The last observation comes from ``next_obs``. Without these, nothing follows the last action, which is left away. A
    demonstration terminated if ``dones`` says so at its last action that is kept, and is a fragment otherwise. It goes
    on to the end of its group: many recordings hold on for some steps after their first ``dones``.

    Args:
        path: the file.
        observations: the names of those to read, such as ``("robot0_eef_pos", "object")``, as the parts of a Dict;
            the name of a single one, not in a tuple, for observations that are no dict.
        filter: takes only the demonstrations listed under ``mask/FILTER``.
        action_space: of the environment; by default a Box of -1 to 1, in which robomimic keeps all actions.
        observation_space: by default Boxes without bounds; 0 to 255 for images, which stay uint8.

    Raises:
        ImportError: without h5py.
        FileNotFoundError: if there is no such file.
        TypeError: for spaces that are not supported.
        ValueError: naming the file, if it is truncated, damaged, no HDF5 file or of another layout, has links to other
            files, lacks a name, or holds something that `from_arrays` refuses; trace i is the i-th demonstration, by
            number, of those that are read.

    Example:
        >>> from_robomimic("lift/ph/low_dim_v15.hdf5", ("robot0_eef_pos", "object"), "train")  # doctest: +SKIP
    """
    columns: dict[str, list[Any]] = {"observations": [], "actions": []}
    with open_hdf5(path) as file:
        demos = [f"data/{name}" for name in _demos(file, filter)]
        for demo in demos:
            _append(file, demo, observations, columns)
        count = len(columns["actions"])
        if count == 0:
            raise ValueError("no demonstrations: the data set is empty")
        for name in ("rewards", "dones"):
            if len(columns.get(name, columns["actions"])) != count:
                raise ValueError(f"only some of the demonstrations have {name}")
        if action_space is None:
            action = columns["actions"][0]
            action_space = spaces.Box(-1, 1, action.shape[1:], action.dtype)
    columns["terminated"] = columns.pop("dones", [False] * count)
    return demonstrations_of(columns, action_space, observation_space, path=path, called={"terminated": "dones"})


def _demos(file: Hdf5, filter: str | None) -> list[str]:
    """The names of the demonstrations, in order."""
    there = file.names("data")
    if not there:
        raise ValueError(f"it has no demonstrations, data/demo_0 and so on: it has {file.names()}")
    if unknown := [name for name in there if not re.fullmatch(r"demo_\d+", name)]:
        raise ValueError(f"data/{unknown[0]} is no demo_NUMBER")
    if filter is not None:
        names = {name: None for name in file.texts(f"mask/{filter}")}
        if missing := [name for name in names if name not in there]:
            raise ValueError(f"mask/{filter} lists {missing[0]}, which is not in data")
        there = [*names]
    return sorted(there, key=lambda name: int(name.removeprefix("demo_")))


def _append(file: Hdf5, demo: str, observations: str | Sequence[str], columns: dict[str, list[Any]]) -> None:
    """Read one demonstration."""
    parts = chosen(observations, {name: f"obs/{name}" for name in file.names(f"{demo}/obs")})
    names = list(parts) if isinstance(parts, dict) else [str(observations)]
    actions = file.read(f"{demo}/actions")
    follows = set(names) <= set(file.names(f"{demo}/next_obs"))
    kept = len(actions) - (not follows)
    if kept == 0 and len(actions):
        return

    def read(name: str) -> np.ndarray:
        value = file.read(f"{demo}/{name}")
        if value.shape[:1] != actions.shape[:1] or not len(actions):
            raise ValueError(f"{demo}/{name} has {len(value)} rows for {len(actions)} actions")
        return value

    seen = {name: read(f"obs/{name}") for name in names}
    if follows:
        last = {name: file.read(f"{demo}/next_obs/{name}", slice(-1, None)) for name in names}
        seen = {name: np.concatenate([value, last[name]]) for name, value in seen.items()}
    columns["observations"].append(seen if isinstance(parts, dict) else seen[names[0]])
    columns["actions"].append(actions[:kept])
    there = file.names(demo)
    if "rewards" in there:
        columns.setdefault("rewards", []).append(read("rewards")[:kept])
    if "dones" in there:
        columns.setdefault("dones", []).append(read("dones").reshape(-1)[kept - 1])
