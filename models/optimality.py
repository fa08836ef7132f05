"""Control as inference: actions are latent, and what is observed is that they were optimal.

A trajectory ``tau = (s_0, a_0, .., s_T, a_T)`` has the prior ``p(s_0) prod_t p(a_t) p(s_{t+1} | s_t, a_t)``, and each
step an optimality variable ``O_t`` that is true with probability proportional to ``exp(r_t / alpha)`` (T. Haarnoja et
al., "Latent Space Policies for Hierarchical Reinforcement Learning", 2018, section 4.1). A policy is the guide of that
model: with the true dynamics kept in the guide, the ELBO is the maximum-entropy objective (eq. (5)), and all that is
to come after an action is one number, its soft Q-value. What is left at one state ``s`` is a model of one choice,

    a ~ prior(a),    factor(Q(s, a) / alpha),

whose posterior is ``prior(a) exp(Q(s, a) / alpha) / Z(s)``: :class:`OneStepOptimality`. An SVI step on it is the policy
step of soft actor-critic.

Shapes: S sample shape, B batch, O observation numbers, A action numbers, T environment steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from .._saved import Saved
from .registration import register

__all__ = [
    "ActionGuide",
    "ActionPrior",
    "GaussianPrior",
    "OneStepOptimality",
    "OptimalityModel",
    "UniformPrior",
    "optimality_evidence",
]

Critic = Callable[[Tensor, Tensor], Tensor]  # observations [..., B, O], actions [..., B, A] -> Q [..., B]


class ActionGuide(Protocol):
    """A policy, as models, learners and environments see it: an ``nn.Module`` that is a distribution over actions.

    Actions are in normalised coordinates: within (-1, 1) where ``squash`` is true, any real numbers otherwise.
    """

    @property
    def observation_size(self) -> int:
        """O."""

    @property
    def action_size(self) -> int:
        """A."""

    @property
    def squash(self) -> bool:
        """Whether actions are within (-1, 1)."""

    @property
    def has_rsample(self) -> bool:
        """Whether actions are a differentiable function of noise, so that their gradient reaches the parameters."""

    def __call__(self, observations: Tensor, /) -> TorchDistribution:
        """Return the distribution of actions, batch shape ``[...]``, event shape ``[A]``."""

    def draw(
        self, observations: Tensor, generator: torch.Generator | None = None, sample_shape: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return actions ``[S, ..., A]`` and their log-densities ``[S, ...]``, differentiable where `has_rsample`."""

    def mode(self, observations: Tensor) -> Tensor:
        """Return the actions ``[..., A]`` that a deterministic controller takes."""

    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        """Return normalised actions for numpy observations ``[O]`` or ``[B, O]``."""

    def settings(self) -> dict[str, Any]:
        """What it takes to build the policy again."""

    def signature(self) -> str:
        """What two policies share exactly when they can share weights."""


class OptimalityModel(Protocol):
    """A Pyro model of an action and its optimality, and the guide that a policy is to it."""

    def model(self, observations: Tensor) -> Any:
        """Run the Pyro model: site ``action`` and factor ``optimality`` in plate ``batch``."""

    def guide_of(self, policy: ActionGuide) -> Callable[[Tensor], Any]:
        """Return the Pyro guide that draws ``action`` from the policy."""


class ActionPrior(Protocol):
    """p(a), the same in every state."""

    @property
    def action_size(self) -> int:
        """A."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log p(a) ``[...]`` of actions ``[..., A]``, nats."""

    def distribution(self, batch_shape: tuple[int, ...], like: Tensor | None = None) -> TorchDistribution:
        """Return it as a Pyro distribution of a batch shape, event shape ``[A]``."""

    def coordinates(self, actions: Tensor) -> Tensor:
        """Return where actions ``[..., A]`` are in coordinates in which the prior is uniform on (-1, 1)^A."""

    def optimality(self, critic: Critic, alpha: float | Tensor) -> OptimalityModel:
        """Return the model of one action under this prior; see `OneStepOptimality`."""


class _UniformActions(TorchDistribution):
    """Uniform over the closed cube [-1, 1]^A, the boundary included.

    torch's own uniform distribution gives its upper end the density 0, and in single precision tanh reaches 1.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, ends: Tensor):
        self.ends = ends  # [..., A], all ones: holds shape, precision and device
        super().__init__(ends.shape[:-1], ends.shape[-1:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.interval(-self.ends, self.ends), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _UniformActions:
        return _UniformActions(self.ends.expand(*batch_shape, self.ends.shape[-1]))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return 2 * torch.rand(shape, dtype=self.ends.dtype, device=self.ends.device) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.ends.shape)
        return _uniform_log_prob(value.expand(shape))


def _uniform_log_prob(actions: Tensor) -> Tensor:
    inside = (actions.detach().abs() <= 1).all(-1)
    density = torch.full_like(inside, -actions.shape[-1] * math.log(2), dtype=actions.dtype)
    return density.masked_fill(~inside, -math.inf)


class _Prior(Saved):
    def __init__(self, action_size: int):
        if action_size < 1:
            raise ValueError(f"action_size must be at least 1, not {action_size}")
        self.action_size = action_size

    def _verify(self, actions: Tensor) -> None:
        if actions.shape[-1:] != (self.action_size,):
            raise ValueError(f"actions must have shape [..., {self.action_size}], not {list(actions.shape)}")

    def optimality(self: ActionPrior, critic: Critic, alpha: float | Tensor) -> OneStepOptimality:
        """Return the model of one action under this prior."""
        return OneStepOptimality(critic, self, alpha)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.action_size})"


class UniformPrior(_Prior):
    """p(a) uniform on (-1, 1)^A: the prior under which the ELBO is reward plus entropy (eq. (1)), up to A log 2.

    Args:
        action_size: A.

    Raises:
        ValueError: for a size that is not positive.
    """

    #: There are no actions outside of the cube: a policy needs ``squash``. A prior without this name is unbounded.
    bounded = True

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return -A log 2 ``[...]`` for actions ``[..., A]`` within the cube, and -inf outside."""
        self._verify(actions)
        return _uniform_log_prob(actions)

    def distribution(self, batch_shape: tuple[int, ...], like: Tensor | None = None) -> TorchDistribution:
        """Return the distribution, with the precision and device of ``like``."""
        ends = torch.ones(self.action_size) if like is None else like.new_ones(self.action_size)
        return _UniformActions(ends.expand(*batch_shape, -1))

    def coordinates(self, actions: Tensor) -> Tensor:
        """Return the actions themselves."""
        return actions


class GaussianPrior(_Prior):
    """p(a) = N(0, I): the prior of the upper levels of a hierarchy, whose actions are latents of the level below.

    Args:
        action_size: A.

    Raises:
        ValueError: for a size that is not positive.
    """

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log N(a; 0, I) ``[...]`` of actions ``[..., A]``."""
        self._verify(actions)
        return -0.5 * (actions.square().sum(-1) + self.action_size * math.log(2 * math.pi))

    def distribution(self, batch_shape: tuple[int, ...], like: Tensor | None = None) -> TorchDistribution:
        """Return the distribution, with the precision and device of ``like``."""
        zero = torch.zeros(self.action_size) if like is None else like.new_zeros(self.action_size)
        zero = zero.expand(*batch_shape, -1)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def coordinates(self, actions: Tensor) -> Tensor:
        """Return 2 Phi(a) - 1 ``[..., A]``, Phi the standard normal's distribution function."""
        return torch.erf(actions * math.sqrt(0.5))


class OneStepOptimality(Saved, nn.Module):
    """One action and its optimality: ``a ~ prior; factor(Q(s, a) / alpha)``, for a batch of states.

    The posterior is ``prior(a) exp(Q(s, a) / alpha) / Z(s)``, and ``alpha log Z(s)`` is the soft value of the state.
    With a policy as the guide, ``alpha / B`` times the negative ELBO is soft actor-critic's objective of the policy,

        (1/B) sum_b E[alpha log pi(a | s_b) - alpha log prior(a) - Q(s_b, a)].

    The critic is the evidence, not a part of what is learnt here: its parameters are not this module's and never enter
    Pyro's store (the ELBO would be raised by raising Q everywhere). Give one whose parameters need no gradient, such as
    ``critics.value_of_frozen``, to save the work for it.

    Args:
        critic: maps observations ``[..., B, O]`` and actions ``[..., B, A]`` to Q ``[..., B]``, reward units.
        prior: p(a), such as :class:`UniformPrior`.
        alpha: temperature, reward units a nat; a number or a scalar tensor, which is not looked at: on a GPU that
            would wait for the device.

    Raises:
        TypeError: if the critic cannot be called.
        ValueError: for a temperature that is a number and not positive.

    Example:
        >>> optimality = OneStepOptimality(lambda s, a: -(a - s).square().sum(-1), GaussianPrior(2), alpha=0.5)
        >>> optimality.model(torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, critic: Critic, prior: ActionPrior, alpha: float | Tensor = 1.0):
        super().__init__()
        if not callable(critic):
            raise TypeError(f"critic must be a function of observations and actions, not {type(critic).__name__}")
        if not isinstance(alpha, Tensor) and not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be positive and finite, not {alpha}")
        self._critic = (critic,)  # in a tuple, so that its parameters are not listed as this module's
        self.prior, self.alpha = prior, alpha

    def model(self, observations: Tensor) -> Tensor:
        """Pyro model: ``action`` from the prior and the factor ``optimality``, in plate ``batch``.

        Args:
            observations: ``[B, O]``.

        Returns:
            The actions, ``[B, A]``, with the dimensions of vectorised particles before.
        """
        with pyro.plate("batch", len(observations), dim=-1):
            actions = pyro.sample("action", self.prior.distribution((len(observations),), like=observations))
            pyro.factor("optimality", self._critic[0](observations, actions) / self.alpha)
        return actions

    def forward(self, observations: Tensor) -> Tensor:
        """Run :meth:`model`, so that the module itself can be given to an ELBO."""
        return self.model(observations)

    def guide_of(self, policy: ActionGuide) -> Callable[[Tensor], Tensor]:
        """Return the Pyro guide ``a ~ policy(. | s)``, which registers the policy's parameters as ``policy``.

        Raises:
            ValueError: if the policy's actions are of another size than the prior's.
        """
        if policy.action_size != self.prior.action_size:
            raise ValueError(f"the policy has {policy.action_size} action numbers, the prior {self.prior.action_size}")

        def guide(observations: Tensor) -> Tensor:
            if isinstance(policy, nn.Module):
                register("policy", policy)
            with pyro.plate("batch", len(observations), dim=-1):
                return pyro.sample("action", policy(observations))

        return guide


def optimality_evidence(rewards: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Return ``log p(O_{0:T} | tau) = sum_t r_t / alpha`` (in eq. (2)), up to the constant that makes it a probability.

    Args:
        rewards: ``[..., T]``.
        alpha: temperature, reward units a nat; a tensor is not looked at, as in `OneStepOptimality`.

    Returns:
        ``[...]``, nats.

    Raises:
        ValueError: for rewards without a dimension of steps, or a temperature that is a number and not positive.
    """
    if rewards.dim() < 1:
        raise ValueError("rewards must have shape [..., T], not []")
    if not isinstance(alpha, Tensor) and not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, not {alpha}")
    return rewards.sum(-1) / alpha
