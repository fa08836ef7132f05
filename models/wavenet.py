"""WaveNet: causal dilated convolutions, read all at once or one position at a time.

A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio" (2016).

Shapes: B sequences, T positions, X input numbers, C condition numbers, F output numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WaveNet", "WaveNetCache"]


class WaveNetCache(NamedTuple):
    """What the next position needs of the earlier ones.

    Attributes:
        past: of every layer, its inputs at the last ``dilation`` positions, oldest first, each ``[B, channels]``.
        condition: what the condition adds to every layer, ``[B, 2 channels]`` each.
    """

    past: tuple[tuple[Tensor, ...], ...]
    condition: tuple[Tensor, ...]


class WaveNet(nn.Module):
    """A stack of gated causal convolutions of two taps, conditioned at every layer.

    Layer l, of dilation d, turns its input h into

        g_t = tanh(a_t) * sigmoid(b_t),   (a_t, b_t) = W (h_{t-d}, h_t) + V c,   h'_t = h_t + R g_t,

    and the output is a two-layer network of the sum of all S g_t. Position t sees positions up to t, ``receptive`` of
    them; what came before the first counts as zero. The gates are bounded, and so is the output, whatever the input.

    Args:
        inputs: X.
        outputs: F.
        condition: C, may be 0.
        channels: width of every layer.
        dilations: of the layers, in order.

    Raises:
        ValueError: if a size or a dilation is not positive.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        condition: int = 0,
        channels: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32),
    ):
        super().__init__()
        if min(inputs, outputs, channels, *dilations) < 1 or not dilations or condition < 0:
            raise ValueError("sizes and dilations must be positive, and there must be at least one layer")
        self.inputs, self.channels, self.dilations = inputs, channels, tuple(dilations)
        #: How many positions one output depends on.
        self.receptive = 1 + sum(dilations)
        self.embed = nn.Linear(inputs, channels)
        self.taps = nn.ModuleList(nn.Linear(2 * channels, 2 * channels) for _ in dilations)
        # Residual and skip connection in one product.
        self.mix = nn.ModuleList(nn.Linear(channels, 2 * channels) for _ in dilations)
        self.condition = nn.Linear(condition, 2 * channels * len(self.dilations), bias=False) if condition else None
        self.output = nn.Sequential(nn.ReLU(), nn.Linear(channels, outputs), nn.ReLU())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return outputs ``[B, T, F]`` of all positions ``[B, T, X]``, given a condition ``[B, C]``."""
        hidden = self.embed(x)
        skip: Tensor | float = 0.0
        added = self._added(condition)
        for layer, dilation in enumerate(self.dilations):
            # Never further back than the sequence is long: a shift beyond it would cut more than there is.
            before = F.pad(hidden, (0, 0, min(dilation, hidden.shape[1]), 0))[:, : hidden.shape[1]]
            hidden, skip = self._layer(layer, before, hidden, added[layer].unsqueeze(1) if added else None, skip)
        return self.output(skip)

    def start(self, rows: int, condition: Tensor | None = None) -> WaveNetCache:
        """Return the cache before the first position of B = ``rows`` sequences, given a condition ``[B, C]``."""
        zero = self.embed.weight.new_zeros(rows, self.channels)
        return WaveNetCache(tuple((zero,) * dilation for dilation in self.dilations), self._added(condition))

    def step(self, x: Tensor, cache: WaveNetCache) -> tuple[Tensor, WaveNetCache]:
        """Return the output ``[B, F]`` of the next position ``[B, X]`` and the cache after it: O(1) in the position."""
        hidden = self.embed(x)
        skip: Tensor | float = 0.0
        past = []
        for layer, before in enumerate(cache.past):
            past.append((*before[1:], hidden))
            added = cache.condition[layer] if cache.condition else None
            hidden, skip = self._layer(layer, before[0], hidden, added, skip)
        return self.output(skip), WaveNetCache(tuple(past), cache.condition)

    def _added(self, condition: Tensor | None) -> tuple[Tensor, ...]:
        return () if self.condition is None else self.condition(condition).chunk(len(self.dilations), -1)

    def _layer(
        self, layer: int, before: Tensor, hidden: Tensor, added: Tensor | None, skip: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        taps = self.taps[layer](torch.cat([before, hidden], -1))
        filtered, gate = (taps if added is None else taps + added).chunk(2, -1)
        residual, skipped = self.mix[layer](filtered.tanh() * gate.sigmoid()).chunk(2, -1)
        return hidden + residual, skip + skipped
