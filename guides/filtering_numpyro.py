"""The amortised posterior over the latents of a world model, in NumPyro; the twin of :mod:`.filtering`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ..models.latent_dynamics_numpyro import ActionDriven, Belief, check_last, latents_of, linear
from ..models.process_numpyro import Sequence, at_step
from ..models.twin_numpyro import Array, Twin, to_numpyro
from . import encoders_numpyro as encoders_numpyro  # whose twins `to_numpyro` finds
from . import filtering

__all__ = ["Filtered", "FilteringGuide", "FilteringPosterior"]


class Filtered(NamedTuple):
    """The context of a posterior; see :class:`~pyrocontrol.guides.Filtered`."""

    actions: Array
    embeddings: Array


class FilteringPosterior(ActionDriven, of=filtering.FilteringPosterior):
    """``q(z_t | h_t, x_t)``; see :class:`~pyrocontrol.guides.FilteringPosterior`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dynamics: ActionDriven = to_numpyro(self.mirrored.dynamics)

    def transition(self, memory: Array, z: Array, action: Array) -> Array:
        """Return the memory of the dynamics."""
        return self.dynamics.transition(memory, z, action)

    def conditional(self, state: Belief, context: Filtered) -> dist.Distribution:
        """Return ``q(z_t | h_t, x_t)``."""
        return self.given(state.memory, at_step(context.embeddings, state.step))

    def given(self, memory: Array, embedding: Array) -> dist.Distribution:
        """Return ``q(z_t | h_t, x_t)`` of memories ``[..., D]`` and embeddings ``[..., U]``."""
        hidden = jax.nn.elu(linear(self, "memory_layer", memory) + embedding)
        return latents_of(linear(self, "head.1", hidden), self.mirrored.least_std)


class FilteringGuide(Twin, of=filtering.FilteringGuide):
    """The posterior over the latents of a world model; see :class:`~pyrocontrol.guides.FilteringGuide`.

    Attributes:
        dynamics: the twin of the world's, whose weights the guide reads and does not own.

    Raises:
        TypeError: for an encoder without a twin, such as one of images.
        ValueError: for latents with classes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trace = self.mirrored.trace
        for part in (*self.mirrored.encoders.values(), *(() if trace is None else (trace,))):
            to_numpyro(part)
        self.dynamics: ActionDriven = to_numpyro(self.mirrored.process.dynamics)

    @property
    def filters(self) -> bool:
        """Whether ``z_t`` is inferred of what came up to t alone, so that the guide can act."""
        return self.mirrored.trace is None

    def registered(self, name: str) -> Self:
        """Return the twin with weights that are NumPyro parameters, the dynamics' as the world registers them."""
        guide = super().registered(name)
        held = {key: numpyro.param(f"world$$$dynamics.{key}", weight) for key, weight in self.dynamics.weights.items()}
        guide.dynamics = self.dynamics.with_weights(held)
        return guide

    def embed(self, observations: Array | Mapping[str, Array]) -> Array:
        """Return embeddings ``[B, T, E]`` of observations ``[B, T, *shape]``, several by name."""
        seen = observations if isinstance(observations, Mapping) else {"observations": observations}
        return jnp.concatenate([self.part(f"encoders.{name}")(seen[name]) for name in self.mirrored.encoders], -1)

    def posterior(self, observations: Array | Mapping[str, Array], actions: Array) -> Sequence:
        """Return ``q(z | x, a)`` over latents ``[B, T, ...]``."""
        check_last("actions", actions, self.dynamics.action_size)
        read = self.embed(observations)
        if not self.filters:
            lengths = jnp.full(len(read), read.shape[1])
            read = self.part("trace")(jnp.concatenate([read, actions], -1), lengths)[:, : actions.shape[1]]
        process: FilteringPosterior = self.part("process")
        process.dynamics = self.dynamics
        embeddings = read @ self.weights["embedding_layer.weight"].T
        return Sequence(process, Filtered(actions, embeddings), actions.shape[1])

    def __call__(self, observations: Array | Mapping[str, Array], actions: Array) -> Array:
        """NumPyro guide: ``latents`` from the posterior, in plate ``batch``."""
        guide = self.registered("guide")
        with numpyro.plate("batch", len(actions)):
            return numpyro.sample("latents", guide.posterior(observations, actions))
