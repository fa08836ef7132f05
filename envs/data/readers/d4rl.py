"""Demonstrations from flat arrays in the form of D4RL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ..demonstrations import Demonstrations
from .arrays import demonstrations_of
from .files import PATH
from .hdf5 import open_hdf5
from .npz import usual_columns

__all__ = ["from_d4rl"]

Space = spaces.Space[Any]


def from_d4rl(
    source: Mapping[str, Any] | PATH, *, action_space: Space | int, observation_space: Space | None = None
) -> Demonstrations:
    """Return the demonstrations in arrays, or in an HDF5 file, of the form of D4RL (version 1.1).

    The arrays are of all N steps: ``observations`` `[N, *O']`, ``actions`` `[N, *A']`, ``rewards`` `[N]`,
    ``terminals`` `[N]` and ``timeouts`` `[N]`, flags of any number type, and ``next_observations`` `[N, *O']`. Only the
    first two and an end, terminals or timeouts, must be there. Infos and metadata are not kept.

    Where there are no next observations, nothing follows the last action of an episode; it is left away, and the
    episode becomes a fragment, neither terminated nor truncated. Where there are, but no timeouts, as in what
    ``d4rl.qlearning_dataset`` returns, an episode was also cut off where the next observation is not the one that
    follows (by more than 1e-6).

    Args:
        source: the arrays by name, such as ``env.get_dataset()`` returns, or the HDF5 file.
        action_space: of the environment, or a number of actions.
        observation_space: of the environment; None for vectors and images.

    Raises:
        ImportError: without h5py, for a file.
        FileNotFoundError: if there is no such file.
        TypeError: for spaces that are not supported.
        ValueError: naming the file, if it is truncated, damaged or no HDF5 file, has links to other files, lacks an
            array, or holds something that `from_arrays` refuses.

    Example:
        >>> arrays = {"observations": np.zeros((3, 2)), "actions": np.zeros((3, 1)), "terminals": np.array([0.0, 0, 1])}
        >>> from_d4rl(arrays, action_space=spaces.Box(-1, 1, (1,)))
        Demonstrations(1 trace, 2 actions (2 to 2 each), ...)
    """
    if isinstance(source, Mapping):
        path, (columns, called) = None, usual_columns(source, source.__getitem__)
    else:
        path = source
        with open_hdf5(path) as file:
            columns, called = usual_columns(file.names(), file.read)
    if "next_observations" in columns and not columns.keys() & {"truncated", "lengths", "episode_ends"}:
        seen, following = (np.asarray(columns[name]) for name in ("observations", "next_observations"))
        if seen.ndim and len(seen) > 1 and seen.shape == following.shape and seen.dtype.kind in "fiub":
            far = np.abs(seen[1:].astype(np.float64) - following[:-1]) > 1e-6
            jumps = np.append(far.reshape(len(far), -1).any(1), False)
            stopped = np.asarray(columns.get("terminated", 0)).reshape(-1) != 0
            columns["truncated"] = jumps & ~stopped if len(stopped) in (1, len(jumps)) else jumps
            called["truncated"] = "timeouts"
    return demonstrations_of(columns, action_space, observation_space, drop_last_action=True, path=path, called=called)
