"""Skill embeddings: a conditional VAE of trajectories, whose latent variable is the skill.

"Complex Skill Acquisition through Simple Skill Imitation Learning", eq. (1), with its sign corrected:

    z ~ N(0, I),   a_t ~ pi(. | s_t, z),   s_{t+1} ~ P(. | s_1..s_t, z),

    log p(tau | s_1) >= E_q(z | s_1..s_T)[ sum_t log pi(a_t | s_t, z) + log P(s_{t+1} | s_1..s_t, z) ] - KL(q, p).

Shapes: B trajectories, T states (of which the last has no action), S state numbers, A action numbers, D latent numbers.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import gymnasium
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .dynamics import Dynamics, DynamicsContext, make_dynamics
from .heads import Head, make_head
from .networks import mlp
from .policies.policy import Acting, Policy
from .process import Sequence
from .registration import register

__all__ = ["Skill", "TrajectoryCVAE"]


class TrajectoryCVAE(Policy):
    """A Gaussian policy and a dynamics model that share one embedding z of the whole trajectory.

    As a policy it acts by ``predict(observation, state=z)``: what it remembers is which skill it follows. Without a
    state it draws one from the prior; :meth:`acting` fixes it.

    Args:
        observation_space: of the environment, or of the demonstrations. Observations are the states, which the dynamics
            predict number by number: images are read flat, and scaled by their bounds.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        latent: D.
        hidden: sizes of the policy's hidden layers.
        activation: of the policy, ``"tanh"`` or ``"relu"``.
        head: of the policy; by default ``"gaussian"`` for `Box`, as in the paper, ``"categorical"`` otherwise.
        axis: what the dynamics' WaveNet is causal along, ``"time"`` (default) or ``"components"`` of the state; or
            any :class:`~pyrocontrol.models.Dynamics`.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for sizes that are not positive, an unknown axis or head.
    """

    remembers = True

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        latent: int = 16,
        hidden: Several[int] = (256, 256),
        activation: str = "relu",
        head: str | Head | None = None,
        axis: str | Dynamics = "time",
    ):
        super().__init__(observation_space, action_space, encoder="flat")
        if latent < 1:
            raise ValueError(f"latent must be positive, got {latent}")
        self.latent, self.hidden, self.activation = latent, tuple(hidden), activation
        self.net = mlp(self.input_size + latent, hidden, activation)
        if head is None:
            head = "gaussian" if isinstance(action_space, gymnasium.spaces.Box) else "auto"
        self.head = make_head(head, hidden[-1] if hidden else self.input_size + latent, action_space)
        self.dynamics = make_dynamics(axis, self.input_size, latent)

    # -- the model --------------------------------------------------------------------------------------------------

    def prior(self, rows: int) -> TorchDistribution:
        """Return p(z) = N(0, I), batch shape ``[rows]``, event shape ``[D]``."""
        zero = self.factor.new_zeros(rows, self.latent)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def actions_of(self, states: Tensor, z: Tensor) -> TorchDistribution:
        """Return pi(a | s, z) at scaled states ``[..., S]`` and embeddings ``[..., D]``."""
        return self.head(self.net.step(states, z)[0])

    def dynamics_of(self, z: Tensor, first: Tensor, steps: int, each: Tensor | None = None) -> Sequence:
        """Return P(s_2.. | s_1, z), the distribution of the scaled states that follow the first.

        Args:
            z: ``[..., D]``.
            first: scaled, ``[..., S]``, broadcast with z.
            steps: how many states follow, the padding included.
            each: how many do of each trajectory, long, broadcast with z; by default all.
        """
        batch = z.shape[:-1]
        each = z.new_full(batch, steps, dtype=torch.long) if each is None else each.expand(batch)
        return Sequence(self.dynamics, DynamicsContext(z, first.expand(*batch, -1), each), steps, batch_shape=batch)

    def model(self, batch: Any) -> Tensor:
        """Pyro model: latent ``z``, observed ``actions`` and ``states``, in plate ``batch``.

        Returns:
            z ``[B, D]``.
        """
        register("skills", self)
        states, actions = self.scaled(batch.observations), self.labels(batch)
        with pyro.plate("batch", len(states), dim=-1):
            z = pyro.sample("z", self.prior(len(states)))
            policy = self.actions_of(states, z.unsqueeze(-2)).mask(batch.acted)
            pyro.sample("actions", policy.to_event(1), obs=actions)
            following = states[:, 1:]
            dynamics = self.dynamics_of(z, states[:, 0], following.shape[1], batch.lengths - 1)
            pyro.sample("states", dynamics, obs=following)
        return z

    def forward(self, batch: Any) -> Tensor:
        """Run :meth:`model`, so that the policy itself can be given to an ELBO as a module."""
        return self.model(batch)

    # -- generating -------------------------------------------------------------------------------------------------

    def unscaled(self, states: Tensor) -> Tensor:
        """Return states in the observations' own units: the inverse of :meth:`scaled`."""
        return (states - self.offset) / self.factor

    @torch.no_grad()
    def generate(self, z: Tensor, first: Tensor, steps: int, *, deterministic: bool = True) -> Tensor:
        """Return trajectories that the dynamics generate, ``[..., steps + 1, S]``, in the observations' units.

        Args:
            z: embeddings ``[..., D]``.
            first: first observations ``[..., S]``, broadcast with ``z``.
            steps: how many states follow.
            deterministic: the mode of every step in turn, instead of a random one.

        Raises:
            ValueError: if sizes differ from the model's, a number is not finite, or steps is not positive.
        """
        given = z.shape[-1], first.shape[-1]
        if given != (self.latent, self.input_size):
            raise ValueError(f"embedding and state have {self.latent} and {self.input_size} numbers, got {given}")
        if not (z.isfinite().all() and first.isfinite().all()):
            raise ValueError("an embedding or a first state is not finite")
        batch = torch.broadcast_shapes(z.shape[:-1], first.shape[:-1])
        z, start = z.expand(*batch, -1), self.scaled(first).expand(*batch, -1)
        sequence = self.dynamics_of(z, start, steps)
        states = sequence.greedy() if deterministic else sequence.sample()
        return self.unscaled(torch.cat([start.unsqueeze(-2), states], -2))

    # -- acting -----------------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> Tensor:
        """Return embeddings from the prior, ``[B, D]``."""
        return self.prior(rows).sample()

    def step(self, inputs: Tensor, state: Tensor, deterministic: bool) -> tuple[TorchDistribution, Tensor]:
        """Return pi(a | s, z) at scaled inputs ``[B, S]``, and z."""
        return self.actions_of(inputs, state), state

    def acting(self, z: Tensor) -> Skill:
        """Return the policy that follows one embedding, ``[D]`` or ``[1, D]``, in all episodes."""
        return Skill(self, z)

    def settings(self) -> dict[str, Any]:
        """What two models share exactly when they can share weights, the spaces apart."""
        kind = f"{type(self.dynamics).__name__}{self.dynamics.settings()}"
        own = {"latent": self.latent, "hidden": self.hidden, "activation": self.activation}
        return own | {"head": self.head.signature(), "dynamics": kind}


class Skill(Acting):
    """A :class:`TrajectoryCVAE` that acts with one embedding.

    Args:
        skills: the model.
        z: ``[D]`` or ``[1, D]``.

    Raises:
        ValueError: if the embedding has another size, or is not finite.
    """

    z: Tensor

    def __init__(self, skills: TrajectoryCVAE, z: Tensor):
        super().__init__()
        if z.numel() != skills.latent or z.shape[-1] != skills.latent:
            raise ValueError(f"one embedding of {skills.latent} numbers is needed, got shape {tuple(z.shape)}")
        if not z.isfinite().all():
            raise ValueError("the embedding is not finite")
        self.skills = skills
        self.observation_space, self.action_space = skills.observation_space, skills.action_space
        self.register_buffer("z", z.detach().reshape(1, -1))

    def encoded(self, inputs: Tensor) -> Tensor:
        """Return scaled states."""
        return self.skills.scaled(inputs)

    def step(self, inputs: Tensor, state: None, deterministic: bool) -> tuple[TorchDistribution, None]:
        """Return pi(a | s, z) at scaled inputs ``[B, S]``; the embedding needs no state."""
        return self.skills.actions_of(inputs, self.z), None

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return stored actions, the likeliest or random ones."""
        return self.skills.choose(distribution, deterministic)
