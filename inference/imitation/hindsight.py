"""Goals in hindsight: whatever a demonstration came to, its actions are a demonstration of how to come there.

Shapes: B traces of T steps, N of which have actions; O observation numbers, G goal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["GoalData", "GoalTraces", "hindsight"]


class GoalData(Protocol):
    """Single steps, each of which can be given a goal, such as `Transitions`."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: Tensor, /) -> Self:
        """Those of an index."""
        ...

    def with_goals(self, goals: Tensor) -> Self:
        """The same with goals ``[N, G]``."""
        ...


Data = TypeVar("Data", bound=GoalData)
Data_co = TypeVar("Data_co", bound=GoalData, covariant=True)


class GoalTraces(Protocol[Data_co]):
    """Whole traces, such as `Demonstrations`: what goals are found in.

    Attributes:
        observations: ``[B, T, O]``.
        lengths: long ``[B]``, observations of each trace.
        mask: bool ``[B, T]``, which observations exist.
        acted: bool ``[B, T]``, at which steps an action was taken: all but the last of each trace.
        observation_parts: where in an observation each of its parts stands, by name.
    """

    @property
    def observations(self) -> Tensor: ...  # noqa: D102

    @property
    def lengths(self) -> Tensor: ...  # noqa: D102

    @property
    def mask(self) -> Tensor: ...  # noqa: D102

    @property
    def acted(self) -> Tensor: ...  # noqa: D102

    @property
    def observation_parts(self) -> dict[str, slice]: ...  # noqa: D102

    def transitions(self) -> Data_co:
        """The steps with actions, trace after trace."""
        ...


def hindsight(
    demonstrations: GoalTraces[Data],
    achieved: Callable[[Tensor], Tensor] | slice | str,
    *,
    strategy: Literal["future", "final", "fixed"] = "future",
    per_step: int = 4,
    seed: int = 0,
    horizon: int | None = None,
) -> Data:
    """Return the data points (s_t, g = achieved(o_t'), a_t), t' > t, of the same trace.

    The lecture's hindsight: each state is the goal of the trajectory that leads to it, so that no demonstration has to
    be labelled with one; pi(a | s, g) is then cloned from these points. The strategies are those of M. Andrychowicz et
    al., "Hindsight Experience Replay" (2017), Section 4.5, as far as they apply to demonstrations. With o_A the last
    observation of a trace, after its A actions, t = 0..A - 1:

    - ``"future"``: t' uniform over t + 1..A, or over t + 1..min(t + horizon, A); ``per_step`` independent draws a step.
    - ``"final"``: t' = A; one point a step.
    - ``"fixed"``: t' = min(t + horizon, A), the same distance ahead at every step until the trace ends; one point a
      step.

    Args:
        demonstrations: such as `Demonstrations`; terminated, truncated or fragments alike.
        achieved: what goal an observation achieves: a function of observations ``[..., O]`` to goals ``[..., G]``, a
            slice of the O numbers, or the name of a part of the observation, such as ``"achieved_goal"`` in the dicts
            of goal environments.
        strategy: see above.
        per_step: points of each step, for ``"future"``.
        seed: decides which observations are drawn.
        horizon: furthest t' - t; needed for ``"fixed"``.

    Returns:
        What ``demonstrations.transitions()`` gives, step after step, the points of one step together, with ``goals``
        ``[N per_step, G]`` or ``[N, G]``.

    Raises:
        TypeError: if the demonstrations are not whole traces.
        ValueError: for an unknown strategy or part, numbers out of range, or goals of another shape or kind.
    """
    if not all(hasattr(demonstrations, name) for name in ("lengths", "acted", "mask", "transitions")):
        raise TypeError(f"goals are found in whole traces, such as Demonstrations, got {type(demonstrations).__name__}")
    if strategy not in ("future", "final", "fixed"):
        raise ValueError(f"strategy must be 'future', 'final' or 'fixed', not {strategy!r}")
    if per_step < 1 or horizon is not None and horizon < 1:
        raise ValueError(f"per_step and horizon must be at least 1, not {per_step} and {horizon}")
    if strategy == "fixed" and horizon is None:
        raise ValueError("strategy 'fixed' needs a horizon: how many steps ahead the goal is")
    if strategy == "final" and horizon is not None:
        raise ValueError("strategy 'final' takes no horizon: its goal is the end of the trace")
    lengths = demonstrations.lengths
    trace, step = demonstrations.acted.nonzero(as_tuple=True)  # [N], trace after trace as transitions() are
    last = lengths[trace] - 1
    furthest = last if horizon is None else torch.minimum(step + horizon, last)
    if strategy == "future":
        shape = (len(step), per_step)
        low, high = step.cpu().numpy()[:, None], furthest.cpu().numpy()[:, None]
        drawn = np.random.default_rng(seed).integers(low + 1, high, shape, endpoint=True)
        later = torch.from_numpy(drawn.reshape(-1)).to(step.device)
    else:
        later = furthest
    rows = torch.arange(len(step), device=step.device).repeat_interleave(len(later) // len(step))
    first = lengths.cumsum(0) - lengths  # where each trace begins among all observations
    goals = _achieved(demonstrations, achieved)[first[trace[rows]] + later]
    data = demonstrations.transitions()
    return (data if len(rows) == len(data) else data[rows]).with_goals(goals)


def _achieved(demonstrations: GoalTraces[Any], achieved: Callable[[Tensor], Tensor] | slice | str) -> Tensor:
    """The goal that each observation achieves, ``[M, G]``, trace after trace without padding."""
    seen = demonstrations.observations[demonstrations.mask]
    if isinstance(achieved, str):
        parts = demonstrations.observation_parts
        if achieved not in parts:
            raise ValueError(f"the observations have no part {achieved!r}, they have {', '.join(map(repr, parts))}")
        achieved = parts[achieved]
    goals = seen[:, achieved] if isinstance(achieved, slice) else achieved(seen)
    if not isinstance(goals, Tensor) or goals.dim() != 2 or len(goals) != len(seen) or goals.shape[1] == 0:
        found = list(goals.shape) if isinstance(goals, Tensor) else type(goals).__name__
        raise ValueError(f"achieved goals must be a tensor [{len(seen)}, G], G positive, got {found}")
    return goals.float() if goals.dtype == torch.uint8 else goals  # those of an image are bytes
