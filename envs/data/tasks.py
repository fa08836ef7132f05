"""What a demonstration shows, as numbers: one for each skill that has a name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["task_of"]


def task_of(skill: str, parts: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the task of a demonstration, ``[U]`` float32.

    It is the one-hot of the skill where that is among the names, else the sum of those of its parts: a composite has
    several ones, and doing nothing, which has no parts, has none.

    Args:
        skill: its name.
        parts: the skills that it consists of.
        names: of all U skills.

    Raises:
        ValueError: if neither the skill is among the names nor all of its parts.
    """
    shown = (skill,) if skill in names else tuple(parts)
    if missing := [part for part in shown if part not in names]:
        raise ValueError(f"the skill {missing[0]!r} is not among the names {', '.join(names)}")
    return np.array([float(shown.count(name)) for name in names], np.float32)
