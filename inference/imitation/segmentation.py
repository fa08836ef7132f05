"""How well segments found in demonstrations agree with known ones: labels up to their names, and boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["match_labels", "segmentation_scores"]


def match_labels(found: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """Return the true label that each found label stands for, so that most steps agree; no two stand for the same.

    Args:
        found: labels of each demonstration, long ``[T]``, from 0 on; at most a dozen different ones.
        true: likewise.

    Returns:
        Long ``[K]``, K the number of labels: ``match[found[i]]`` can be compared with ``true[i]``.

    Raises:
        ValueError: if there are no labels, or the two do not fit together.
    """
    if not len(true) or [a.shape for a in found] != [b.shape for b in true]:
        raise ValueError("found and true labels must be of the same demonstrations, step by step")
    pairs = torch.stack([torch.cat(list(found)), torch.cat(list(true))])
    count = int(pairs.max()) + 1
    agree = (pairs[0] * count + pairs[1]).bincount(minlength=count**2).reshape(count, count)
    # For every set of names (bits) that the labels so far may have: how many steps agree at best, and with which names.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for row in agree.tolist():
        longer: dict[int, tuple[int, list[int]]] = {}
        for taken, (total, names) in best.items():
            for name in range(count):
                if not taken >> name & 1:
                    candidate = total + row[name], [*names, name]
                    longer[taken | 1 << name] = max(longer.get(taken | 1 << name, candidate), candidate)
        best = longer
    return torch.tensor(best[2**count - 1][1], device=pairs.device)


def segmentation_scores(found: Sequence[Tensor], true: Sequence[Tensor], *, tolerance: int = 1) -> dict[str, float]:
    """Return the accuracy of labels, named as :func:`match_labels` does, and the F1 of boundaries.

    Args:
        found: labels of each demonstration, long ``[T]``, from 0 on; at most a dozen different ones.
        true: likewise.
        tolerance: how many steps a found boundary may be from the true one that it is counted for.

    Returns:
        ``accuracy``, the share of all steps with the right label, and ``boundary_f1``; a boundary is a step whose label
        is not that of the step before, and counts once.

    Raises:
        ValueError: if there are no labels, or the two do not fit together.
    """
    names = match_labels(found, true)
    right = torch.cat([names[a] == b for a, b in zip(found, true, strict=True)])
    hits = boundaries = 0
    for a, b in zip(map(_boundaries, found), map(_boundaries, true), strict=True):
        boundaries += len(a) + len(b)
        while a and b:  # the earliest of both fit each other, or the earlier of the two fits none
            gap = a[-1] - b[-1]
            hits += abs(gap) <= tolerance
            if gap <= tolerance:
                a.pop()
            if gap >= -tolerance:
                b.pop()
    return {"accuracy": float(right.float().mean()), "boundary_f1": 2 * hits / max(boundaries, 1)}


def _boundaries(labels: Tensor) -> list[int]:
    """The steps at which a label begins, the first step apart, latest first."""
    return (labels[1:] != labels[:-1]).nonzero()[:, 0].flip(0).tolist()
