"""Demonstrations from an `.npz` file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ...._limits import Budget
from ..demonstrations import Demonstrations
from ..npz_reader import read_array
from .arrays import as_flags, demonstrations_of
from .files import PATH, begins_like, existing, naming

__all__ = ["from_npz", "usual_columns"]

Space = spaces.Space[Any]

# What the arguments of `from_arrays` are called elsewhere. dones say where episodes end, for whatever reason.
_USUAL = {
    "observations": ("obs",),
    "actions": ("acts",),
    "lengths": (),
    "episode_ends": ("dones",),
    "next_observations": ("next_obs",),
    "rewards": ("rews",),
    "terminated": ("terminals", "terminations"),
    "truncated": ("timeouts", "truncations"),
}


def from_npz(
    path: PATH,
    *,
    action_space: Space | int | None = None,
    observation_space: Space | None = None,
    names: Mapping[str, Any] | None = None,
    drop_last_action: bool = False,
) -> Demonstrations:
    """Return the demonstrations in an `.npz` file: arrays of all episodes, one after the other.

    They are those of `from_arrays`, under its names or the usual ones: observations (obs), actions (acts), rewards
    (rews), next_observations (next_obs); and, to say where episodes end, lengths, episode_ends (dones), terminated
    (terminals, terminations), truncated (timeouts, truncations). Other arrays are left alone. Nothing is unpickled.

    A file that `Demonstrations.save` wrote is read too; it holds its spaces.

    Args:
        path: the file, compressed or not.
        action_space: Discrete, MultiDiscrete or Box, or a number of actions; needed unless `save` wrote the file.
        observation_space: of the environment; None for vectors, images, and dicts of these.
        names: what arrays are called here, by argument of `from_arrays`; for observations a dict of names takes several
            arrays, as the parts of a Dict.
        drop_last_action: as in `from_arrays`.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: for spaces that are not supported.
        ValueError: naming the file, if it is truncated, damaged or no `.npz` file, lacks an array, or holds something
            that `from_arrays` refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", obs=np.zeros((5, 2)), chosen=np.array([0, 1, 1]), lengths=[2, 1])
        ...     from_npz(f"{folder}/a.npz", action_space=2, names={"actions": "chosen"})
        Demonstrations(2 traces, 3 actions (1 to 2 each), ...)
    """
    path = existing(path)
    with naming(path):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"it is no whole .npz file{begins_like(path)}")
        with zipfile.ZipFile(path) as archive:
            budget = Budget(path.stat().st_size)
            for info in archive.infolist():  # a damaged name would hide an array that may be missing
                archive.open(info).close()
                if info.comment:
                    raise ValueError(f"{info.filename} is damaged: it has a comment")

            def read(name: str) -> np.ndarray:
                return read_array(archive, archive.getinfo(f"{name}.npy"), budget)

            there = [name.removesuffix(".npy") for name in archive.namelist()]
            ours = "format" in there and str(read("format")).startswith("pyrocontrol-demonstrations")
            columns, called = ({}, {}) if ours else usual_columns(there, read, names)
    if ours:
        found = Demonstrations.load(path)
        if action_space is None and observation_space is None:
            return found
        with naming(path):
            return Demonstrations.from_episodes(
                found.to_episodes(), action_space or found.action_space, observation_space or found.observation_space
            )
    if action_space is None:
        raise TypeError(f"{path}: give the action_space, which is not in the file")
    return demonstrations_of(
        columns, action_space, observation_space, drop_last_action=drop_last_action, path=path, called=called
    )


def usual_columns(
    there: Iterable[str], read: Callable[[str], Any], names: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Find arrays by their usual names.

    Args:
        there: the names of all arrays.
        read: reads the array of a name.
        names: the names of some columns, a dict of names where a column is several arrays.

    Returns:
        Those arguments of `from_arrays` that there are, and what they are called here.

    Raises:
        ValueError: if one is missing, or there are several for one column.
    """
    there, found = sorted(there), dict(names or {})
    if unknown := [column for column in found if column not in _USUAL]:
        raise ValueError(f"names are for {', '.join(_USUAL)}, not for {', '.join(map(str, unknown))}")
    given = [one for name in found.values() for one in (name.values() if isinstance(name, Mapping) else [name])]
    if missing := [name for name in given if name not in there]:
        raise ValueError(f"it has no array {missing[0]!r}: it has {there}")
    for column, others in _USUAL.items():
        matching = [name for name in others if name in there and name not in given]
        if column in there and column not in given:
            matching = [column]
        if len(matching) > 1 and column not in found:
            raise ValueError(f"which are the {column}, {' or '.join(matching)}? Say names={{{column!r}: ...}}")
        if matching:
            found.setdefault(column, matching[0])
    for column in ("observations", "actions"):
        if column not in found:
            wanted = " or ".join([column, *_USUAL[column]])
            raise ValueError(f"it has no {wanted}: it has {there}; say names={{{column!r}: ...}}")
    columns = {
        column: {key: read(one) for key, one in name.items()} if isinstance(name, Mapping) else read(name)
        for column, name in found.items()
    }
    called = {column: name for column, name in found.items() if isinstance(name, str)}
    if found.get("episode_ends") == "dones":  # of episodes that terminated; those that were cut off end too
        flags = {
            called[name]: as_flags(called[name], columns[name])
            for name in ("episode_ends", "terminated", "truncated")
            if name in columns
        }
        if len({flag.shape for flag in flags.values()}) > 1:
            shapes = ", ".join(f"{name} {[*flag.shape]}" for name, flag in flags.items())
            raise ValueError(f"flags must be of one shape, got {shapes}")
        columns["episode_ends"] = np.logical_or.reduce([*flags.values()])
    return columns, called
