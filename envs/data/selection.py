"""Choosing rows of a data set, by whatever numpy takes as an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

__all__ = ["Index", "chosen_rows", "split_rows"]

Index = int | slice | Sequence[int] | Tensor | np.ndarray


def chosen_rows(rows: np.ndarray, index: Index, name: str) -> np.ndarray:
    """Return those of some rows that an index chooses, `[N]`.

    Args:
        rows: `[count]`.
        index: int, slice, integer sequence or tensor, or boolean mask `[count]`.
        name: what a row is, for an error.

    Raises:
        IndexError: if it points outside the rows.
        ValueError: if it chooses nothing.
    """
    if isinstance(index, bool | np.bool_) or not isinstance(
        index, int | np.integer | slice | Sequence | Tensor | np.ndarray
    ):
        raise IndexError(f"{name}s are chosen by an integer, a slice, integers or a mask, got {index!r}")
    if isinstance(index, Tensor):
        index = (index if index.is_cpu else index.cpu()).numpy()
    elif isinstance(index, int | np.integer):
        index = [int(index)]
    elif isinstance(index, slice):
        index = np.arange(*index.indices(len(rows)))
    else:
        index = np.asarray(index if len(index) else [], None if len(index) else np.int64)
    try:
        found = rows[index]
    except IndexError:
        given = np.asarray(index)
        if given.dtype == bool:
            what = f"a mask of {len(rows)} {name}s must have shape [{len(rows)}], got {[*given.shape]}"
        elif given.dtype.kind in "iu":
            outside = given.min() if given.min() < -len(rows) else given.max()
            what = f"{name} {outside} of {len(rows)}"
        else:
            what = f"{name}s are chosen by integers [N] or a mask, got {given.dtype} {[*given.shape]}"
        raise IndexError(what) from None
    if not found.size:
        raise ValueError(f"no {name}s: the selection is empty")
    if found.ndim != 1:
        raise IndexError(f"{name}s are chosen by integers [N] or a mask, got shape {[*found.shape]}")
    return found


def split_rows(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint parts of `count` traces, in order; see `Demonstrations.split`.

    Raises:
        ValueError: if a part would be empty.
    """
    if not isinstance(fraction, int | float) or fraction != fraction:
        raise ValueError(f"the fraction of a split must be a number, got {fraction!r}")
    first = round(fraction * count)
    if not 0 < first < count:
        raise ValueError(f"a part of the split would be empty: fraction {fraction} of {count} traces")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:first]), np.sort(order[first:])
