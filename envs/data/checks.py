"""What observations, actions and whole traces must look like.

Shapes: `...` the dimensions of a batch, B traces, R rows of all of them one after the other, O observation numbers, A
action numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import action_size, observation_bytes, observation_size

__all__ = [
    "TraceError",
    "bytes_if_they_are",
    "check_action_kind",
    "check_traces",
    "number_of_actions",
    "observation_space_of",
    "outside_space",
    "refuse",
]

Space = spaces.Space[Any]


class TraceError(ValueError):
    """Something wrong with one trace; the message begins with where.

    Attributes:
        trace: which trace.
        step: which of its steps.
        what: what is wrong.
        unit: what is counted, ``"step"`` of the environment or ``"call"`` of a program.
    """

    def __init__(self, trace: int, step: int, what: str, unit: str = "step") -> None:
        super().__init__(f"trace {trace}, {unit} {step}: {what}")
        self.trace, self.step, self.what, self.unit = trace, step, what, unit


# ---------------------------------------------------------------------- kinds and spaces


def observation_space_of(dtype: torch.dtype, width: int, space: Space | None) -> Space:
    """Return the space of flattened observations: the given one, by default all vectors of their type.

    Raises:
        TypeError: for a space that has no flat form.
        ValueError: for a space of another width, or observations that are neither floats nor bytes of such a space.
    """
    whole = dtype == torch.uint8 and space is not None and observation_bytes(space).all()
    if not (dtype.is_floating_point or whole):
        raise ValueError(f"observations must be floating point, got {dtype}")
    if space is None:
        return spaces.Box(-np.inf, np.inf, (width,), np.float64 if dtype == torch.float64 else np.float32)
    if observation_size(space) != width:
        raise ValueError(f"the observations have width {width}, their space {observation_size(space)}: {space}")
    return space


def bytes_if_they_are(observations: Tensor, space: Space) -> Tensor:
    """Return floats of a space of bytes as the bytes that they are; unchanged where one of them is none."""
    if observations.is_floating_point() and (of_bytes := observation_bytes(space)).size and of_bytes.all():
        cast = observations.clamp(0, 255).to(torch.uint8)
        return cast if torch.equal(cast.to(observations.dtype), observations) else observations
    return observations


def number_of_actions(space: Space) -> int:
    """Return n of a Discrete.

    Raises:
        TypeError: for another space.
    """
    if not isinstance(space, spaces.Discrete):
        raise TypeError(f"only Discrete actions are numbered and have a null, these are {space}")
    return int(space.n)


def check_action_kind(shape: tuple[int, ...], dtype: torch.dtype, space: Space, batch: tuple[int, ...]) -> None:
    """Refuse stored actions of another shape or type than their space's.

    Raises:
        ValueError: unless they are `[*batch]` long for a Discrete, `[*batch, A]` long for a MultiDiscrete, or
            `[*batch, A]` floats for a Box.
    """
    wanted = batch if isinstance(space, spaces.Discrete) else (*batch, action_size(space))
    if tuple(shape) != wanted:
        raise ValueError(f"actions must have shape {list(wanted)}, got {tuple(shape)}: the space is {space}")
    if isinstance(space, spaces.Box):
        if not dtype.is_floating_point:
            raise ValueError(f"actions must be floating point, got {dtype}: the space is {space}")
    elif dtype != torch.long:
        raise ValueError(f"actions must be long integers, got {dtype}")


def outside_space(actions: Tensor, space: Space) -> tuple[int, str] | None:
    """Find the first action that is not in its space.

    Args:
        actions: stored actions `[R]` or `[R, A]`, of the kind that :func:`check_action_kind` wants.
        space: their space.

    Returns:
        Its row and what is wrong with it, or None.
    """
    if isinstance(space, spaces.Discrete):
        last = int(space.n) - 1
        place = _first((actions < 0) | (actions > last))
        return None if place is None else (place[0], f"an action outside 0..{last} (it is {int(actions[place])})")
    if isinstance(space, spaces.Box):
        if (place := _first_not_finite(actions)) is not None:
            return place[0], "the action is NaN or infinite"
        bounds = space.low.reshape(-1), space.high.reshape(-1)
    else:
        count: np.ndarray = space.nvec.astype(np.int64)  # type: ignore[attr-defined]
        bounds = np.zeros_like(count), count - 1
    # Rounded as the actions were if they are now of another precision; rounding keeps the order of numbers.
    low, high = (torch.as_tensor(bound, dtype=actions.dtype, device=actions.device) for bound in bounds)
    place = _first((actions < low) | (actions > high))
    if place is None:
        return None
    row, component = place
    allowed = f"{low[component].item():g}..{high[component].item():g}"
    return row, f"an action outside {allowed} (component {component} is {actions[place].item():g})"


# ---------------------------------------------------------------------- traces


def check_traces(
    rows: Mapping[str, Tensor],
    steps: np.ndarray,
    call_steps: np.ndarray,
    task: Tensor,
    action_space: Space,
    first: int = 0,
) -> None:
    """Refuse traces that say something bad.

    Args:
        rows: by name the rows of all traces: ``observations`` `[R, O]`, ``actions``, ``arguments`` and, where there
            are any, ``rewards`` and ``calls``.
        steps: `[B]`, observations of each trace.
        call_steps: `[B]`, annotated calls of each.
        task: `[B, U]`.
        action_space: of the actions.
        first: number of the first of these traces, for errors.

    Raises:
        TraceError: naming the trace and the step, if a number is NaN or infinite, an action is
            outside its space or a call is none.
        ValueError: if there are arguments or calls of actions that are not Discrete.
    """
    if not isinstance(action_space, spaces.Discrete) and ("calls" in rows or rows["arguments"].shape[-1]):
        raise ValueError(f"arguments and calls are of Discrete actions, these are {action_space}")

    def refuse_row(place: tuple[int, ...] | None, counts: np.ndarray, what: str, unit: str = "step") -> None:
        if place is not None:
            ends = np.cumsum(counts)
            trace = int(np.searchsorted(ends, place[0], "right"))
            raise TraceError(first + trace, place[0] - int(ends[trace] - counts[trace]), what, unit)

    acts, once = steps - 1, np.ones_like(steps)
    refuse_row(_first_not_finite(task), once, "the task is NaN or infinite")
    for name, what, counts in (
        ("observations", "observation", steps),
        ("arguments", "action argument", acts),
        ("rewards", "reward", acts),
    ):
        if name in rows:
            refuse_row(_first_not_finite(rows[name]), counts, f"the {what} is NaN or infinite")
    if problem := outside_space(rows["actions"], action_space):
        refuse_row(problem[:1], acts, problem[1])
    if "calls" in rows:
        choice = rows["calls"][:, 0]
        refuse_row(_first_not_finite(rows["calls"]), call_steps, "the annotated call is NaN or infinite", "call")
        if (place := _first((choice != choice.round()) | (choice < 0))) is not None:
            what = f"the annotated choice is no integer from 0 on (it is {choice[place].item():g})"
            refuse_row(place, call_steps, what, "call")


def refuse(bad: Tensor, what: str, value: Tensor | None = None, unit: str = "step") -> None:
    """Raise naming the first trace and step where `bad` `[B, T]` holds."""
    if (place := _first(bad)) is not None:
        shown = "" if value is None else f" (it is {value[place].item():g})"
        raise TraceError(place[0], place[1], what + shown, unit)


def _first(bad: Tensor) -> tuple[int, ...] | None:
    """Where the first true element is, or None."""
    return tuple(torch.nonzero(bad)[0].tolist()) if bool(bad.any()) else None


def _first_not_finite(values: Tensor) -> tuple[int, ...] | None:
    """Where the first number that is NaN or infinite is, or None."""
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):  # which a sum with one of them never is
        return None
    return _first(~torch.isfinite(values))
