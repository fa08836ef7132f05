"""Augmented demonstrations: what a teacher would have done in situations beside those it was in.

A data set whose minibatches pass through a random transform, so that training never sees the same batch twice and the
data cover more of what the learner may get into.

Shapes: B examples of a batch (traces, or single transitions), T steps, O observation numbers, A action numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

__all__ = ["Augmented", "compose", "jitter", "shifted"]

Transform = Callable[[Any], Any]
Change = Callable[[Tensor, Tensor], Tensor]


class Augmented:
    """A data set whose minibatches pass through a transform; `fit` takes it in place of the data.

    Every batch is transformed anew, with torch's global random state, which `fit` seeds and saves: a run that was
    stopped and resumed sees the same batches as one that was not. What the data holds can be read here too, as it is
    stored (``observations``, ``action_space``, ...); methods that would get around the transform cannot be called.

    Args:
        data: such as `Demonstrations` or `Transitions`.
        transform: maps a batch, ``data[indices]``, to a batch of the same kind; :func:`jitter`, :func:`shifted`,
            several in turn (:func:`compose`), or any function.

    Raises:
        TypeError: if the data is no data set, or the transform no function.
    """

    def __init__(self, data: Any, transform: Transform) -> None:
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__") and hasattr(data, "to")):
            raise TypeError(f"data must be a data set such as Demonstrations, got {type(data).__name__}")
        if not callable(transform):
            raise TypeError(f"a transform is a function of a batch, got {type(transform).__name__}")
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.transform(self.data[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Augmented:
        """The same on another device, or with real numbers in another precision."""
        return Augmented(self.data.to(device, dtype), self.transform)

    def fingerprint(self) -> str:
        """A short hash of the data and of the transform with its settings; of a plain function, of its name."""
        text = f"{self.data.fingerprint()} {_description(self.transform)}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __getattr__(self, name: str) -> Any:
        if name != "data" and not name.startswith("_"):  # not while a copy is being made, which has no data yet
            value = getattr(self.data, name, _method)
            if not callable(value):
                return value
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"Augmented({self.data!r}, {_description(self.transform)})"


def jitter(std: float | Sequence[float] | Tensor) -> Transform:
    """Return a transform that adds independent Gaussian noise to observations: o + e, e ~ N(0, std^2).

    Actions stay: the teacher is taken to do the same in situations that look nearly alike. Steps beyond the end of a
    trace stay zero.

    Args:
        std: one standard deviation, or ``[O]``, in the units of the observations.

    Raises:
        ValueError: if it is negative or not finite.
    """
    scale = torch.as_tensor(std, dtype=torch.float64)
    if scale.dim() > 1 or not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise ValueError(f"std must be a number or [O] numbers that are not negative, got {std}")
    return _Jitter(scale)


def shifted(
    observation_shift: Sequence[float] | Tensor | Change,
    action_correction: Sequence[float] | Tensor | Change,
    *,
    amount: float = 1.0,
) -> Transform:
    """Return a transform that moves the observer, and corrects the action by what leads back.

    The lecture's example is M. Bojarski et al., "End to End Learning for Self-Driving Cars" (2016): cameras to the left
    and right of the driver see the road as a car would that has drifted there, and are labelled with the driver's
    steering plus what it takes to return. With u ~ Uniform(-amount, amount), one for each example (a transition, or a
    whole trace, along which the camera stays where it is mounted),

        o' = o + u observation_shift,    a' = a + u action_correction,

    a' clipped to the bounds of a Box. Steps beyond the end of a trace, and actions that were not taken, stay as they
    are.

    Args:
        observation_shift: ``[O]``, how observations change with a unit of u; or a function of observations
            ``[B, ..., O]`` and u ``[B, ..., 1]`` to observations.
        action_correction: ``[A]``, how the actions of a Box change; or a function of stored actions (of any space,
            ``[B, ...]`` or ``[B, ..., A]``) and u, of as many dimensions as the actions, to actions.
        amount: greatest absolute u.

    Raises:
        ValueError: if the amount is negative or not finite, or numbers given are not finite or no vector; by the first
            batch, if they are not as many as its observations or actions have.
    """
    if not 0 <= amount < float("inf"):
        raise ValueError(f"amount must be finite and not negative, got {amount}")
    changes = [
        given if callable(given) else torch.as_tensor(given, dtype=torch.float64)
        for given in (observation_shift, action_correction)
    ]
    for name, change in zip(("observation_shift", "action_correction"), changes, strict=True):
        if isinstance(change, Tensor) and (change.dim() > 1 or not bool(torch.isfinite(change).all())):
            raise ValueError(f"{name} must be finite numbers, one for each of the batch's, got {change.tolist()}")
    return _Shifted(changes[0], changes[1], float(amount))


def compose(*transforms: Transform) -> Transform:
    """Return a transform that applies several, the first one first.

    Raises:
        TypeError: if one of them is no function.
    """
    for transform in transforms:
        if not callable(transform):
            raise TypeError(f"a transform is a function of a batch, got {type(transform).__name__}")
    return _Composed(transforms)


# ---------------------------------------------------------------------- the transforms


@dataclass(frozen=True)
class _Jitter:
    std: Tensor

    def __call__(self, batch: Any) -> Any:
        seen = _real(batch.observations)
        _check_width("std", self.std, seen, "observations")
        moved = seen + torch.randn_like(seen) * self.std.to(seen)
        return batch._replace(observations=_where(getattr(batch, "mask", None), moved, seen))


@dataclass(frozen=True)
class _Shifted:
    observation_shift: Tensor | Change
    action_correction: Tensor | Change
    amount: float

    def __call__(self, batch: Any) -> Any:
        seen, actions = _real(batch.observations), batch.actions
        _check_width("observation_shift", self.observation_shift, seen, "observations")
        u = (2 * torch.rand(len(seen), dtype=seen.dtype, device=seen.device) - 1) * self.amount
        moved = _moved(self.observation_shift, seen, u)
        if isinstance(self.action_correction, Tensor) and not actions.is_floating_point():
            raise TypeError(f"numbers correct the actions of a Box, these are {batch.action_space}: give a function")
        _check_width("action_correction", self.action_correction, actions, "actions")
        corrected = _moved(self.action_correction, actions, u)
        if isinstance(batch.action_space, spaces.Box):
            low, high = (
                torch.as_tensor(bound.reshape(-1), dtype=actions.dtype, device=actions.device)
                for bound in (batch.action_space.low, batch.action_space.high)
            )
            corrected = corrected.clamp(low, high)
        return batch._replace(
            observations=_where(getattr(batch, "mask", None), moved, seen),
            actions=_where(batch.acted, corrected, actions),
        )


@dataclass(frozen=True)
class _Composed:
    transforms: tuple[Transform, ...]

    def __call__(self, batch: Any) -> Any:
        for transform in self.transforms:
            batch = transform(batch)
        return batch


def _real(observations: Tensor) -> Tensor:
    """Observations as real numbers, also if they are bytes."""
    return observations if observations.is_floating_point() else observations.float()


def _check_width(name: str, change: Tensor | Change, value: Tensor, what: str) -> None:
    if isinstance(change, Tensor) and change.dim() and len(change) != value.shape[-1]:
        raise ValueError(f"{name} has {len(change)} numbers, the {what} have {value.shape[-1]}")


def _moved(change: Tensor | Change, value: Tensor, u: Tensor) -> Tensor:
    """`value` `[B, ...]` changed by u `[B]`."""
    u = u.reshape(-1, *[1] * (value.dim() - 1))
    return value + u * change.to(value) if isinstance(change, Tensor) else change(value, u)


def _where(live: Tensor | None, value: Tensor, otherwise: Tensor) -> Tensor:
    """`value` where `live` holds of a step, and everywhere without it."""
    if live is None:
        return value
    return torch.where(live.reshape(*live.shape, *[1] * (value.dim() - live.dim())), value, otherwise)


def _description(thing: Any) -> str:
    """What a transform does, as text that is the same in every process."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = (f"{field.name}={_description(getattr(thing, field.name))}" for field in dataclasses.fields(thing))
        return f"{type(thing).__name__.strip('_').lower()}({', '.join(fields)})"
    if isinstance(thing, Tensor | np.ndarray):
        return str(thing.tolist())
    if isinstance(thing, tuple):
        return f"[{', '.join(map(_description, thing))}]"
    if isinstance(thing, int | float | str | None):
        return repr(thing)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _method() -> None:
    """Stands for an attribute that is missing."""
