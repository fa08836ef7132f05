"""How the gradient of soft actor-critic's policy is estimated.

At a state ``E_{a ~ pi}[alpha log pi(a | s) - alpha log p(a) - Q(s, a)]`` is to be small, Q the minimum of the critics.
An estimator is called with the learner, observations ``[B, O]`` and alpha. It returns a scalar of which gradients are
taken, or None if it has taken them itself; the loss, to report; and ``log pi - log p [..., B]``, both without a graph.

Shapes: B batch, O observation numbers, A action numbers, P draws of one state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ..._saved import Saved
from ..._verify import verify_least
from ...models.optimality import ActionPrior

__all__ = ["ByELBO", "Estimate", "Pathwise", "PolicyGradient", "Score", "policy_gradient"]

_LINEAR = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO)  # of Pyro's own, in the log joint

Estimate = tuple[Tensor | None, Tensor, Tensor]


@dataclass(frozen=True)
class Pathwise(Saved):
    """The gradient through the actions of a policy that can be reparametrised.

    Args:
        draws: P.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        verify_least(1, draws=self.draws)

    def __call__(self, learner: Any, observations: Tensor, alpha: Tensor) -> Estimate:
        """See the module."""
        actions, log_prob = learner.policy.draw(observations, sample_shape=(self.draws,) if self.draws > 1 else ())
        ratio = learner.log_ratio(actions, log_prob)
        loss = (alpha * ratio - learner.critics.value_of_frozen(observations, actions)).mean()
        return loss, loss.detach(), ratio.detach()


@dataclass(frozen=True)
class Score(Saved):
    """The likelihood ratio, for any policy, with the mean over the other draws of the state as the baseline.

    Args:
        draws: P; with one there is no baseline.
    """

    draws: int = 4

    def __post_init__(self) -> None:
        verify_least(1, draws=self.draws)

    def __call__(self, learner: Any, observations: Tensor, alpha: Tensor) -> Estimate:
        """See the module."""
        log_prob, cost, ratio = self.costs(learner, observations, alpha)
        baseline = (cost.sum(0) - cost) / (self.draws - 1) if self.draws > 1 else torch.zeros_like(cost)
        return (log_prob * (cost - baseline)).mean(), cost.mean(), ratio

    def costs(self, learner: Any, observations: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw actions; return log pi, what each costs, and log pi - log p ``[P, B]``, a graph in the first alone."""
        policy = learner.policy
        if policy.has_rsample:
            distribution = policy(observations)
            actions = distribution.sample((self.draws,))
            log_prob = distribution.log_prob(actions)
        else:
            actions, log_prob = policy.draw(observations, sample_shape=(self.draws,))
        with torch.no_grad():
            ratio = learner.log_ratio(actions, log_prob)
            return log_prob, alpha * ratio - learner.critics.minimum(observations, actions), ratio


class ByELBO:
    """The step of a Pyro ELBO, ``loss_and_grads`` on the Pyro model of one step, which the prior makes.

    Model and guide are scaled by alpha / B, so that the ELBO must be linear in the log joint, and change, so that it
    must not be compiled: ``Trace_ELBO``, ``TraceGraph_ELBO``, ``TraceEnum_ELBO``, ``TraceMeanField_ELBO`` or
    `StepwiseKL_ELBO`; ``RenyiELBO`` and other bounds of several particles are not linear.
    """

    def __init__(self, elbo: Any) -> None:
        kind = type(elbo).__name__
        if not callable(getattr(elbo, "loss_and_grads", None)):
            raise TypeError(f"gradient must be a Pathwise(), a Score() or an ELBO such as Trace_ELBO(), not {kind}")
        if type(elbo).__module__.startswith("pyro.") and type(elbo) not in _LINEAR:
            names = ", ".join([*(linear.__name__ for linear in _LINEAR), "StepwiseKL_ELBO"])
            raise TypeError(f"an elbo must be linear in the log joint and not compiled, as {names}, not {kind}")
        self.elbo = elbo

    def __call__(self, learner: Any, observations: Tensor, alpha: Tensor) -> Estimate:
        """See the module; the divergence is not known, nan, where the temperature does not need it."""
        optimality = learner.prior.optimality(learner.critics.value_of_frozen, alpha)
        scale = poutine.scale(scale=alpha / len(observations))  # from nats of the batch to rewards of one state
        model, guide = scale(optimality.model), scale(optimality.guide_of(learner.policy))
        report = self.elbo.loss_and_grads(model, guide, observations)
        if not learner.temperature.is_learned:
            return None, alpha.new_tensor(report), alpha.new_tensor(math.nan)
        with torch.no_grad():
            return None, alpha.new_tensor(report), learner.log_ratio(*learner.policy.draw(observations))

    def __repr__(self) -> str:
        return f"{type(self.elbo).__name__}({getattr(self.elbo, 'num_particles', 1)})"


PolicyGradient = Pathwise | Score | ByELBO


def policy_gradient(given: PolicyGradient | ELBO | None, policy: Any, prior: ActionPrior | None) -> PolicyGradient:
    """Return an estimator: that of a Pyro ELBO, and where none is given, pathwise if the policy can be reparametrised.

    Raises:
        TypeError: for what is no estimator and no ELBO.
        ValueError: for one that the policy or the prior excludes.
    """
    kind = type(policy).__name__
    if given is None:
        return Pathwise() if policy.has_rsample else Score()
    if isinstance(given, Pathwise) and not policy.has_rsample:
        raise ValueError(f"a {kind} cannot be reparametrised: gradient must be a Score()")
    if isinstance(given, Pathwise | Score):
        return given
    estimator = given if isinstance(given, ByELBO) else ByELBO(given)
    if isinstance(estimator.elbo, TraceMeanField_ELBO) and not policy.has_rsample:
        raise ValueError(f"a TraceMeanField_ELBO needs a policy that can be reparametrised, which a {kind} cannot")
    if prior is None:
        raise ValueError("an elbo needs the prior that makes its model, such as UniformPrior(action_size)")
    return estimator
