"""The amortised posterior over latent memory."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .._saved import Saved
from ..models.heads import action_features, action_features_size
from ..models.policies.memory import LatentMemoryPolicy, MemoryContext
from ..models.process import Sequence
from ..models.registration import register
from .encoders import TraceEncoder, make_encoder

__all__ = ["MemoryGuide"]


class MemoryGuide(Saved, nn.Module):
    """The posterior q(m_t | m_{t-1}, b_t) over the memory of a policy, b an encoding of the whole demonstration.

    Memory of the policy's own kind with parameters of its own, the observation replaced by the context b_t.

    Args:
        policy: the policy whose memory is inferred.
        encoder: ``"bilstm"``, ``"lstm"`` (causal), ``"transformer"``, or a :class:`TraceEncoder` over (observation,
            action), of :attr:`input_size` numbers.
        encoder_size: units of a named encoder (a direction).

    Raises:
        ValueError: for an unknown encoder.
    """

    def __init__(self, policy: LatentMemoryPolicy, encoder: str | TraceEncoder = "bilstm", *, encoder_size: int = 32):
        super().__init__()
        self.input_size = policy.encoded_size + action_features_size(policy.action_space)
        self.encoder = make_encoder(encoder, self.input_size, encoder_size)
        self.process = policy.memory.like(self.encoder.size)
        self._policy = (policy,)  # in a tuple, so that its parameters are not the guide's

    @property
    def policy(self) -> LatentMemoryPolicy:
        """The policy whose memory is inferred."""
        return self._policy[0]

    def forward(self, batch: Any) -> Tensor:
        """Pyro guide: ``memory`` from the posterior, in plate ``batch``."""
        register("guide", self)
        with pyro.plate("batch", len(batch.observations), dim=-1):
            return pyro.sample("memory", self.posterior(batch))

    def posterior(self, batch: Any) -> Sequence:
        """Return ``q(m | o, a)``."""
        observations = self.policy.encoded(batch.observations)
        actions = action_features(self.policy.action_space, batch.actions, observations.dtype)
        contexts = self.encoder(torch.cat([observations, actions], -1), batch.lengths)
        return Sequence(self.process, MemoryContext(contexts, batch.lengths - 1), max(contexts.shape[1] - 1, 1))

    @torch.no_grad()
    def infer(self, batch: Any) -> Tensor:
        """Return the memory that is likeliest at every step, given the step before, ``[B, I]`` or ``[B, I, D]``."""
        return self.posterior(batch).greedy()

    def signature(self) -> str:
        """Return what a checkpoint must share with this guide to fit it."""
        return f"MemoryGuide({type(self.encoder).__name__}, {self.encoder.size}) of {self.policy.signature()}"
