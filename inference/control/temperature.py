"""The temperature of maximum-entropy control: what a nat of divergence from the prior costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..._saved import Saved
from ..._verify import verify_positive

__all__ = ["Temperature", "as_temperature"]


@dataclass(frozen=True)
class Temperature(Saved):
    """alpha, reward units a nat: `Temperature.fixed` or `Temperature.learned`.

    A learned one is the Lagrange multiplier of a bound on how far the policy may be from its prior,
    ``E[log pi - log p] = A log 2 - target_entropy``: with the uniform prior on (-1, 1)^A that is an entropy of
    ``target_entropy`` (T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, eq. (18)), with
    another one a divergence equally great.

    Args:
        initial: what it is, or begins at.
        is_learned: whether it is learnt.
        target_entropy: nats, of a learned one; None for -A.

    Raises:
        TypeError: for what is no number.
        ValueError: for a temperature that is not positive and finite, or a target that is not finite.
    """

    initial: float
    is_learned: bool
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        verify_positive(temperature=self.initial)
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            raise ValueError(f"target_entropy must be finite, not {self.target_entropy}")

    @classmethod
    def fixed(cls, value: float) -> Temperature:
        """Return one that stays what it is."""
        return cls(value, False)

    @classmethod
    def learned(cls, initial: float = 1.0, target_entropy: float | None = None) -> Temperature:
        """Return one by which the policy's entropy comes to ``target_entropy`` nats; None for -A."""
        return cls(initial, True, target_entropy)


def as_temperature(given: Temperature | float | Literal["learned"]) -> Temperature:
    """Return a number as a fixed temperature, and ``"learned"`` as the usual learned one."""
    if isinstance(given, str):
        if given != "learned":
            raise ValueError(f"temperature must be a Temperature, a number or 'learned', not {given!r}")
        return Temperature.learned()
    return given if isinstance(given, Temperature) else Temperature.fixed(given)
