"""Evidence of optimality, learnt from what an expert and an agent have done: the reward where there is none.

The optimality model (:mod:`pyrocontrol.models.optimality`) has a factor ``exp r`` a step. Here r is learnt, by a
discriminator (:mod:`.discriminator`) or by two densities (:mod:`.density`), while the agent learns from it.

Shapes: N rows of a batch, X input numbers, `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..._saved import Saved
from ..._verify import verify_finite, verify_least, verify_positive
from ..training.checkpoint import described
from ..training.optimized import Optimized

__all__ = ["Annealed", "Evidence", "LearntEvidence", "Schedule"]

Schedule = Callable[[int], float]

_SLOWEST = 1e-3  # of the running moments: they forget what is some thousand updates old
_LEAST = 0.1  # how small the unit of an input may be, in the agent's distance from the expert


class Evidence(Protocol):
    """What an imitator learns its reward from. The learner decides what x is made of: state, action, next state."""

    def update(self, expert: Tensor, agent: Tensor) -> dict[str, Tensor]:
        """Learn from inputs ``[N, X]`` of the expert and as many of the agent; return named scalars."""
        ...

    def reward(self, x: Tensor) -> Tensor:
        """Return the reward ``[...]`` of inputs ``[..., X]``, differentiable in them and in nothing else."""
        ...


@dataclass(frozen=True)
class Annealed(Saved):
    """A number that goes from one value to another with the number of updates n, in a straight line.

        first + (last - first) min(1, n / updates)

    Attributes:
        first: the value at the first update.
        last: the value from update number ``updates`` on.
        updates: how many updates it takes.

    Raises:
        TypeError: for what is no number.
        ValueError: for numbers that are not finite, or no updates.
    """

    first: float
    last: float
    updates: int

    def __post_init__(self) -> None:
        verify_finite(first=self.first, last=self.last)
        verify_least(1, updates=self.updates)

    def __call__(self, updates: int) -> float:
        """Return the value after so many updates."""
        return self.first + (self.last - self.first) * min(1.0, updates / self.updates)


class LearntEvidence(Optimized):
    """Evidence with parameters: an optimiser of its own, and inputs in units of the expert's. Subclasses say the rest.

    Its ``state_dict`` is all of it, the optimiser's state and the number of updates included. With ``standardize``, its
    networks read ``(x - m) / s``, with m the running mean of the expert's inputs, and

        s_j = max(sd_j, d_j / 10),

    sd the running standard deviation of the expert's inputs, d the running root mean square of the agent's distance
    from m. So input noise and Lipschitz constants have the expert's units; where the expert hardly moves, the agent
    counts, and its inputs stay below some tens. The moments are plain means of the first thousand batches, and forget
    exponentially after that, as latent states move while their model learns.

    A subclass makes its networks, calls :meth:`learn`, and defines :meth:`loss` and ``reward``.

    Args:
        size: X.
        lr: of Adam.
        weight: what the reward is multiplied by.
        clip: what is clipped to ``[-clip, clip]`` before it is weighed; None clips nothing.
        standardize: whether to standardise inputs.

    Raises:
        TypeError: for what is no number.
        ValueError: for numbers out of range.
    """

    mean: Tensor
    variance: Tensor
    distance: Tensor
    rate: Tensor

    def __init__(self, size: int, *, lr: float, weight: float, clip: float | None, standardize: bool) -> None:
        super().__init__()
        verify_least(1, size=size)
        verify_positive(lr=lr, weight=weight, **({} if clip is None else {"clip": clip}))
        self.size, self.lr, self.weight, self.clip, self.standardize = size, lr, weight, clip, standardize
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("distance", torch.zeros(size))  # its square
        self.register_buffer("rate", torch.ones(()), persistent=False)  # set before each step, as no graph holds floats
        self._settings: dict[str, Any] = {
            "lr": lr,
            "weight": weight,
            "clip": clip,
            "standardize": standardize,
        }

    def learn(self, *networks: nn.Module, **settings: Any) -> None:
        """Make the optimiser of all parameters of networks; say what else tells this evidence from others."""
        self.learnt = tuple(parameter for network in networks for parameter in network.parameters())
        self.optimizer = torch.optim.Adam(self.learnt, lr=self.lr, fused=True)
        self._settings |= settings

    def update(self, expert: Tensor, agent: Tensor) -> dict[str, Tensor]:
        """Take one :meth:`step`.

        Args:
            expert: ``[N, X]``.
            agent: ``[N, X]``; neither gets gradients.

        Returns:
            Named scalars without a graph; nothing here waits for a device.

        Raises:
            ValueError: for other shapes.
        """
        if expert.shape != agent.shape or expert.shape[1:] != (self.size,) or not len(expert):
            found = f"{[*expert.shape]} and {[*agent.shape]}"
            raise ValueError(f"expert and agent must both have shape [N, {self.size}], N positive, not {found}")
        self.prepare()
        numbers = self.step(expert.detach(), agent.detach())
        self.updates += 1
        return numbers

    def prepare(self) -> None:
        """Set the tensors that depend on the number of updates, before a step."""
        self.rate.fill_(max(1 / (self.updates + 1), _SLOWEST))

    def step(self, expert: Tensor, agent: Tensor) -> dict[str, Tensor]:
        """Follow the moments and take one step of the optimiser: what a CUDA graph may hold."""
        if self.standardize:
            self._follow(expert, agent)
        for parameter in self.learnt:
            parameter.grad = None
        loss, numbers = self.loss(expert, agent)
        loss.backward()
        self.optimizer.step()
        return numbers

    def loss(self, expert: Tensor, agent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of inputs ``[N, X]``, and named scalars to report, without a graph."""
        raise NotImplementedError

    @torch.no_grad()
    def _follow(self, expert: Tensor, agent: Tensor) -> None:
        """Mix the moments of a batch into the running ones."""
        rate, shift = self.rate, expert.mean(0) - self.mean
        of_batch = expert.var(0, correction=0) + (1 - rate) * shift.square()
        self.variance.lerp_(of_batch, rate)
        self.mean.lerp_(expert.mean(0), rate)
        self.distance.lerp_((agent - self.mean).square().mean(0), rate)

    def scaled(self, x: Tensor) -> Tensor:
        """Return what networks read of inputs ``[..., X]``."""
        if not self.standardize:
            return x
        scale = torch.maximum(self.variance, _LEAST**2 * self.distance).sqrt()
        return (x - self.mean) / torch.where(scale > 0, scale, 1.0)

    def clipped(self, value: Tensor) -> Tensor:
        """Return values within the bounds."""
        return value if self.clip is None else value.clamp(-self.clip, self.clip)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave the parameters out of graphs, and everything as it is, for a while."""
        training, learnt = self.training, [parameter for parameter in self.learnt if parameter.requires_grad]
        self.eval()
        for parameter in learnt:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            self.train(training)
            for parameter in learnt:
                parameter.requires_grad_(True)

    def signature(self) -> str:
        """What two of a kind share exactly when one can go on from the other's state."""
        settings = ", ".join(f"{name}={described(value)}" for name, value in self._settings.items())
        return f"{type(self).__name__}({self.size}, {settings})"
