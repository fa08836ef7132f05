"""Functions of tensors as CUDA graphs: launching the kernels of small networks takes a GPU longer than running them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .replay import ReplayBatch

__all__ = ["CapturedCall", "CapturedStep"]

_WARM_UP = 3  # calls made one kernel after the other, so that all that is made once is there


class CapturedCall:
    """Makes the first calls as they are, records the next, and from there on plays the record.

    What is recorded are kernels and addresses. So the function must neither wait for the device nor depend on a number
    of Python that changes, its arguments must keep their shapes, and after tensors that it holds have moved, another
    call has to be made. Random numbers are new in every call.

    Args:
        function: tensors to a tensor; it may change tensors that it holds.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        """Return what the function returns.

        Raises:
            ValueError: for arguments of other shapes than those recorded.
        """
        self.calls += 1
        if self.calls <= _WARM_UP:
            return self._beside(*given)
        if self._graph is None:
            self._graph = self._record(*given)
        for held, new in zip(self._inputs, given, strict=True):
            if held.shape != new.shape:
                raise ValueError(f"the call was captured with a tensor {[*held.shape]}, not {[*new.shape]}")
            held.copy_(new)
        self._graph.replay()
        return self._output.clone()  # the next call writes where this one did

    def _beside(self, *given: Tensor) -> Tensor:
        """A call on a stream of its own, as what is to be captured has to be."""
        here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            output = self.function(*given)
        here.wait_stream(stream)
        return output

    def _record(self, *given: Tensor) -> torch.cuda.CUDAGraph:
        self._inputs = [tensor.clone() for tensor in given]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self.function(*self._inputs)
        return graph


class CapturedStep:
    """A training step as a `CapturedCall`.

    After parameters or the optimiser's state have moved, another one has to be made.

    Args:
        step: a batch to named numbers, scalar tensors; takes the gradients and the optimiser's step.
        optimizer: that of the step, to be told; None if it needs no telling.
    """

    def __init__(self, step: Callable[[ReplayBatch], dict[str, Tensor]], optimizer: Optimizer | None = None) -> None:
        self.step = step
        for group in optimizer.param_groups if optimizer is not None else ():
            group["capturable"] = True
        self._call = CapturedCall(self._numbers)

    def __call__(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take one step.

        Raises:
            ValueError: for a batch of another size than the one recorded.
        """
        numbers = self._call(*batch)
        return dict(zip(self._names, numbers.unbind(), strict=True))

    def _numbers(self, *fields: Tensor) -> Tensor:
        numbers = self.step(ReplayBatch(*fields))
        self._names = [*numbers]
        return torch.stack([*numbers.values()])
