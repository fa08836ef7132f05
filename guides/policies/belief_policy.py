"""A policy over the states of a world model, which it infers from what it sees: what a world model acts by.

Shapes: B rows, O observation numbers, A action numbers, F feature numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor

from ...models.imagination import Start
from ...models.latent_dynamics import WorldModel
from ...models.policies.level import check_box
from ...models.policies.policy import Acting
from ...models.readings import Readings
from ..filtering import FilteringGuide
from .action_policy import ActionPolicy

__all__ = ["BeliefPolicy"]

Space = spaces.Space[Any]


class BeliefPolicy(Acting):
    """``a_t ~ pi(. | h_t, z_t)`` with ``z_t ~ q(. | h_t, x_t)``: a controller that remembers what it has seen and done.

    Args:
        readings: of the observations.
        action_space: a Box of floats with bounds.
        world: the world model.
        guide: infers its latents, by filtering; None where they are observed.
        actor: pi, over features, squashed.

    Raises:
        TypeError: for actions that are no Box of floats.
        ValueError: for an actor of other sizes or that does not squash, a guide that smooths, or one that is missing or
            of another world model.
    """

    def __init__(
        self,
        readings: Readings,
        action_space: Space,
        world: WorldModel,
        guide: FilteringGuide | None,
        actor: ActionPolicy,
    ):
        super().__init__()
        check_box(action_space, world.dynamics.action_size)
        sizes = world.dynamics.feature_size, world.dynamics.action_size
        if (actor.observation_size, actor.action_size) != sizes or not actor.squash:
            raise ValueError(f"the actor must squash, and take {sizes[0]} features to {sizes[1]} action numbers")
        if (guide is None) != (not world.decoders):
            raise ValueError("a world with decoders needs a guide, and one whose latents are observed has none")
        if guide is not None and (guide.process.dynamics is not world.dynamics or not guide.filters):
            raise ValueError("the guide must filter the latents of this world model")
        self.readings, self.observation_space, self.action_space = readings, readings.space, action_space
        self.world, self.guide, self.actor = world, guide, actor
        for name in ("low", "high"):
            self.register_buffer(name, torch.as_tensor(getattr(action_space, name)), persistent=False)

    low: Tensor
    high: Tensor

    @property
    def action_size(self) -> int:
        """A."""
        return self.actor.action_size

    def begin(self, rows: int) -> Start:
        """Return the memory before the first observation."""
        dynamics, like = self.world.dynamics, self.like
        return Start(like.new_zeros(rows, dynamics.memory_size), like.new_zeros(rows, *dynamics.event_shape))

    def step(self, inputs: Tensor, state: Start, deterministic: bool) -> tuple[TorchDistribution, Start]:
        """Return pi at flattened observations ``[B, O]``, and the state, their latents inferred."""
        z: Any = self.readings(self.readings.unflatten(inputs))
        if self.guide is not None:
            embedding = self.guide.embedding_layer(self.guide.embed(z))
            posterior = self.guide.process.given(state.memory, embedding)
            z = posterior.mode if deterministic else posterior.sample()
        return self.actor(self.world.dynamics.features(state.memory, z)), Start(state.memory, z)

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return actions ``[B, A]`` within the bounds of the action space."""
        action = distribution.mode if deterministic else distribution.sample()
        return self.low + (action + 1) * ((self.high - self.low) / 2)

    def remember(self, state: Start, action: Tensor) -> Start:
        """Return the memory after an action within the bounds."""
        normalised = (action - self.low) / ((self.high - self.low) / 2) - 1
        return Start(self.world.dynamics.transition(state.memory, state.z, normalised), state.z)

    @torch.no_grad()
    def act(self, observation: Any, state: Start, deterministic: bool = False) -> tuple[np.ndarray, Start]:
        """Return a normalised action ``[A]`` at an observation, and the state to go on with."""
        action, following = self.predict(observation, state, deterministic=deterministic)
        low, high = np.asarray(self.action_space.low), np.asarray(self.action_space.high)  # type: ignore[attr-defined]
        return (action - low) / ((high - low) / 2) - 1, following

    def signature(self) -> str:
        """Return what a checkpoint must share with this policy to fit it."""
        dynamics = self.world.dynamics
        return f"BeliefPolicy({type(dynamics).__name__}, {dynamics.feature_size}, {self.actor.signature()})"
