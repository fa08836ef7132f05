"""What a demonstration shows, as numbers: one for each skill that has a name.

A skill's name may have plus signs between several, for all at the same time, and each of these may be that of a
composite. Composites are given as what they consist of by name; doing nothing is the one that consists of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["parts_of", "task_of", "verify_names"]

Composites = Mapping[str, Sequence[str]]


def parts_of(skill: str | Sequence[str], composites: Composites, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the skills that a skill, ``"kick+spin"`` or ``("kick", "spin")`` consists of; none for doing nothing.

    Args:
        skill: its name, or several.
        composites: what there is beside single skills.
        names: of skills that are not taken apart.

    Raises:
        ValueError: if there are none, or one of them has no name.
    """
    given = tuple(skill.split("+")) if isinstance(skill, str) else tuple(skill)
    if not given or "" in given:
        raise ValueError(f"at least one skill is needed, with a name, and one on either side of a plus: got {skill!r}")
    single = [(name,) if name in names else tuple(composites.get(name, (name,))) for name in given]
    return tuple(part for parts in single for part in parts)


def task_of(skill: str, composites: Composites, names: Sequence[str]) -> np.ndarray:
    """Return the task of a demonstration, ``[U]`` float32.

    It is the one-hot of the skill where that is among the names, else the sum of those of its parts: a composite has
    several ones, and doing nothing, which has no parts, has none.

    Args:
        skill: its name.
        composites: see `parts_of`.
        names: of all U skills.

    Raises:
        ValueError: if neither the skill is among the names nor all of its parts.
    """
    shown = (skill,) if skill in names else parts_of(skill, composites, names)
    if missing := [part for part in shown if part not in names]:
        raise ValueError(f"the skill {missing[0]!r} is not among the names {', '.join(names)}")
    return np.array([float(shown.count(name)) for name in names], np.float32)


def verify_names(skills: Sequence[str], names: Sequence[str] | None, composites: Composites) -> tuple[str, ...]:
    """Return what the numbers of the task stand for: the names, or, for None, all skills but doing nothing.

    Raises:
        ValueError: if there are no skills, one of them or a name is given twice, or a single text stands for several.
    """
    for what, given in (("skills", skills), ("names", () if names is None else names)):
        if isinstance(given, str) or (what == "skills" and not given):
            raise ValueError(f"{what} must be several names, at least one, got {given!r}")
        if len(set(given)) < len(given):
            raise ValueError(f"{what} must be given each once, got {', '.join(given)}")
    if names is not None:
        return tuple(names)
    return tuple(skill for skill in skills if parts_of(skill, composites))
