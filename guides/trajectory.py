"""The amortised posterior over a trajectory's embedding.

Attention as in P. Zhou et al. (2016): with H the encoder's outputs, M = tanh(H), alpha = softmax(w'M), r = H alpha.

Shapes: B trajectories, T states, X input numbers, S state numbers, D latent numbers.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .._saved import Saved
from ..models.heads import GaussianHead
from ..models.registration import register
from ..models.skills import TrajectoryCVAE
from .encoders import TraceEncoder, make_encoder

__all__ = ["TrajectoryEncoder", "TrajectoryGuide"]

_POOLINGS = ("attention", "mean")
# Below every score that there is, and finite.
_NEVER = -1e9


class TrajectoryEncoder(Saved, nn.Module):
    """From a trajectory of any length to a diagonal normal over D numbers.

    Args:
        input_size: X.
        latent: D.
        encoder: ``"bilstm"``, ``"lstm"``, ``"transformer"``, ``"mlp"`` (each state by itself), or a
            :class:`TraceEncoder`.
        pooling: how contexts of all steps become one: ``"attention"`` or ``"mean"``; the padding is left out.
        encoder_size: units of a named encoder (a direction).

    Raises:
        ValueError: for an unknown encoder or pooling.
    """

    def __init__(
        self,
        input_size: int,
        latent: int,
        encoder: str | TraceEncoder = "bilstm",
        *,
        pooling: str = "attention",
        encoder_size: int = 64,
    ):
        super().__init__()
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}, got {pooling!r}")
        self.input_size, self.latent, self.pooling = input_size, latent, pooling
        self.encoder = make_encoder(encoder, input_size, encoder_size)
        self.attention = nn.Linear(self.encoder.size, 1, bias=False) if pooling == "attention" else None
        self.head = GaussianHead(self.encoder.size, latent)

    def forward(self, inputs: Tensor, lengths: Tensor) -> TorchDistribution:
        """Return the normal over the embedding of each trajectory ``[B, T, X]`` of ``lengths`` ``[B]``."""
        contexts = self.encoder(inputs, lengths)
        return self.head((self.weights(contexts, lengths).unsqueeze(-1) * contexts).sum(1).tanh())

    def weights(self, contexts: Tensor, lengths: Tensor) -> Tensor:
        """Return how much each step counts, ``[B, T]``; they sum to 1, and the padding has none."""
        exists = torch.arange(contexts.shape[1], device=contexts.device) < lengths.unsqueeze(1)
        scores = contexts.new_zeros(exists.shape) if self.attention is None else self._scores(contexts)
        return scores.masked_fill(~exists, _NEVER).softmax(1)

    def _scores(self, contexts: Tensor) -> Tensor:
        assert self.attention is not None
        return self.attention(contexts.tanh()).squeeze(-1)


class TrajectoryGuide(Saved, nn.Module):
    """q(z | s_1..s_T), a diagonal normal; it reads states only, as the paper's does.

    Args:
        skills: the model whose embedding is inferred.
        encoder: see :class:`TrajectoryEncoder`; ``"bilstm"`` with attention is the paper's.
        pooling: ``"attention"`` or ``"mean"``.
        encoder_size: units of a named encoder (a direction).

    Raises:
        ValueError: for an unknown encoder or pooling.
    """

    def __init__(
        self,
        skills: TrajectoryCVAE,
        encoder: str | TraceEncoder = "bilstm",
        *,
        pooling: str = "attention",
        encoder_size: int = 64,
    ):
        super().__init__()
        self.encoder = TrajectoryEncoder(
            skills.input_size, skills.latent, encoder, pooling=pooling, encoder_size=encoder_size
        )
        self._kind = encoder if isinstance(encoder, str) else type(encoder).__name__
        self._fresh = (encoder, pooling, encoder_size)
        self._skills = (skills,)  # in a tuple, so that its parameters are not the guide's

    @property
    def skills(self) -> TrajectoryCVAE:
        """The model whose embedding is inferred."""
        return self._skills[0]

    def forward(self, batch: Any) -> Tensor:
        """Pyro guide: ``z`` ``[B, D]`` from the posterior, in plate ``batch``."""
        register("guide", self)
        with pyro.plate("batch", len(batch.observations), dim=-1):
            return pyro.sample("z", self.posterior(batch))

    def posterior(self, batch: Any) -> TorchDistribution:
        """Return q(z | s) of each trajectory of a batch, batch shape ``[B]``, event shape ``[D]``."""
        return self.encode(self.skills.scaled(batch.observations), batch.lengths)

    def encode(self, states: Tensor, lengths: Tensor) -> TorchDistribution:
        """Return q(z | s) of scaled states ``[B, T, S]``, of which ``lengths`` ``[B]`` are no padding."""
        return self.encoder(states, lengths)

    def fresh_encoder(self, extra: int = 0) -> TrajectoryEncoder:
        """Return an encoder like this guide's with weights of its own, which reads ``extra`` more numbers a step.

        Raises:
            ValueError: if the guide's encoder was made elsewhere: then make the other one there, too.
        """
        encoder, pooling, size = self._fresh
        if not isinstance(encoder, str):
            raise ValueError(f"a {self._kind} made elsewhere cannot be made again here; pass a TrajectoryEncoder")
        own = self.encoder
        return TrajectoryEncoder(own.input_size + extra, own.latent, encoder, pooling=pooling, encoder_size=size)

    def signature(self) -> str:
        """Return what a checkpoint must share with this guide to fit it."""
        own = self.encoder
        return f"TrajectoryGuide({self._kind}, {own.encoder.size}, {own.pooling}) of {self.skills.signature()}"
