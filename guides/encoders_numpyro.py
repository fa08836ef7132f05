"""Encoders of demonstrations in JAX; the twins of :mod:`.encoders`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..models.twin_numpyro import Array, Twin
from . import encoders

__all__ = ["BiLSTMEncoder", "LSTMEncoder"]

_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class LSTMEncoder(Twin, of=encoders.LSTMEncoder):
    """A causal LSTM over traces."""

    def __call__(self, inputs: Array, lengths: Array) -> Array:
        """Return contexts ``[B, T, size]`` of inputs ``[B, T, X]``."""
        return _lstm([[self.weights[f"lstm.{name}"] for name in _NAMES]], inputs[None])[0]


class BiLSTMEncoder(Twin, of=encoders.BiLSTMEncoder):
    """A bidirectional LSTM over whole traces: both directions in one loop."""

    def __call__(self, inputs: Array, lengths: Array) -> Array:
        """Return contexts ``[B, T, size]`` of inputs ``[B, T, X]``."""
        both = [[self.weights[f"{way}.{name}"] for name in _NAMES] for way in ("forwards", "backwards")]
        step, last = jnp.arange(inputs.shape[1]), lengths[:, None] - 1
        index = jnp.where(step <= last, last - step, step)[..., None]  # each row reversed within its length
        forwards, turned = _lstm(both, jnp.stack([inputs, jnp.take_along_axis(inputs, index, 1)]))
        return jnp.concatenate([forwards, jnp.take_along_axis(turned, index, 1)], -1)


def _lstm(weights: list[list[Array]], inputs: Array) -> Array:
    """Return the hidden states ``[W, B, T, H]`` of W LSTMs, torch's, over inputs ``[W, B, T, X]`` of each."""
    of_input, of_hidden, bias, other = (jnp.stack(parts) for parts in zip(*weights, strict=True))
    # What does not recur is one product.
    drive = jnp.einsum("wbtx,wgx->twbg", inputs, of_input) + (bias + other)[:, None]
    return jnp.moveaxis(_recur(drive, of_hidden), 0, 2)


@jax.custom_vjp
def _recur(drive: Array, of_hidden: Array) -> Array:
    """Return the hidden states ``[T, W, B, H]`` of what drives the gates ``[T, W, B, 4 H]``.

    The gradient is written out, because the compiler leaves in the loop back what needs no recurrence.
    """
    return _recur_forwards(drive, of_hidden)[0]


def _recur_forwards(drive: Array, of_hidden: Array) -> tuple[Array, Any]:
    size, transposed = of_hidden.shape[-1], of_hidden.transpose(0, 2, 1)

    def step(carry: Any, driven: Array) -> Any:
        h, c = carry
        gates = driven + h @ transposed
        opened, g = jax.nn.sigmoid(gates), jnp.tanh(gates[..., 2 * size : 3 * size])
        c = opened[..., size : 2 * size] * c + opened[..., :size] * g
        h = opened[..., 3 * size :] * jnp.tanh(c)
        return (h, c), (h, c, opened, g)

    start = jnp.zeros((*drive.shape[1:3], size), drive.dtype)
    _, kept = lax.scan(step, (start, start), drive, unroll=4)
    return kept[0], (of_hidden, *kept)


def _recur_backwards(kept: Any, of_h: Array) -> tuple[Array, Array]:
    of_hidden, h, c, opened, g = kept
    size = h.shape[-1]

    def before(states: Array) -> Array:
        return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

    i, f, o, tanh_c = opened[..., :size], opened[..., size : 2 * size], opened[..., 3 * size :], jnp.tanh(c)
    # d gate / d c of the gates i, f, g; d o / d h; d c / d h.
    by_cell = jnp.stack([g * i * (1 - i), before(c) * f * (1 - f), i * (1 - g**2)], -2)
    by_output, into_cell = tanh_c * o * (1 - o), o * (1 - tanh_c**2)

    def step(carry: Any, at: Any) -> Any:
        dh, dc = carry
        of_h, by_cell, by_output, into_cell, f = at
        dh = dh + of_h
        dc = dc + dh * into_cell
        cells = (dc[..., None, :] * by_cell).reshape(*dc.shape[:-1], -1)
        gates = jnp.concatenate([cells, dh * by_output], -1)
        return (gates @ of_hidden, dc * f), gates

    start = jnp.zeros_like(h[0])
    _, gates = lax.scan(step, (start, start), (of_h, by_cell, by_output, into_cell, f), reverse=True, unroll=4)
    return gates, jnp.einsum("twbg,twbh->wgh", gates, before(h))


_recur.defvjp(_recur_forwards, _recur_backwards)
