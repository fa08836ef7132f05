"""Choosing rows of a data set, by whatever numpy takes as an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Index", "chosen_rows", "split_rows"]

Index = int | slice | Sequence[int] | Tensor | np.ndarray


def chosen_rows(index: Index, count: int, name: str) -> Tensor:
    """Which of `count` rows an index chooses, `[N]` long on the CPU.

    Args:
        index: int, slice, integer sequence or tensor, or boolean mask `[count]`.
        count: how many rows there are.
        name: what a row is, for an error.

    Raises:
        IndexError: if it points outside the rows.
        ValueError: if it chooses nothing.
    """
    if isinstance(index, int | np.integer):
        rows = torch.tensor([int(index)])
    elif isinstance(index, slice):
        places = range(*index.indices(count))
        rows = torch.arange(len(places)) * places.step + places.start
    else:
        rows = torch.as_tensor(index).cpu()
    if rows.numel() == 0:
        raise ValueError(f"no {name}s: the selection is empty")
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise IndexError(f"a mask of {count} {name}s must have shape [{count}], got {list(rows.shape)}")
        rows = rows.nonzero()[:, 0]
        if len(rows) == 0:
            raise ValueError(f"no {name}s: the selection is empty")
    if rows.dim() != 1 or rows.is_floating_point():
        raise IndexError(f"{name}s are chosen by integers [N] or a mask, got {rows.dtype} {list(rows.shape)}")
    rows = rows.long()
    least, greatest = (int(end) for end in rows.aminmax())
    if least < -count or greatest >= count:
        raise IndexError(f"{name} {least if least < -count else greatest} of {count}")
    return torch.where(rows < 0, rows + count, rows) if least < 0 else rows


def split_rows(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint parts of `count` traces, in order; see `Demonstrations.split`.

    Raises:
        ValueError: if a part would be empty.
    """
    first = round(fraction * count)
    if not 0 < first < count:
        raise ValueError(f"a part of the split would be empty: fraction {fraction} of {count} traces")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:first]), np.sort(order[first:])
