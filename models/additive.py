"""A network in which what it is conditioned on adds up.

Shapes: B sequences, T positions, X input numbers, C condition numbers, K functions of time, G features of the base.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .causal import Causal, joined

__all__ = ["Additive", "AdditiveState"]


class AdditiveState(NamedTuple):
    """What the next position needs.

    Attributes:
        base: the state of the base; ``()`` for one without.
        condition: ``[B, C]``.
        time: how many positions there were before, long ``[B]``.
    """

    base: Any
    condition: Tensor
    time: Tensor


class Additive(Causal):
    """Features whose linear functions are linear in the condition c: [phi(t), b(x), phi(t) times c].

    A linear layer of them is f_0(x, t) + F(t) c. The gains F know the time, and not the inputs: what c does at a step
    does not depend on where anything else has taken x. Two conditions then do together what each does alone, provided
    that the base f_0 is linear in x, too; what it does at c = 0 is done once, however many conditions are summed.

    phi are the first K cosines over a duration of H positions, phi_k(t) = cos(pi k (t + 1/2) / H). With K = H they span
    every function of time. From position H on the time stands still.

    Args:
        base: b, a network of positions alone.
        size: G, how many features it has.
        condition: C.
        horizon: H.
        basis: K, at most H.
        gains: a network of positions to take the place of phi before c, and how many features it has: for comparison.
            Sums of conditions are then no sums of what they do.

    Raises:
        ValueError: for sizes that are not positive, or K above H.
    """

    table: Tensor

    def __init__(
        self,
        base: Causal,
        size: int,
        condition: int,
        *,
        horizon: int = 64,
        basis: int = 16,
        gains: tuple[Causal, int] | None = None,
    ):
        super().__init__()
        if min(size, condition, basis) < 1 or horizon < basis:
            raise ValueError(f"sizes must be positive, and basis ({basis}) at most horizon ({horizon})")
        self.base, self.size, self.horizon, self.basis = base, size, horizon, basis
        self.gains = None if gains is None else gains[0]
        width = basis if gains is None else gains[1]
        #: How many features there are.
        self.features = basis + size + width * condition
        self.register_buffer("table", self._cosines().to(torch.get_default_dtype()), persistent=False)

    def _cosines(self) -> Tensor:
        time, order = torch.arange(self.horizon, dtype=torch.float64).unsqueeze(1), torch.arange(self.basis)
        return torch.cos(math.pi / self.horizon * (time + 0.5) * order)

    def _apply(self, fn: Any, recurse: bool = True) -> Additive:
        super()._apply(fn, recurse)
        self.table = self._cosines().to(self.table)  # not what was rounded before
        return self

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the features ``[..., T, F]`` of all positions ``[..., T, X]``, given a condition ``[..., C]``."""
        assert condition is not None
        time = torch.arange(x.shape[-2], device=x.device)
        return self._features(x, self.base(x), time, condition.unsqueeze(-2))

    def begin(self, rows: int, condition: Tensor | None = None) -> AdditiveState:
        """Return the state before the first position of B = ``rows`` sequences, given a condition ``[B, C]``."""
        assert condition is not None
        time = torch.zeros(rows, dtype=torch.long, device=condition.device)
        return AdditiveState(self.base.begin(rows) or (), condition, time)

    def step(self, x: Tensor, state: AdditiveState) -> tuple[Tensor, AdditiveState]:
        """Return the features ``[B, F]`` of the next position ``[B, X]``, and the state after it."""
        base, after = self.base.step(x, state.base or None)
        features = self._features(x, base, state.time, state.condition)
        return features, AdditiveState(after or (), state.condition, state.time + 1)

    def timed(self, steps: int, condition: Tensor) -> Tensor:
        """Return the features at the first positions, the base's being 0, ``[..., steps, F]``, given ``[..., C]``."""
        phi = self.table[torch.arange(steps, device=condition.device).clamp(max=self.horizon - 1)]
        return joined(F.pad(phi, (0, self.size)), _product(phi, condition.unsqueeze(-2)))

    def _features(self, x: Tensor, base: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        phi = self.table[time.clamp(max=self.horizon - 1)]
        gains = phi if self.gains is None else self.gains(x)
        return joined(joined(phi, base), _product(gains, condition))


def _product(gains: Tensor, condition: Tensor) -> Tensor:
    """The products of all pairs, ``[..., K C]``."""
    return (gains.unsqueeze(-1) * condition.unsqueeze(-2)).flatten(-2)
