"""Demonstrations as JAX arrays: what the twins of models and guides read."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..twin_numpyro import DOUBLE, Array, rounded
from .traces import Traces as TorchTraces
from .traces import check_stopped

__all__ = ["Traces", "as_arrays"]


class Traces(NamedTuple):
    """A padded batch of traces; see :class:`~pyrocontrol.models.Traces`. Leaves lead with ``[B]``."""

    observations: Array
    actions: Array
    arguments: Array
    lengths: Array
    task: Array
    calls: Array | None = None


def as_arrays(traces: TorchTraces) -> Traces:
    """Return traces as arrays, which may be indexed by row like the others, leaf by leaf.

    Where JAX is in single precision, a warning says so of numbers in double precision, which are rounded.

    Raises:
        ValueError: for traces that were cut off, or actions that are not Discrete.
    """
    check_stopped(traces)
    if any(tensor is not None and rounded(tensor) for tensor in (traces.observations, traces.arguments, traces.task)):
        warnings.warn(f"the traces are float64 and are rounded to single precision, but for {DOUBLE}", stacklevel=2)

    def array(tensor: Tensor) -> Array:
        return jnp.asarray(tensor.cpu().numpy())

    return Traces(
        observations=array(traces.observations),
        actions=array(traces.actions),
        arguments=array(traces.arguments),
        lengths=array(traces.lengths),
        task=array(traces.task),
        calls=None if traces.calls is None else array(traces.calls),
    )


def as_tensors(traces: Traces) -> Any:
    """Return what the checks of the torch modules read of traces.

    Raises:
        TypeError: for what is no :class:`Traces`.
    """
    if not isinstance(traces, Traces):
        raise TypeError(f"data must be twins.Traces, as twins.as_arrays makes them, not {type(traces).__name__}")

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(np.array(array))

    found = SimpleNamespace(**{name: None if leaf is None else tensor(leaf) for name, leaf in traces._asdict().items()})
    found.actions, found.lengths = found.actions.long(), found.lengths.long()
    found.terminated = torch.ones(len(found.lengths), dtype=torch.bool)
    found.num_actions = int(found.actions.max())  # the null action, with which each of them ends
    found.action_space = spaces.Discrete(max(found.num_actions, 1))
    found.observation_space = spaces.Box(-np.inf, np.inf, found.observations.shape[2:])
    return found


def unannotated(traces: Traces) -> Array | bool:
    """Return which traces have no annotated calls, bool ``[B]``; a plain bool if it is known that all are alike.

    It is not known inside a compiled function that gets the traces.
    """
    if traces.calls is None:
        return True
    rows = (traces.calls[..., 0] < 0).all(-1)
    if isinstance(rows, jax.core.Tracer):
        return rows
    return bool(rows[0]) if (rows == rows[0]).all() else rows
