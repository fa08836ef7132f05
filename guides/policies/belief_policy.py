"""A policy over the states of a world model, which it infers from what it sees: what a world model acts by.

Shapes: B rows, O observation numbers, A action numbers, F feature numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor

from ...models.imagination import Start
from ...models.latent_dynamics import LatentDynamics, ObservedDynamics, VectorDecoder, VectorEncoder, WorldModel
from ...models.policies.level import check_box, from_box
from ...models.policies.policy import Acting
from ...models.readings import ImageDecoder, ImageEncoder, Readings
from ...models.spaces import action_size
from ..filtering import FilteringGuide
from .action_policy import ActionPolicy
from .gaussian_policy import GaussianPolicy

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
        self.box: Any = action_space
        self.world, self.guide, self.actor = world, guide, actor
        for name in ("low", "high"):
            self.register_buffer(name, torch.as_tensor(getattr(self.box, name)), persistent=False)

    low: Tensor
    high: Tensor

    @classmethod
    def observed(
        cls,
        observation_space: Space,
        action_space: Space,
        *,
        hidden: Sequence[int] = (256, 256),
        members: int = 4,
    ) -> BeliefPolicy:
        """Return a policy whose world model is an ensemble over observed vectors: the fast way from vectors.

        Args:
            observation_space: a Box of floats in one row.
            action_space: a Box of floats with bounds.
            hidden: sizes of the hidden layers, of world model and actor.
            members: of the ensemble.

        Raises:
            TypeError: for actions that are no Box of floats.
            ValueError: for observations that are no vectors, or actions without bounds.
        """
        check_box(action_space, action_size(action_space))
        readings, sizes = Readings(observation_space), action_size(action_space)
        if not isinstance(observation_space, spaces.Box) or readings.images or len(observation_space.shape) != 1:
            raise ValueError(f"dynamics are observed of vectors, not of {observation_space}: use latent()")
        dynamics = ObservedDynamics(observation_space.shape[0], sizes, hidden=tuple(hidden), members=members)
        actor = GaussianPolicy(dynamics.feature_size, sizes, hidden=hidden)
        return cls(readings, action_space, WorldModel(dynamics), None, actor)

    @classmethod
    def latent(
        cls,
        observation_space: Space,
        action_space: Space,
        *,
        memory_size: int = 200,
        latent_size: int = 30,
        classes: int | None = None,
        hidden: int = 200,
        depth: int = 32,
    ) -> BeliefPolicy:
        """Return a policy whose world model is a recurrent state-space model, from vectors, images, or both.

        The sizes are those of the paper.

        Args:
            observation_space: a Box, or a Dict of Boxes: floats in one row, or bytes ``[64, 64, C]``.
            action_space: a Box of floats with bounds.
            memory_size: D.
            latent_size: Z, or the number of one-hot vectors.
            classes: see `LatentDynamics`.
            hidden: units of every hidden layer, of world model, guide and actor.
            depth: channels of the first convolution of an image.

        Raises:
            TypeError: for observations or actions of other kinds.
            ValueError: for images of another size, sizes that are not positive, or actions without bounds.
        """
        check_box(action_space, action_size(action_space))
        readings, sizes = Readings(observation_space), action_size(action_space)
        dynamics = LatentDynamics(
            sizes, memory_size=memory_size, latent_size=latent_size, classes=classes, hidden=hidden
        )
        encoders: dict[str, Any] = {}
        decoders: dict[str, Any] = {}
        for name, box in readings.vectors.items():
            encoders[name] = VectorEncoder(box.shape[0], hidden)
            decoders[name] = VectorDecoder(dynamics.feature_size, box.shape[0], hidden)
        for name, box in readings.images.items():
            if box.shape[:2] != (64, 64):
                raise ValueError(f"images must be of 64 x 64 pixels, {name} is {box.shape}: resize them")
            encoders[name] = ImageEncoder(box.shape[-1], depth)
            decoders[name] = ImageDecoder(dynamics.feature_size, box.shape[-1], depth)
        world = WorldModel(dynamics, decoders)
        guide = FilteringGuide(world, encoders, sum(encoder.size for encoder in encoders.values()), hidden=hidden)
        actor = GaussianPolicy(dynamics.feature_size, sizes, hidden=(hidden, hidden))
        return cls(readings, action_space, world, guide, actor)

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
    def act(self, observation: Any, state: Start | None, deterministic: bool = False) -> tuple[np.ndarray, Start]:
        """Return a normalised action ``[A]`` at an observation, and the state to go on with."""
        action, following = self.predict(observation, state, deterministic=deterministic)
        return from_box(action, self.box), following

    @torch.no_grad()
    def foresee(self, observations: Any, actions: Tensor, seen: int) -> Any:
        """Return what the world model expects to see, given the first observations and all actions.

        This is open-loop prediction: latents are inferred up to the last observation that is seen, and from there on
        the likeliest are taken.

        Args:
            observations: ``[B, T, *shape]``, of the space; of a Dict, by name.
            actions: ``[B, T, A]``, normalised.
            seen: how many observations are given.

        Returns:
            Means of the decoders at steps ``seen`` to T - 1, ``[B, T - seen, ...]``, in the units of `readings`; by
            name where there are several.

        Raises:
            ValueError: unless there are observations that are seen and others that are not.
        """
        if not 1 <= seen < actions.shape[1]:
            raise ValueError(
                f"of {actions.shape[1]} observations, 1 to {actions.shape[1] - 1} can be given, not {seen}"
            )
        dynamics, x = self.world.dynamics, self.readings(observations)
        given = {name: part[:, :seen] for name, part in self.readings.named(x).items()}
        if self.guide is None:
            z = given["observations"]
            memory = self.world.path(actions[:, :seen]).states(z).memory
        else:
            path = self.guide.posterior(given, actions[:, :seen])
            z = path.greedy()
            memory = path.states(z).memory
        h, latents, features = memory[:, -1], z[:, -1], []
        for t in range(seen, actions.shape[1]):
            h = dynamics.transition(h, latents, actions[:, t - 1])
            latents = dynamics.prior(h).mode
            features.append(dynamics.features(h, latents))
        stacked = torch.stack(features, 1)
        if self.guide is None:
            return stacked
        decoders: Any = self.world.decoders
        found = {name: decoder.mean(stacked) for name, decoder in decoders.items()}
        return found if isinstance(self.observation_space, spaces.Dict) else found["observations"]

    def signature(self) -> str:
        """Return what a checkpoint must share with this policy to fit it."""
        dynamics = self.world.dynamics
        return f"BeliefPolicy({type(dynamics).__name__}, {dynamics.feature_size}, {self.actor.signature()})"
