"""Encoders of demonstrations: from a trace to a context at every environment step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._saved import Saved
from ..models.networks import mlp

__all__ = ["BiLSTMEncoder", "LSTMEncoder", "MLPEncoder", "TransformerEncoder", "TraceEncoder", "make_encoder"]

_GROUP = 8  # traces that pass an LSTM together, at least


class TraceEncoder(Saved, nn.Module):
    """Turns inputs ``[B, T, X]`` of traces with ``lengths`` ``[B]`` into contexts b_t ``[B, T, size]``.

    Attributes:
        size: width of the context.
    """

    size: int

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the contexts; what stands after the end of a trace is never read."""
        raise NotImplementedError


class MLPEncoder(TraceEncoder):
    """A network of each step by itself: b_t depends on x_t alone. For what is pooled afterwards."""

    def __init__(self, input_size: int, hidden: int = 32):
        super().__init__()
        self.size = 2 * hidden
        self.net = mlp(input_size, (self.size, self.size), "relu")

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs of the last layer."""
        return self.net(inputs)


class LSTMEncoder(TraceEncoder):
    """A causal LSTM: b_t depends on x_0..x_t alone, so the guide filters instead of smoothing."""

    def __init__(self, input_size: int, hidden: int = 32):
        super().__init__()
        self.size = hidden
        self.lstm = nn.LSTM(input_size, hidden, batch_first=True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden states of one pass forward."""
        return _passed(self.lstm, inputs, lengths)


class BiLSTMEncoder(TraceEncoder):
    """A bidirectional LSTM over whole traces, ``hidden`` units a direction: the paper's b_phi(x)."""

    def __init__(self, input_size: int, hidden: int = 32):
        super().__init__()
        self.size = 2 * hidden
        self.forwards = nn.LSTM(input_size, hidden, batch_first=True)
        self.backwards = nn.LSTM(input_size, hidden, batch_first=True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden states of both passes."""
        # Reversing each trace within its length keeps the padding at the end, so that two plain passes over
        # padded tensors do: several times faster on a CPU than packing the sequences.
        turned = _passed(self.backwards, _reverse(inputs, lengths), lengths)
        return torch.cat([_passed(self.forwards, inputs, lengths), _reverse(turned, lengths)], -1)


def _passed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """The hidden states of a pass over padded traces.

    A CPU takes as long for padding as for traces, so that many of them pass by length, in up to four groups.
    """
    groups = min(len(lengths) // _GROUP, 4) if inputs.device.type == "cpu" else 1
    if groups < 2:
        return lstm(inputs)[0]
    order = lengths.argsort()
    passed = [lstm(inputs[rows, : int(lengths[rows[-1]])])[0] for rows in order.chunk(groups)]
    padded = [F.pad(states, (0, 0, 0, inputs.shape[1] - states.shape[1])) for states in passed]
    return torch.cat(padded)[order.argsort()]


def _reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row within its length; the padding stays in place."""
    step = torch.arange(x.shape[1], device=x.device)
    last = lengths.unsqueeze(1) - 1
    index = torch.where(step <= last, last - step, step)
    return x.gather(1, index.unsqueeze(-1).expand_as(x))


class TransformerEncoder(TraceEncoder):
    """Self-attention over whole traces, with sinusoidal positions and the padding masked."""

    def __init__(self, input_size: int, hidden: int = 32, *, layers: int = 2, heads: int = 4):
        super().__init__()
        self.size = 2 * hidden
        if self.size % heads:
            raise ValueError(
                f"a transformer of {heads} heads needs twice its size, {self.size}, to be a multiple of that"
            )
        self.embed = nn.Linear(input_size, self.size)
        layer = nn.TransformerEncoderLayer(
            self.size, heads, 2 * self.size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs of the last layer."""
        step = torch.arange(inputs.shape[1], device=inputs.device)
        padding = step >= lengths.unsqueeze(1)
        rates = torch.exp(torch.arange(0, self.size, 2, device=inputs.device) * (-math.log(1e4) / self.size))
        angles = step.unsqueeze(-1).to(inputs.dtype) * rates.to(inputs.dtype)
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        return self.layers(self.embed(inputs) + positions, src_key_padding_mask=padding)


_ENCODERS = {"bilstm": BiLSTMEncoder, "lstm": LSTMEncoder, "transformer": TransformerEncoder, "mlp": MLPEncoder}


def make_encoder(encoder: str | TraceEncoder, input_size: int, size: int) -> TraceEncoder:
    """Return an encoder of inputs ``[B, T, input_size]`` by name; one that is made already is returned as it is.

    Args:
        encoder: ``"bilstm"``, ``"lstm"``, ``"transformer"``, ``"mlp"``, or a :class:`TraceEncoder`.
        input_size: X.
        size: units of a named encoder (a direction).

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(encoder, TraceEncoder):
        return encoder
    if encoder not in _ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(_ENCODERS)}, got {encoder!r}")
    return _ENCODERS[encoder](input_size, size)
