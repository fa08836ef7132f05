"""Several processes that train one thing together, each on its share of the work; or one that is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils import _pytree as pytree

__all__ = ["Fabric", "Processes", "on_cpu"]

T = TypeVar("T")


class Fabric(Protocol):
    """What starts processes: a ``Fabric`` of ``lightning_fabric`` or ``lightning``, after its ``launch()``."""

    @property
    def global_rank(self) -> int:
        """The number of this process."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def device(self) -> torch.device:
        """Where this one computes."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What one of them has, in all."""


class Processes:
    """This process among those that train together. Alone, it does what it would do without.

    Args:
        fabric: what started them; None if this one is alone.
        device: that was asked for; None leaves it to the fabric.

    Attributes:
        rank: the number of this one.
        count: how many there are.
        leads: whether this is the one that reads, writes, logs and evaluates for all.
        device: where this one computes; None where the modules are.

    Raises:
        ValueError: if the fabric has started nothing yet, or is for devices of another kind.
    """

    def __init__(self, fabric: Fabric | None = None, device: str | torch.device | None = None) -> None:
        self.fabric, self.device = fabric, device
        self.rank, self.count = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.leads = self.rank == 0
        if fabric is not None:
            self.device = fabric.device
            if device is not None and torch.device(device).type != fabric.device.type:
                raise ValueError(f"device is {device}, but the fabric is for {fabric.device}: give one of them")
        if self.count > 1 and not distributed.is_initialized():
            raise ValueError(f"the fabric is for {self.count} processes and has started none: call fabric.launch()")

    def share(self, indices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the part ``[B / count]`` of a batch's indices ``[B]`` that this process sees.

        Where the examples have lengths, they are dealt from the shortest to the longest, to and fro, so that no process
        has much more to do than the others, for which these would wait.
        """
        if self.count == 1:
            return indices
        if lengths is not None:
            indices = indices[lengths[indices].argsort(stable=True)]
        places = torch.arange(len(indices)) % (2 * self.count)  # of a turn to and fro
        return indices[(places == self.rank) | (places == 2 * self.count - 1 - self.rank)]

    def led(self, function: Callable[[], T]) -> T:
        """Call a function in the leading process; all return what it returned.

        Raises:
            RuntimeError: if it raised: the leading process raises the error itself, the others say which. Or if a
                process has ended.
        """
        if self.count == 1:
            return function()
        assert self.fabric is not None
        found: Any = None
        failure: Exception | None = None
        if self.leads:
            try:
                found = function()
            except Exception as error:
                failure = error
        with _whole():
            told = failure and f"{type(failure).__name__}: {failure}"
            found, told = self.fabric.broadcast((found, told))
        if failure is not None:
            raise failure
        if told:
            raise RuntimeError(f"the leading process of this run raised {told}")
        return found

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put in the place of tensors, of equal shapes everywhere, their sums over all processes.

        All go in one message, by torch itself: `Fabric.all_reduce` waits for a barrier before each.

        Raises:
            RuntimeError: if a process has ended.
        """
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _whole():
            distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def join(self, parameters: Sequence[Tensor], told: Tensor, weight: float = 1.0) -> list[Tensor]:
        """Give parameters the sum of their gradients over all processes, each times the weight of its process.

        Args:
            parameters: the same in all processes. One that has a gradient in some of them has it in all afterwards.
            told: numbers ``[N]`` to be summed as they are, in place.
            weight: of this process.

        Returns:
            The parameters that have a gradient.
        """
        here = [parameter.grad is not None for parameter in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if weight != 1:
            torch._foreach_mul_(gradients, weight)
        counts = torch.tensor(here, dtype=told.dtype, device=told.device)
        self.add([told, counts, *gradients])
        if not all(here):  # others may have more
            here = [count > 0 for count in counts.tolist()]
        for parameter, gradient, some in zip(parameters, gradients, here, strict=True):
            if some:
                parameter.grad = gradient
        return [parameter for parameter, some in zip(parameters, here, strict=True) if some]

    def gathered(self, value: Any) -> list[Any]:
        """Return the value of each process, in their order."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            with _whole():
                distributed.all_gather_object(values, value)
        return values


def on_cpu(values: Any) -> Any:
    """Return the same lists and dictionaries with all tensors on the CPU, without a graph."""
    return pytree.tree_map(lambda value: value.detach().cpu() if isinstance(value, Tensor) else value, values)


@contextmanager
def _whole() -> Iterator[None]:
    """Say what it means if processes cannot reach each other."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError("another process of this run has ended; the last checkpoint stands") from error
