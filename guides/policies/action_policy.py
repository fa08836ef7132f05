"""Policies over continuous actions, the guides of a model whose evidence is optimality.

In control as inference (S. Levine 2018; T. Haarnoja et al. 2018, "Latent space policies") the action of a state is a
latent variable, ``a ~ prior(s); factor(Q(s, a) / alpha)``, and the policy pi(a | s) is the guide at its site. So a
policy is a function from observations to a Pyro distribution, and a few ways to use it without one where speed counts.

Actions are in normalised coordinates: a squashed policy acts in (-1, 1)^A, a = tanh u, one that is not squashed in
R^A, a = u. We call u the raw action.

Shapes: ``...`` a batch of any shape, S sample shape, O observation numbers, A action numbers, C condition numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..._saved import Saved
from ...models.networks import mlp
from .hierarchy import Hierarchy

__all__ = ["ActionDistribution", "ActionPolicy", "LatentPolicy"]

# Squashed actions read from data are taken to be at most so far from 0: at 1 the raw action is infinite.
_EDGE = 1 - 1e-6


def tanh_log_determinant(raw: Tensor) -> Tensor:
    """Return sum log d tanh(u) / du of ``[..., A]``, ``[...]``; exact also where 1 - tanh(u)^2 rounds to 0.

    log (1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
    """
    return 2 * (raw.shape[-1] * math.log(2) - (raw + F.softplus(-2 * raw)).sum(-1))


def standard_normal_log_prob(latents: Tensor) -> Tensor:
    """Return log N(h; 0, I) of ``[..., A]``, nats, ``[...]``."""
    return -0.5 * (latents.square().sum(-1) + latents.shape[-1] * math.log(2 * math.pi))


def condition_network(observation_size: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return ReLU layers of sizes ``hidden`` and a linear one, ``[..., O] -> [..., outputs]``."""
    return mlp(observation_size, hidden, "relu").append(nn.Linear([observation_size, *hidden][-1], outputs))


class ActionPolicy(Saved, nn.Module):
    """pi(a | s): what all policies share. A subclass says what its raw actions are.

    Args:
        observation_size: O.
        action_size: A.
        squash: whether actions are squashed into (-1, 1)^A by tanh.

    Raises:
        ValueError: for sizes that are not positive.
    """

    #: Whether actions can be turned back into the latents that they were made of.
    invertible: bool = False
    #: Whether gradients reach the parameters through the actions drawn; otherwise through their log-probability alone.
    has_rsample: bool = False

    def __init__(self, observation_size: int, action_size: int, *, squash: bool = True):
        super().__init__()
        if observation_size < 1 or action_size < 1:
            raise ValueError(f"observation_size and action_size must be positive: {observation_size}, {action_size}")
        self.observation_size, self.action_size, self.squash = observation_size, action_size, squash

    # -- what a subclass defines ------------------------------------------------------------------------------------

    def condition(self, observations: Tensor) -> Tensor:
        """Return all that the distribution of the action depends on, ``[..., C]``, of observations ``[..., O]``."""
        raise NotImplementedError

    def draw_raw(self, condition: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return a raw action u ``[..., A]`` and log p(u) ``[...]`` at conditions ``[..., C]``."""
        raise NotImplementedError

    def raw_log_prob(self, raw: Tensor, condition: Tensor) -> Tensor:
        """Return log p(u) ``[...]`` of raw actions ``[..., A]`` at conditions ``[..., C]`` of the same batch shape."""
        raise NotImplementedError

    def raw_mode(self, condition: Tensor) -> Tensor:
        """Return the raw action ``[..., A]`` of greedy prediction."""
        raise NotImplementedError

    # -- the policy -------------------------------------------------------------------------------------------------

    def forward(self, observations: Tensor) -> ActionDistribution:
        """Return pi(a | s) at observations ``[..., O]``: batch shape ``[...]``, event shape ``[A]``.

        Raises:
            ValueError: for observations of another size.
        """
        return ActionDistribution(self, self.condition(self._checked(observations)))

    def draw(
        self, observations: Tensor, generator: torch.Generator | None = None, sample_shape: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return actions ``[S, ..., A]`` and their log pi(a | s) ``[S, ...]``, nats, in one pass.

        The same as ``pi = policy(observations); a = pi.rsample(sample_shape); pi.log_prob(a)``, and faster. Where
        ``has_rsample`` is False the actions carry no graph, and the log-probability is differentiable with the actions
        held fixed.

        Raises:
            ValueError: for observations of another size.
        """
        return self._squashed(*self.draw_raw(self.conditions(observations, sample_shape), generator))

    def conditions(self, observations: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return :meth:`condition` ``[S, ..., C]`` for several draws of each observation, computed once for all.

        Raises:
            ValueError: for observations of another size.
        """
        condition = self.condition(self._checked(observations))
        return condition.expand(*sample_shape, *condition.shape) if sample_shape else condition

    def mode(self, observations: Tensor) -> Tensor:
        """Return the actions of greedy prediction ``[..., A]`` at observations ``[..., O]``."""
        raw = self.raw_mode(self.condition(self._checked(observations)))
        return raw.tanh() if self.squash else raw

    def actions(self, latents: Tensor, observations: Tensor) -> Tensor:
        """Return a = f(h; s) ``[..., A]`` of latents ``[..., A]`` and observations ``[..., O]``.

        Raises:
            NotImplementedError: unless ``invertible``.
        """
        raise NotImplementedError(f"the {type(self).__name__} is no map from latents to actions")

    def latents(self, actions: Tensor, observations: Tensor) -> Tensor:
        """Return h = f^-1(a; s) ``[..., A]`` of actions ``[..., A]`` and observations ``[..., O]``.

        Squashed actions further out than 1 - 1e-6 are taken for that.

        Raises:
            NotImplementedError: unless ``invertible``.
        """
        raise NotImplementedError(f"the {type(self).__name__} cannot turn actions back into latents")

    # -- acting -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        """Return a normalised action for an observation, or for a batch of them.

        This is no ``predict``: what an environment takes has its own bounds, and :meth:`within` it the policy is a
        controller.

        Args:
            observation: ``[O]`` or ``[B, O]``.
            deterministic: take the :meth:`mode` instead of a random action.

        Returns:
            ``[A]`` or ``[B, A]``, in (-1, 1) where the policy squashes.

        Raises:
            ValueError: for observations of another shape, or that are not finite.
        """
        given = np.asarray(observation)
        if given.ndim not in (1, 2):
            raise ValueError(f"act takes one observation or a batch of them, got shape {given.shape}")
        if not (finite := np.isfinite(given)).all():
            row = int(np.atleast_2d(finite).all(-1).argmin())
            raise ValueError(f"the observation of row {row} is not finite")
        weight = next(self.parameters())
        inputs = torch.as_tensor(given, dtype=weight.dtype, device=weight.device)
        return (self.mode(inputs) if deterministic else self.draw(inputs)[0]).cpu().numpy()

    def within(self, env: Any) -> Hierarchy:
        """Return the controller that the policy is in an environment: a hierarchy of one level, in its actions' bounds.

        Raises:
            TypeError: for an environment whose actions are no Box.
            ValueError: for actions of another size or without bounds, or a policy that does not squash.
        """
        return Hierarchy([self], action_space=env.action_space)

    # -- telling apart ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make another policy of this kind, which two share if they can share weights."""
        given = self._arguments()
        given.apply_defaults()
        plain = {name: [*value] if isinstance(value, tuple) else value for name, value in given.arguments.items()}
        sizes = {"observation_size": self.observation_size, "action_size": self.action_size, "squash": self.squash}
        return sizes | {name: value for name, value in plain.items() if name not in sizes}

    def signature(self) -> str:
        """Return one line that two policies share exactly when they can share weights and mean the same by them."""
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.settings().items())})"

    # -- the squashing ----------------------------------------------------------------------------------------------

    def _checked(self, observations: Tensor) -> Tensor:
        if observations.dim() < 1 or observations.shape[-1] != self.observation_size:
            raise ValueError(
                f"the {type(self).__name__} takes observations [..., {self.observation_size}], "
                f"got shape {[*observations.shape]}"
            )
        return observations

    def _squashed(self, raw: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions and their log-probabilities, given those of the raw ones."""
        if not self.squash:
            return raw, log_prob
        return raw.tanh(), log_prob - tanh_log_determinant(raw)

    def _unsquashed(self, actions: Tensor) -> Tensor:
        if actions.dim() < 1 or actions.shape[-1] != self.action_size:
            raise ValueError(
                f"the {type(self).__name__} takes actions or latents [..., {self.action_size}], "
                f"got shape {[*actions.shape]}"
            )
        return torch.atanh(actions.clamp(-_EDGE, _EDGE)) if self.squash else actions


class ActionDistribution(TorchDistribution):
    """pi(a | s) of an :class:`ActionPolicy` at given conditions, for a Pyro site.

    The log-probability of what it drew itself, the same tensor, is taken from the drawing: it costs nothing, and it is
    exact where tanh rounds to 1.

    Args:
        policy: whose it is.
        condition: ``[..., C]``.
        validate_args: as for any distribution.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, policy: ActionPolicy, condition: Tensor, validate_args: bool | None = None):
        self.policy, self.condition = policy, condition
        #: Actions, raw actions and log-probabilities of the last draw.
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None
        super().__init__(condition.shape[:-1], torch.Size([policy.action_size]), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry gradients."""
        return self.policy.has_rsample

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """(-1, 1)^A or R^A; the edge, to which tanh rounds, counts as inside."""
        return (
            constraints.independent(constraints.interval(-1.0, 1.0), 1)
            if self.policy.squash
            else constraints.real_vector
        )

    @property
    def mode(self) -> Tensor:
        """The action of greedy prediction, ``[..., A]``."""
        raw = self.policy.raw_mode(self.condition)
        return raw.tanh() if self.policy.squash else raw

    def expand(self, batch_shape: Any, _instance: Any = None) -> ActionDistribution:
        """Return the same distribution for a larger batch shape."""
        condition = self.condition.expand(torch.Size(batch_shape) + self.condition.shape[-1:])
        return ActionDistribution(self.policy, condition, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Return actions ``[S, ..., A]`` that carry gradients.

        Raises:
            NotImplementedError: where the policy cannot be reparametrised.
        """
        if not self.has_rsample:
            raise NotImplementedError(f"the {type(self.policy).__name__} cannot be reparametrised: use sample")
        return self._draw(sample_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Return actions ``[S, ..., A]`` without a graph."""
        with torch.no_grad():
            return self._draw(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log pi(a | s), nats, of ``[..., A]``; squashed actions further out than 1 - 1e-6 count as that."""
        if self._drawn is not None and value is self._drawn[0]:
            _, raw, log_prob = self._drawn
            if log_prob.requires_grad or not torch.is_grad_enabled():
                return log_prob
        else:
            if self._validate_args:
                self._validate_sample(value)
            raw = self.policy._unsquashed(value)
        log_prob = self.policy.raw_log_prob(*aligned(raw, self.condition))
        return log_prob - tanh_log_determinant(raw) if self.policy.squash else log_prob

    def _draw(self, sample_shape: Any) -> Tensor:
        condition = self.condition.expand(torch.Size(sample_shape) + self.condition.shape)
        raw, log_prob = self.policy.draw_raw(condition)
        actions, log_prob = self.policy._squashed(raw, log_prob)
        self._drawn = actions, raw, log_prob
        return actions


class LatentPolicy(ActionPolicy):
    """A policy that moves noise, ``a = f(h; s), h ~ N(0, I)`` in R^A, with f(.; s) invertible.

    Then ``log pi(a | s) = log N(h; 0, I) - log |det df(h; s) / dh|``, h = f^-1(a; s). Frozen, it is a layer between the
    environment and another policy, whose actions are its latents.
    """

    invertible = True
    has_rsample = True

    def push(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw actions u(h; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        raise NotImplementedError

    def pull(self, raw: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents h(u; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        raise NotImplementedError

    def draw_raw(self, condition: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return a raw action u ``[..., A]`` and log p(u) ``[...]`` at conditions ``[..., C]``."""
        shape = condition.shape[:-1] + (self.action_size,)
        latents = torch.randn(shape, generator=generator, dtype=condition.dtype, device=condition.device)
        raw, log_determinant = self.push(latents, condition)
        return raw, standard_normal_log_prob(latents) - log_determinant

    def raw_log_prob(self, raw: Tensor, condition: Tensor) -> Tensor:
        """Return log p(u) ``[...]`` of raw actions ``[..., A]`` at conditions ``[..., C]`` of the same batch shape."""
        latents, log_determinant = self.pull(raw, condition)
        return standard_normal_log_prob(latents) - log_determinant

    def raw_mode(self, condition: Tensor) -> Tensor:
        """Return u(0; c) ``[..., A]``, the raw action of the likeliest latent."""
        return self.push(condition.new_zeros(condition.shape[:-1] + (self.action_size,)), condition)[0]

    def actions(self, latents: Tensor, observations: Tensor) -> Tensor:
        """Return a = f(h; s) ``[..., A]`` of latents ``[..., A]`` and observations ``[..., O]``; shapes broadcast.

        Raises:
            ValueError: for latents or observations of another size.
        """
        if latents.dim() < 1 or latents.shape[-1] != self.action_size:
            raise ValueError(
                f"the {type(self).__name__} takes actions or latents [..., {self.action_size}], "
                f"got shape {[*latents.shape]}"
            )
        raw = self.push(*aligned(latents, self.condition(self._checked(observations))))[0]
        return raw.tanh() if self.squash else raw

    def latents(self, actions: Tensor, observations: Tensor) -> Tensor:
        """Return h = f^-1(a; s) ``[..., A]`` of actions ``[..., A]`` and observations ``[..., O]``; shapes broadcast.

        Squashed actions further out than 1 - 1e-6 are taken for that.

        Raises:
            ValueError: for actions or observations of another size.
        """
        raw = self._unsquashed(actions)
        return self.pull(*aligned(raw, self.condition(self._checked(observations))))[0]


def aligned(values: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``values`` ``[..., A]`` and ``condition`` ``[..., C]`` expanded to one batch shape."""
    if values.shape[:-1] == condition.shape[:-1]:
        return values, condition
    shape = torch.broadcast_shapes(values.shape[:-1], condition.shape[:-1])
    return values.expand(shape + values.shape[-1:]), condition.expand(shape + condition.shape[-1:])
