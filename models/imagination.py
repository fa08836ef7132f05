"""Imagined steps of a policy in a world model, and the evidence that they are optimal.

The second part of eq. (1) in R. Rafailov et al., "Variational Model-Based Imitation Learning" (2021): from a state
``s_0 = (h_0, z_0)`` that was inferred,

    model:  a_t ~ p(a),         z_{t+1} ~ p(. | s_t, a_t),  factor((sum_t r(s_t, a_t, s_{t+1}) + V(s_H)) / alpha)
    guide:  a_t ~ pi(. | s_t),  z_{t+1} ~ p(. | s_t, a_t)

so that the KL of a step is that of the action alone, and ``alpha`` times the ELBO is the soft return of H steps.

Shapes: ``...`` a batch of any shape, B starts, H steps, A action, D memory, Z latent and F feature numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence, register_kl

from .._saved import Saved
from .._verify import verify_least
from .latent_dynamics import ActionDriven
from .optimality import ActionGuide, ActionPrior
from .process import Process, Sequence, same_tensors
from .registration import register

__all__ = ["Imagination", "ImaginedOptimality", "Start", "soft_lambda_returns"]

Policy = Callable[[Tensor], TorchDistribution]
"""From features ``[..., F]`` to a distribution of actions, batch shape ``[...]``, event shape ``[A]``."""

Evidence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From features ``[..., F]``, actions ``[..., A]`` and following features to rewards ``[...]``."""


class Start(NamedTuple):
    """A state of a world model, from which steps are imagined.

    Attributes:
        memory: ``h`` ``[..., D]``.
        z: ``[..., *event_shape]``.
    """

    memory: Tensor
    z: Tensor


class Imagined(NamedTuple):
    """A state of an :class:`Imagination`.

    Attributes:
        memory: ``h`` ``[..., D]``.
        z: ``[..., *event_shape]``.
        log_prob: log pi ``[...]`` of the action that led here, nats, by the policy that took it; 0 at the start. It is
            that of the drawing itself, and so exact where tanh rounds an action to 1.
    """

    memory: Tensor
    z: Tensor
    log_prob: Tensor


class Imagination(Process):
    """What a policy does in a world model: step t is ``(a_t, z_{t+1})``, in one row of A + Z numbers.

    Args:
        dynamics: the world model's.
        policy: from features to distributions of actions: a policy, or the prior.
    """

    has_rsample = True
    support = constraints.real_vector

    def __init__(self, dynamics: ActionDriven, policy: Policy):
        super().__init__()
        # In a tuple, so that their parameters are nobody's but theirs.
        self._parts = (dynamics, policy)
        self.event_shape = torch.Size([dynamics.action_size + dynamics.latent_size])

    @property
    def dynamics(self) -> ActionDriven:
        """The world model's."""
        return self._parts[0]

    @property
    def policy(self) -> Policy:
        """Of the actions."""
        return self._parts[1]

    def initial(self, context: Start) -> Imagined:
        """Return the state that the imagination starts from."""
        return Imagined(*context, context.memory.new_zeros(len(context.memory)))

    def conditional(self, state: Imagined, context: Start) -> ImaginedStep:
        """Return the distribution of ``(a_t, z_{t+1})``."""
        return ImaginedStep(self, state)

    def step(self, state: Imagined, context: Start, draw: str) -> tuple[Tensor, Imagined]:
        """Draw a step; the state after it is known by then."""
        return self.conditional(state, context).drawn(draw)

    def advance(self, state: Imagined, z: Tensor, context: Start) -> Imagined:
        """Return the state after ``(a_t, z_{t+1})``."""
        action, following = self.parts(z)
        log_prob = self.policy(self.features(state)).log_prob(action)
        return Imagined(self.dynamics.transition(state.memory, state.z, action), following, log_prob)

    def parts(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions ``[..., A]`` and the latents ``[..., *event_shape]`` of steps ``[..., A + Z]``."""
        action, z = value.split([self.dynamics.action_size, self.dynamics.latent_size], -1)
        return action, self.dynamics.shaped(z)

    def depends_on(self) -> Iterator[Tensor]:
        """The tensors of world model and policy."""
        yield from self.dynamics.depends_on()
        if isinstance(policy := self.policy, nn.Module):
            yield from policy.parameters()
            yield from policy.buffers()

    def features(self, state: Imagined | Start) -> Tensor:
        """Return what policies read of states, ``[..., F]``."""
        return self.dynamics.features(state.memory, state.z)

    def same_states(self, other: Process, context: Start, theirs: Start) -> bool:
        """Whether ``other`` imagines in the same world model from the same states."""
        same = isinstance(other, Imagination) and other.dynamics is self.dynamics
        return same and same_tensors(context, theirs)


class ImaginedStep(TorchDistribution):
    """The distribution of ``(a_t, z_{t+1})`` at a state: the policy's action, and what the world model makes of it.

    Args:
        process: whose step it is.
        state: ``[...]``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, process: Imagination, state: Imagined):
        self.process, self.state = process, state
        self.actions = process.policy(process.features(state))
        super().__init__(state.memory.shape[:-1], process.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the policy's actions carry gradients."""
        return self.actions.has_rsample

    def drawn(self, draw: str) -> tuple[Tensor, Imagined]:
        """Return a value ``[..., A + Z]``, and the state that it leads to; ``draw`` as for a walk."""
        dynamics = self.process.dynamics
        action = self.actions.mode if draw == "mode" else getattr(self.actions, draw)()
        memory = dynamics.transition(self.state.memory, self.state.z, action)
        following = dynamics.prior(memory)
        z = following.mode if draw == "mode" else getattr(following, draw)()
        value = torch.cat([action, dynamics.flat(z)], -1)
        return value, Imagined(memory, z, self.actions.log_prob(action))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Return a step ``[..., A + Z]`` that carries gradients."""
        if sample_shape:
            raise NotImplementedError("one step of an imagination is drawn at a time")
        return self.drawn("rsample")[0]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Return a step without a graph."""
        if sample_shape:
            raise NotImplementedError("one step of an imagination is drawn at a time")
        with torch.no_grad():
            return self.drawn("sample")[0]

    @property
    def mode(self) -> Tensor:
        """The likeliest action, and the likeliest latents after it."""
        return self.drawn("mode")[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log pi(a_t | s_t) + log p(z_{t+1} | s_t, a_t)`` ``[...]``, nats."""
        action, z = self.process.parts(value)
        memory = self.process.dynamics.transition(self.state.memory, self.state.z, action)
        return self.actions.log_prob(action) + self.process.dynamics.prior(memory).log_prob(z)

    def log_ratio(self, other: ImaginedStep, value: Tensor) -> Tensor:
        """Return ``log pi(a_t | s_t) - log p(a_t)`` ``[...]``, where both imagine in one world model and state."""
        if not self._shares_with(other):
            return self.log_prob(value) - other.log_prob(value)
        action, _ = self.process.parts(value)
        return self.actions.log_prob(action) - other.actions.log_prob(action)

    def _shares_with(self, other: ImaginedStep) -> bool:
        """Whether another step is from the same state in the same world model, so that both agree on what follows."""
        return self.process.dynamics is other.process.dynamics and self.state is other.state


@register_kl(ImaginedStep, ImaginedStep)
def _kl_of_steps(q: ImaginedStep, p: ImaginedStep) -> Tensor:
    """KL(pi || p(a)): both imagine in one world model, from the same state.

    Raises:
        NotImplementedError: for two world models or states, or actions without a closed form.
    """
    if not q._shares_with(p):
        raise NotImplementedError
    return kl_divergence(q.actions, p.actions)


class ImaginedOptimality(Saved, nn.Module):
    """H imagined steps and their optimality, as a Pyro model; a policy is its guide.

    It is :class:`~pyrocontrol.models.OneStepOptimality` over several steps: the critic is the evidence of the last
    state alone. World model, evidence and value are no part of what is learnt here: their parameters never enter Pyro's
    store.

    Args:
        dynamics: of the world model.
        evidence: r, of features, actions and following features, such as the logit of a discriminator.
        value: V, the soft value of features ``[..., F]``; None for 0.
        prior: p(a).
        horizon: H.
        alpha: temperature, reward units a nat.

    Raises:
        TypeError: for what cannot be called.
        ValueError: for a prior over other actions, a horizon below 1, or a temperature that is not positive.
    """

    def __init__(
        self,
        dynamics: ActionDriven,
        evidence: Evidence,
        value: Callable[[Tensor], Tensor] | None = None,
        *,
        prior: ActionPrior,
        horizon: int,
        alpha: float | Tensor = 1.0,
    ):
        super().__init__()
        for name, given in {"evidence": evidence, "value": value}.items():
            if given is not None and not callable(given):
                raise TypeError(f"{name} must be a function of features, not {type(given).__name__}")
        if prior.action_size != dynamics.action_size:
            raise ValueError(f"the prior has {prior.action_size} action numbers, the world {dynamics.action_size}")
        verify_least(1, horizon=horizon)
        if not isinstance(alpha, Tensor) and not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be positive and finite, not {alpha}")
        self._parts = (dynamics, evidence, value)
        self.prior, self.horizon, self.alpha = prior, horizon, alpha

    def path(self, start: Start, policy: Policy | None = None) -> Sequence:
        """Return the distribution of steps ``[B, H, A + Z]`` from B states, of a policy or of the prior."""
        unguided = lambda features: self.prior.distribution(tuple(features.shape[:-1]), like=features)  # noqa: E731
        return Sequence(Imagination(self._parts[0], policy or unguided), start, self.horizon)

    def model(self, start: Start) -> Tensor:
        """Pyro model: ``imagined`` from the prior, and the factor ``optimality``, in plate ``starts``.

        Args:
            start: memory ``[B, D]`` and latents ``[B, ...]``.

        Returns:
            The steps ``[B, H, A + Z]``.
        """
        with pyro.plate("starts", len(start.memory), dim=-1):
            path = self.path(start)
            steps = pyro.sample("imagined", path)
            pyro.factor("optimality", self.soft_evidence(path, steps))
        return steps

    def forward(self, start: Start) -> Tensor:
        """Run :meth:`model`, so that the module itself can be given to an ELBO."""
        return self.model(start)

    def guide_of(self, policy: ActionGuide) -> Callable[[Start], Tensor]:
        """Return the Pyro guide by which ``policy`` acts on features; it registers its parameters as ``policy``.

        Raises:
            ValueError: if the policy's actions are of another size than the prior's.
        """
        if policy.action_size != self.prior.action_size:
            raise ValueError(f"the policy has {policy.action_size} action numbers, the prior {self.prior.action_size}")

        def guide(start: Start) -> Tensor:
            if isinstance(policy, nn.Module):
                register("policy", policy)
            with pyro.plate("starts", len(start.memory), dim=-1):
                return pyro.sample("imagined", self.path(start, policy))

        return guide

    def soft_evidence(self, path: Sequence, steps: Tensor) -> Tensor:
        """Return ``(sum_t r_t + V(s_H)) / alpha`` ``[...]``, nats, of steps ``[..., H, A + Z]``."""
        _, evidence, value = self._parts
        features, actions, _ = trajectory(path, steps)
        total = evidence(features[..., :-1, :], actions, features[..., 1:, :]).sum(-1)
        return (total if value is None else total + value(features[..., -1, :])) / self.alpha


class Trajectory(NamedTuple):
    """What imagined steps pass.

    Attributes:
        features: ``[..., H + 1, F]``, those of the first and the last state included.
        actions: ``[..., H, A]``.
        log_probs: log pi of the actions ``[..., H]``, nats; see `Imagined`.
    """

    features: Tensor
    actions: Tensor
    log_probs: Tensor


def trajectory(path: Sequence, steps: Tensor) -> Trajectory:
    """Return what steps ``[..., H, A + Z]`` of an imagination pass.

    Args:
        path: over an :class:`Imagination`.
        steps: of it.
    """
    process: Any = path.process
    states = path.states(steps, last=True)
    return Trajectory(process.features(states), process.parts(steps)[0], states.log_prob[..., 1:])


def soft_lambda_returns(
    rewards: Tensor, log_ratios: Tensor, values: Tensor, alpha: float | Tensor, discount: float, mixing: float
) -> Tensor:
    """Return the soft lambda-return of every step.

        G_t = r_t - alpha (log pi(a_t | s_t) - log p(a_t)) + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}),

    with ``G_H = V(s_H)``: an average of what t+1, t+2, ... H steps and the value after them say, of D. Hafner et al.,
    "Dream to Control" (2020), eq. (6), with the entropy of maximum-entropy control. With lambda = gamma = 1,
    ``G_0 / alpha`` is the ELBO of `ImaginedOptimality`, one sample of it.

    Args:
        rewards: ``[..., H]``.
        log_ratios: ``log pi - log p`` ``[..., H]``, nats.
        values: V of the states after each step, ``[..., H]``.
        alpha: temperature, reward units a nat.
        discount: gamma.
        mixing: lambda.

    Returns:
        ``[..., H]``.
    """
    now = rewards - alpha * log_ratios + discount * (1 - mixing) * values
    following, returns = values[..., -1], []
    for t in reversed(range(rewards.shape[-1])):
        following = now[..., t] + discount * mixing * following
        returns.append(following)
    return torch.stack(returns[::-1], -1)
