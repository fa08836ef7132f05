"""Latent dynamics driven by actions, in NumPyro; the twin of :mod:`.latent_dynamics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from . import latent_dynamics
from .process_numpyro import Emission, Process, Sequence, at_step, same_arrays, same_weights
from .twin_numpyro import Array, Twin, to_numpyro

__all__ = [
    "ActionDriven",
    "Belief",
    "Driven",
    "LatentDynamics",
    "ObservedDynamics",
    "VectorDecoder",
    "VectorEncoder",
    "WorldModel",
]


class Driven(NamedTuple):
    """The context of a process driven by actions; see :class:`~pyrocontrol.models.Driven`."""

    actions: Array


class Belief(NamedTuple):
    """What is known before step t; see :class:`~pyrocontrol.models.Belief`."""

    memory: Array
    step: Array


class ActionDriven(Process):
    """A process whose memory is moved by its own steps and by given actions.

    See :class:`~pyrocontrol.models.ActionDriven`. A subclass has :meth:`transition` and :meth:`prior`, and sizes of
    its own if it mirrors no torch process.
    """

    of = latent_dynamics.ActionDriven
    has_rsample = True
    memory_size: int
    latent_size: int
    action_size: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.mirrored) is not latent_dynamics.ActionDriven:
            for name in ("memory_size", "latent_size", "action_size", "event_shape"):
                setattr(self, name, getattr(self.mirrored, name))

    @property
    def feature_size(self) -> int:
        """F."""
        return self.memory_size + self.latent_size

    def transition(self, memory: Array, z: Array, action: Array) -> Array:
        """Return ``h_{t+1} = f(h_t, z_t, a_t)`` ``[..., D]``."""
        raise NotImplementedError

    def prior(self, memory: Array) -> dist.Distribution:
        """Return ``p(z_t | h_t)``, batch shape ``[...]``."""
        raise NotImplementedError

    def features(self, memory: Array, z: Array) -> Array:
        """Return what is read of a state ``(h_t, z_t)``, ``[..., F]``."""
        return jnp.concatenate([memory, z.reshape(*memory.shape[:-1], self.latent_size)], -1)

    def initial(self, context: Any) -> Belief:
        """Return a memory of zeros."""
        rows = len(context.actions)
        return Belief(jnp.zeros((rows, self.memory_size), context.actions.dtype), jnp.zeros(rows, int))

    def conditional(self, state: Belief, context: Any) -> dist.Distribution:
        """Return ``p(z_t | h_t)``."""
        return self.prior(state.memory)

    def advance(self, state: Belief, z: Array, context: Any) -> Belief:
        """Return the memory after ``z_t`` and ``a_t``."""
        return Belief(self.transition(state.memory, z, at_step(context.actions, state.step)), state.step + 1)

    def same_states(self, other: Process, context: Any, theirs: Any) -> bool:
        """Whether ``other`` is this process, or a posterior over its latents, driven by the same actions."""
        one, another = (getattr(process, "dynamics", process) for process in (self, other))
        return same_weights(one, another) and same_arrays(context.actions, theirs.actions)


class LatentDynamics(ActionDriven, of=latent_dynamics.LatentDynamics):
    """The recurrent state-space model with normal latents; see :class:`~pyrocontrol.models.LatentDynamics`.

    Raises:
        ValueError: for latents with classes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.mirrored.classes is not None:
            raise ValueError("latents with classes have no twin in NumPyro: LatentDynamics(classes=None) has")

    def transition(self, memory: Array, z: Array, action: Array) -> Array:
        """Return the GRU's next state."""
        x = jax.nn.elu(linear(self, "inputs", jnp.concatenate([z, action], -1)))
        of_x = x @ self.weights["cell.weight_ih"].T + self.weights["cell.bias_ih"]
        of_memory = memory @ self.weights["cell.weight_hh"].T + self.weights["cell.bias_hh"]
        (reset, update, new), (r, u, n) = jnp.split(of_x, 3, -1), jnp.split(of_memory, 3, -1)
        kept = jax.nn.sigmoid(update + u)
        return (1 - kept) * jnp.tanh(new + jax.nn.sigmoid(reset + r) * n) + kept * memory

    def prior(self, memory: Array) -> dist.Distribution:
        """Return ``p(z_t | h_t)``."""
        return latents_of(linear(self, "head.2", jax.nn.elu(linear(self, "head.0", memory))), self.mirrored.least_std)


def linear(twin: Twin, name: str, x: Array) -> Array:
    """Return what a linear layer of a module makes of ``[..., X]``."""
    return x @ twin.weights[f"{name}.weight"].T + twin.weights[f"{name}.bias"]


def latents_of(outputs: Array, least_std: float) -> dist.Distribution:
    """Return a distribution of normal latents, batch shape ``[...]``, by a network's outputs ``[..., 2 Z]``."""
    mean, std = jnp.split(outputs, 2, -1)
    return dist.Normal(mean, jax.nn.softplus(std) + least_std).to_event(1)


class ObservedDynamics(ActionDriven, of=latent_dynamics.ObservedDynamics):
    """An MDP, moved by an ensemble of networks; see :class:`~pyrocontrol.models.ObservedDynamics`."""

    @property
    def feature_size(self) -> int:
        """O: nothing else is to be known of a state."""
        return self.latent_size

    def features(self, memory: Array, z: Array) -> Array:
        """Return the observation."""
        return z

    def transition(self, memory: Array, z: Array, action: Array) -> Array:
        """Return ``(x_t, a_t)``."""
        return jnp.concatenate([z, action], -1)

    def prior(self, memory: Array) -> dist.Distribution:
        """Return ``p(x_t | x_{t-1}, a_{t-1})`` by the member of each row."""
        mean, std = self._parameters(memory)
        return dist.Normal(mean, std).to_event(1)

    def conditional(self, state: Belief, context: Any) -> dist.Distribution:
        """Return ``p(x_t | x_{t-1}, a_{t-1})``, and a standard normal at the first step."""
        mean, std = self._parameters(state.memory)
        first = (state.step == 0)[..., None]
        return dist.Normal(jnp.where(first, 0.0, mean), jnp.where(first, 1.0, std)).to_event(1)

    def _parameters(self, memory: Array) -> tuple[Array, Array]:
        """The mean and the standard deviation ``[B, ..., O]`` by the member of each row: they are dealt out in turn."""
        rows, members = len(memory), self.mirrored.members
        hidden = jnp.pad(memory.reshape(rows, -1, self.memory_size), ((0, -rows % members), (0, 0), (0, 0)))
        hidden = hidden.reshape(-1, members, *hidden.shape[1:])  # [B / K, K, inner, D]
        layers = len(self.mirrored.weights)
        for n in range(layers):
            weight, bias = self.weights[f"weights.{n}"], self.weights[f"biases.{n}"]
            hidden = jnp.einsum("bkid,kdo->bkio", hidden, weight) + bias
            hidden = jax.nn.silu(hidden) if n < layers - 1 else hidden
        outputs = hidden.reshape(-1, *hidden.shape[2:])[:rows].reshape(*memory.shape[:-1], -1)
        mean, log_std = jnp.split(outputs, 2, -1)
        low, high = self.mirrored.bounds
        std = jnp.exp(low + (high - low) * jax.nn.sigmoid(log_std))
        return memory[..., : self.latent_size] + mean, std

    def unroll(self, z: Array, context: Any) -> tuple[Belief, Array]:
        """Return all states at once: they are the observations and actions, a step later."""
        rows, steps = z.shape[:2]
        before = self.transition(z, z, context.actions[:, :steps])[:, :-1]
        memory = jnp.pad(before, ((0, 0), (1, 0), (0, 0)))
        step = jnp.broadcast_to(jnp.arange(steps), (rows, steps))
        return Belief(memory, step), jnp.ones((rows, steps), bool)


class VectorEncoder(Twin, of=latent_dynamics.VectorEncoder):
    """One layer with ELU, of vectors; see :class:`~pyrocontrol.models.VectorEncoder`."""

    def __call__(self, vectors: Array) -> Array:
        """Return the features ``[..., size]`` of vectors ``[..., O]``."""
        check_last("observations", vectors, self.mirrored.layers[0].in_features)
        return jax.nn.elu(linear(self, "layers.0", vectors))


class VectorDecoder(Twin, of=latent_dynamics.VectorDecoder):
    """p(x_t | h_t, z_t) of vectors; see :class:`~pyrocontrol.models.VectorDecoder`."""

    def __call__(self, features: Array) -> dist.Distribution:
        """Return the distribution at features ``[..., F]``, batch shape ``[...]``."""
        return dist.Normal(self.mean(features), 1.0).to_event(1)

    def mean(self, features: Array) -> Array:
        """Return the vectors ``[..., O]`` at features ``[..., F]``."""
        hidden = jax.nn.elu(linear(self, "layers.2", jax.nn.elu(linear(self, "layers.0", features))))
        return linear(self, "layers.4", hidden)


def check_last(name: str, values: Array, size: int) -> None:
    """Make sure that sequences are of floats ``[B, T, size]``.

    Raises:
        ValueError: if they are not.
    """
    if values.ndim != 3 or values.shape[-1] != size or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats [B, T, {size}], not {values.dtype} {[*values.shape]}")


class WorldModel(Twin, of=latent_dynamics.WorldModel):
    """The NumPyro model of what is observed; see :class:`~pyrocontrol.models.WorldModel`.

    Raises:
        TypeError: for dynamics or a decoder without a twin, such as those of images.
        ValueError: for latents with classes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part in (self.mirrored.dynamics, *self.mirrored.decoders.values()):
            to_numpyro(part)

    @property
    def dynamics(self) -> ActionDriven:
        """The process of the latents."""
        dynamics: ActionDriven = self.part("dynamics")
        return dynamics

    def path(self, actions: Array) -> Sequence:
        """Return the prior over latents ``[B, T, ...]`` given actions ``[B, T, A]``."""
        check_last("actions", actions, self.mirrored.dynamics.action_size)
        return Sequence(self.dynamics, Driven(actions), actions.shape[1])

    def model(self, observations: Array | Mapping[str, Array] | None, actions: Array) -> Array:
        """NumPyro model, with the sites of the Pyro model: ``latents``, and one for each decoder, in plate ``batch``.

        Args:
            observations: ``[B, T, ...]``, as the decoders have them; several by name; None to draw them.
            actions: ``[B, T, A]``.

        Returns:
            The latents ``[B, T, ...]``.
        """
        world = self.registered("world")
        path = world.path(actions)
        seen: Any = observations if isinstance(observations, Mapping) else {"observations": observations}
        with numpyro.plate("batch", len(actions)):
            if not self.mirrored.decoders:
                if seen["observations"] is not None:
                    check_last("observations", seen["observations"], world.dynamics.latent_size)
                return numpyro.sample("latents", path, obs=seen["observations"])
            z = numpyro.sample("latents", path)
            features = world.dynamics.features(path.states(z).memory, z)
            for name in self.mirrored.decoders:
                decoder = world.part(f"decoders.{name}")
                numpyro.sample(name, Emission(decoder(features), along="latents"), obs=seen[name])
        return z
