"""What a model reads of a batch of demonstrations."""

from __future__ import annotations

from typing import Any, Protocol

from gymnasium import spaces
from torch import Tensor

__all__ = ["Traces", "check_stopped", "split_annotated"]


class Traces(Protocol):
    """A padded batch of traces ``x = o_0, a_0, ..., o_{T-1}, a_{T-1}`` whose last action is the null action.

    Attributes:
        observations: ``[B, T, O]``, zero after the end.
        actions: long ``[B, T]``; ``num_actions`` is null, at step ``lengths - 1`` and in the padding.
        arguments: ``[B, T, V]``, the arguments of the actions (``V`` may be 0).
        lengths: long ``[B]``, counting the null action.
        task: ``[B, U]``, the task specification u_0 (``U`` may be 0).
        calls: ``[B, I, 1 + W]``, annotated call traces, choice -1 after the end and all along a trace that has no
            annotation; None where no trace has one.
        terminated: bool ``[B]``, traces that ended of their own accord: their null is a choice, not the place where
            they were cut off.
        action_space: that of the environment, a ``Discrete`` for all that is said here of null.
        observation_space: that of the environment.
        num_actions: how many actions there are, null not counted.
    """

    @property
    def observations(self) -> Tensor: ...  # noqa: D102

    @property
    def actions(self) -> Tensor: ...  # noqa: D102

    @property
    def arguments(self) -> Tensor: ...  # noqa: D102

    @property
    def lengths(self) -> Tensor: ...  # noqa: D102

    @property
    def task(self) -> Tensor: ...  # noqa: D102

    @property
    def calls(self) -> Tensor | None: ...  # noqa: D102

    @property
    def terminated(self) -> Tensor: ...  # noqa: D102

    @property
    def action_space(self) -> spaces.Space[Any]: ...  # noqa: D102

    @property
    def observation_space(self) -> spaces.Space[Any]: ...  # noqa: D102

    @property
    def num_actions(self) -> int: ...  # noqa: D102

    def __getitem__(self, index: Tensor) -> Traces: ...  # noqa: D105


def check_stopped(traces: Traces) -> None:
    """Refuse traces that do not end with a choice to stop, which a model with a null action would learn from them.

    Raises:
        ValueError: if the actions are not Discrete, or naming trace and step, if a trace was cut off.
    """
    if not isinstance(traces.action_space, spaces.Discrete):
        raise ValueError(f"the actions must be Discrete, numbered and with a null, these are {traces.action_space}")
    cut = (~traces.terminated).nonzero()
    if len(cut):
        trace = int(cut[0, 0])
        raise ValueError(
            f"trace {trace}, step {int(traces.lengths[trace]) - 1}: the trace was cut off, not terminated: "
            "it is no demonstration of stopping"
        )


def split_annotated(traces: Traces) -> tuple[Traces | None, Traces | None]:
    """Return the traces without and those with annotated calls, None for an empty part."""
    if traces.calls is None:
        return traces, None
    given = (traces.calls[..., 0] >= 0).any(-1)
    if bool(given.all()):
        return None, traces
    if not bool(given.any()):
        return traces, None
    return traces[(~given).nonzero()[:, 0]], traces[given.nonzero()[:, 0]]
