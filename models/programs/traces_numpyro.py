"""Demonstrations as JAX arrays: what the twins of models and guides read."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from torch import Tensor

from ..twin_numpyro import Array
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

    Raises:
        ValueError: for traces that were cut off, or actions that are not Discrete.
    """
    check_stopped(traces)

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
