"""WaveNet: causal dilated convolutions, read all at once or one position at a time.

A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio" (2016).

Shapes: B sequences, T positions, X input numbers, C condition numbers, F output numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._saved import Saved
from .causal import Causal

__all__ = ["WaveNet", "WaveNetCache"]


class WaveNetCache(NamedTuple):
    """What the next position needs of the earlier ones.

    Attributes:
        past: of every layer, its inputs at the last ``dilation`` positions, oldest first, each ``[B, channels]``.
        added: what a condition adds in every layer, ``[B, 2 channels]``; ``()`` without one.
    """

    past: tuple[tuple[Tensor, ...], ...]
    added: tuple[Tensor, ...]


class _Weights(NamedTuple):
    """What a position is multiplied by, looked up once: a position looks up as long as it multiplies."""

    embed: tuple[Tensor, Tensor]
    layers: list[tuple[Tensor, Tensor | None]]  # taps and residual
    output: tuple[Tensor, Tensor, Tensor, Tensor]


class WaveNet(Saved, Causal):
    """A stack of gated causal convolutions of two taps, conditioned at every layer.

    Layer l, of dilation d, turns its input h into

        g_t = tanh(a_t) * sigmoid(b_t),   (a_t, b_t) = W (h_{t-d}, h_t) + V c + w,   h'_t = h_t + R g_t,

    and the output is a network of the sum over the layers of S g_t. Position t sees positions up to t, ``receptive`` of
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
        layers = len(dilations)
        if not layers or min(inputs, outputs, channels, *dilations) < 1 or condition < 0:
            raise ValueError("sizes and dilations must be positive, and there must be at least one layer")
        self.inputs, self.channels, self.dilations = inputs, channels, tuple(dilations)
        #: How many positions one output depends on.
        self.receptive = 1 + sum(dilations)
        self.embed = nn.Linear(inputs, channels)
        self.taps = nn.ModuleList(nn.Linear(2 * channels, 2 * channels) for _ in dilations)
        self.condition = nn.Linear(condition, 2 * channels * layers, bias=False) if condition else None
        # Without biases, which those of the next layer's taps can stand for; nothing follows the last layer.
        self.residual = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in dilations[1:])
        # The skip connections of all layers in one product.
        self.output = nn.Sequential(
            nn.Linear(channels * layers, channels), nn.ReLU(), nn.Linear(channels, outputs), nn.ReLU()
        )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return outputs ``[B, T, F]`` of all positions ``[B, T, X]``, given a condition ``[B, C]``."""
        hidden, gated = self.embed(x), []
        length = x.shape[1]
        for dilation, added, (taps, residual) in zip(
            self.dilations, self._added(condition), self._weights().layers, strict=True
        ):
            # Never further back than the sequence is long: a shift beyond it would cut more than there is.
            before = F.pad(hidden, (0, 0, min(dilation, length), 0))[:, :length]
            gated.append(_gate(torch.cat([before, hidden], -1) @ taps + added.unsqueeze(-2)))
            if residual is not None:
                hidden = hidden + gated[-1] @ residual
        return self.output(torch.cat(gated, -1))

    def begin(self, rows: int, condition: Tensor | None = None) -> WaveNetCache:
        """Return the cache before the first position of B = ``rows`` sequences, given a condition ``[B, C]``."""
        zero = self.embed.weight.new_zeros(rows, self.channels)
        added = () if self.condition is None else self._added(condition)
        return WaveNetCache(tuple((zero,) * dilation for dilation in self.dilations), added)

    def step(self, x: Tensor, cache: WaveNetCache) -> tuple[Tensor, WaveNetCache]:
        """Return the output ``[B, F]`` of the next position ``[B, X]`` and the cache after it: O(1) in the position."""
        before = [oldest for oldest, *_ in cache.past]
        output, hidden = self._position(x, before, cache.added or self._added(), self._weights())
        past = tuple((*inputs[1:], h) for inputs, h in zip(cache.past, hidden, strict=True))
        return output, WaveNetCache(past, cache.added)

    def reader(self, rows: int, condition: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return what maps positions ``[B, X]``, in turn, to outputs ``[B, F]``: :meth:`step` with the cache inside."""
        past, added = self.begin(rows, condition)
        added = added or self._added()
        queues, weights = [deque(before) for before in past], self._weights()

        def read(x: Tensor) -> Tensor:
            output, hidden = self._position(x, [queue.popleft() for queue in queues], added, weights)
            for queue, h in zip(queues, hidden, strict=True):
                queue.append(h)
            return output

        return read

    def _position(
        self, x: Tensor, past: list[Tensor], added: tuple[Tensor, ...], weights: _Weights
    ) -> tuple[Tensor, list[Tensor]]:
        """The output at a position, and what every layer read there.

        As few operations as there can be: at this size each costs its call, not its numbers.
        """
        h, hidden, gated = F.linear(x, *weights.embed), [], []
        for before, extra, (taps, residual) in zip(past, added, weights.layers, strict=True):
            hidden.append(h)
            gated.append(_gate(torch.addmm(extra, torch.cat((before, h), 1), taps)))
            if residual is not None:
                h = torch.addmm(h, gated[-1], residual)
        skip, bias, last, last_bias = weights.output
        return F.linear(F.linear(torch.cat(gated, 1), skip, bias).relu(), last, last_bias).relu(), hidden

    def _weights(self) -> _Weights:
        taps: list[Any] = list(self.taps)
        residual: list[Any] = [*(layer.weight.T for layer in list[Any](self.residual)), None]
        layers = [(t.weight.T, r) for t, r in zip(taps, residual, strict=True)]
        skip, _, last, _ = list[Any](self.output)
        return _Weights((self.embed.weight, self.embed.bias), layers, (skip.weight, skip.bias, last.weight, last.bias))

    def _added(self, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """V c + w of every layer."""
        biases: list[Any] = [taps.bias for taps in self.taps]
        if self.condition is None:
            return tuple(biases)
        parts = self.condition(condition).chunk(len(biases), -1)
        return tuple(part + bias for part, bias in zip(parts, biases, strict=True))


def _gate(taps: Tensor) -> Tensor:
    filtered, gate = taps.chunk(2, -1)
    return filtered.tanh() * gate.sigmoid()
