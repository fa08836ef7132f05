"""Posteriors over the latents of a world model: filtering, which also acts, and smoothing.

Shapes: B sequences, T steps, O observation numbers, E numbers of an embedding, U units, A action
numbers, Z latent numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .._saved import Saved
from .._verify import verify_least
from ..models.latent_dynamics import ActionDriven, Belief, LatentDynamics, WorldModel, latent_outputs, latents_of
from ..models.process import Sequence, at_step
from ..models.registration import register
from .encoders import TraceEncoder, make_encoder

__all__ = ["Filtered", "FilteringGuide", "FilteringPosterior"]


class Filtered(NamedTuple):
    """The context of a posterior: the actions, and what is read of the observations.

    Attributes:
        actions: ``[B, T, A]``.
        embeddings: ``[B, T, U]``, the share of the first layer that observations have.
    """

    actions: Tensor
    embeddings: Tensor


class FilteringPosterior(ActionDriven):
    """``q(z_t | h_t, x_t)``: the memory is that of the dynamics, moved by the latents that the posterior draws.

    Args:
        dynamics: whose latents it infers, and whose cell it uses.
        hidden: units, U.
    """

    def __init__(self, dynamics: LatentDynamics, hidden: int):
        super().__init__()
        self._dynamics = (dynamics,)  # in a tuple, so that its parameters are not the guide's
        self.memory_size, self.latent_size = dynamics.memory_size, dynamics.latent_size
        self.action_size, self.event_shape = dynamics.action_size, dynamics.event_shape
        self.memory_layer = nn.Linear(dynamics.memory_size, hidden)
        self.head = nn.Sequential(nn.ELU(), nn.Linear(hidden, latent_outputs(dynamics.event_shape)))
        self.least_std = dynamics.least_std

    @property
    def dynamics(self) -> ActionDriven:
        """The dynamics whose memory this posterior shares."""
        return self._dynamics[0]

    def depends_on(self) -> Iterator[Tensor]:
        """The tensors of the dynamics too."""
        yield from super().depends_on()
        yield from self.dynamics.depends_on()

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return the memory of the dynamics."""
        return self.dynamics.transition(memory, z, action)

    def conditional(self, state: Belief, context: Filtered) -> TorchDistribution:
        """Return ``q(z_t | h_t, x_t)``."""
        return self.given(state.memory, at_step(context.embeddings, state.step))

    def given(self, memory: Tensor, embedding: Tensor) -> TorchDistribution:
        """Return ``q(z_t | h_t, x_t)`` of memories ``[..., D]`` and embeddings ``[..., U]``."""
        outputs = self.head(self.memory_layer(memory) + embedding)
        return latents_of(outputs, self.event_shape, self.least_std)


class FilteringGuide(Saved, nn.Module):
    """The amortised posterior over the latents of a :class:`~pyrocontrol.models.WorldModel`.

    ``q(z | x, a) = prod_t q(z_t | h_t, x_t)``, the first product of eq. (1) in R. Rafailov et al. (2021). With a trace
    encoder, ``x_t`` becomes an encoding of the whole sequence of observations and actions: with ``"bilstm"`` the guide
    smooths, and no longer acts.

    Args:
        world: the model, whose dynamics have latents.
        encoder: from observations ``[..., *shape]`` to ``[..., E]``, or one for each observation, by name.
        embedding_size: E, of all encoders together.
        hidden: units.
        trace: None to filter; ``"bilstm"`` or another :class:`TraceEncoder` over (embedding, action) to smooth.
        trace_size: units of a named trace encoder.

    Raises:
        TypeError: for a world whose latents are observed.
        ValueError: for sizes that are not positive, or an unknown trace encoder.
    """

    def __init__(
        self,
        world: WorldModel,
        encoder: nn.Module | Mapping[str, nn.Module],
        embedding_size: int,
        *,
        hidden: int = 200,
        trace: str | TraceEncoder | None = None,
        trace_size: int = 64,
    ):
        super().__init__()
        if not isinstance(world.dynamics, LatentDynamics):
            raise TypeError(f"the latents of {type(world.dynamics).__name__} are observed: there is nothing to infer")
        verify_least(1, embedding_size=embedding_size, hidden=hidden)
        self.encoders = nn.ModuleDict(encoder if isinstance(encoder, Mapping) else {"observations": encoder})
        self.process = FilteringPosterior(world.dynamics, hidden)
        size = embedding_size
        self.trace = None if trace is None else make_encoder(trace, size + world.dynamics.action_size, trace_size)
        self.embedding_layer = nn.Linear(size if self.trace is None else self.trace.size, hidden, bias=False)

    @property
    def filters(self) -> bool:
        """Whether ``z_t`` is inferred of what came up to t alone, so that the guide can act."""
        return self.trace is None

    def embed(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return embeddings ``[..., E]`` of observations ``[..., *shape]``, several by name."""
        seen: Any = observations if isinstance(observations, Mapping) else {"observations": observations}
        return torch.cat([encoder(seen[name]) for name, encoder in self.encoders.items()], -1)

    def posterior(self, observations: Tensor | Mapping[str, Tensor], actions: Tensor) -> Sequence:
        """Return ``q(z | x, a)`` over latents ``[B, T, ...]``."""
        read = self.embed(observations)
        if self.trace is not None:
            lengths = torch.full((len(read),), read.shape[1], device=read.device)
            read = self.trace(torch.cat([read, actions], -1), lengths)[:, : actions.shape[1]]
        return Sequence(self.process, Filtered(actions, self.embedding_layer(read)), actions.shape[1])

    def forward(self, observations: Tensor | Mapping[str, Tensor], actions: Tensor) -> Tensor:
        """Pyro guide: ``latents`` from the posterior, in plate ``batch``."""
        register("guide", self)
        with pyro.plate("batch", len(actions), dim=-1):
            return pyro.sample("latents", self.posterior(observations, actions))
