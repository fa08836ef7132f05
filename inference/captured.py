"""A training step as one CUDA graph: launching the kernels of small networks takes a GPU longer than running them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .replay import Transitions

__all__ = ["CapturedStep"]

_WARM_UP = 3  # steps taken one kernel after the other, so that all that is made once is there


class CapturedStep:
    """Takes the first steps as they are, records the next, and from there on plays the record.

    What is recorded are kernels and addresses. So a step must neither wait for the device nor depend on a number of
    Python that changes, batches must keep their size, and after parameters or the optimiser's state have moved,
    another one has to be made. Random numbers are new in every step.

    Args:
        step: a batch to named numbers, scalar tensors; takes the gradients and the optimiser's step.
        optimizer: that of the step, to be told; None if it needs no telling.
    """

    def __init__(self, step: Callable[[Transitions], dict[str, Tensor]], optimizer: Optimizer | None = None) -> None:
        self.step, self.optimizer = step, optimizer
        self.steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Transitions) -> dict[str, Tensor]:
        """Take one step.

        Raises:
            ValueError: for a batch of another size than the one recorded.
        """
        self.steps += 1
        if self.steps <= _WARM_UP:
            return self._beside(batch)
        if self._graph is None:
            self._graph = self._record(batch)
        if batch.rewards.shape != self._inputs.rewards.shape:
            sizes = f"{self._inputs.rewards.shape[-1]} transitions, not {batch.rewards.shape[-1]}"
            raise ValueError(f"the step was captured with batches of {sizes}")
        for held, given in zip(self._inputs, batch, strict=True):
            held.copy_(given)
        self._graph.replay()
        # The next step writes where this one did.
        return dict(zip(self._names, self._outputs.clone().unbind(), strict=True))

    def _beside(self, batch: Transitions) -> dict[str, Tensor]:
        """A step on a stream of its own, as what is to be captured has to be."""
        here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            numbers = self.step(batch)
        here.wait_stream(stream)
        return numbers

    def _record(self, batch: Transitions) -> torch.cuda.CUDAGraph:
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            group["capturable"] = True
        self._inputs = Transitions(*(given.clone() for given in batch))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            numbers = self.step(self._inputs)
            self._names, self._outputs = [*numbers], torch.stack([*numbers.values()])
        return graph
