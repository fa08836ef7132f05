"""Soft actor-critic: maximum-entropy control, with any policy of the protocol as the guide.

The soft Q-function is the backward message of the optimality model (:mod:`pyrocontrol.models.optimality`), and the step
of the policy is an SVI step on its one-step form, ``a ~ prior; factor(Q(s, a) / alpha)``.

Shapes: B batch, O observation numbers, A action numbers, K critics, P draws of one state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ..._saved import Saved
from ..._verify import verify_least, verify_positive
from ...models.optimality import ActionGuide, ActionPrior
from ..training.checkpoint import described
from .captured import CapturedStep
from .critics import Critics, TargetCopy
from .replay import ReplayBatch

__all__ = ["SoftActorCritic", "SoftLearner"]

_LINEAR = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO)  # of Pyro's own, in the log joint


class SoftLearner(Saved, nn.Module):
    """What maximum-entropy learners share: a policy that acts, critics, target critics, one optimiser.

    Its ``state_dict`` is all of it, the optimiser's state and the number of updates included.

    Args:
        policy: the policy, an ``nn.Module``.
        observation_size: O.
        action_size: A.
        prior: p(a); None for the uniform one, its density counted as 1: see `SoftActorCritic`.
        critics: Q, observations ``[..., O]`` and actions ``[..., A]`` to ``[K, ...]``.
        lr: of Adam, for everything.
        discount: gamma.
        reward_scale: what rewards are multiplied by.
        value_range: see `SoftActorCritic`.
        move: when and how targets follow.
        fixed_latent: whether an episode keeps the latent that it begins with.
        capture: whether steps on a GPU are one CUDA graph.
        settings: the learner's further arguments, told apart by :meth:`signature`.

    Raises:
        TypeError: if the policy is no module, or lacks a part of the protocol.
        ValueError: for a policy or prior of other sizes, a policy of unbounded actions without a prior over them, or
            numbers out of range.
    """

    policy: Any  # a module that is an ActionGuide, which mypy cannot say

    def __init__(
        self,
        policy: ActionGuide,
        observation_size: int,
        action_size: int,
        *,
        prior: ActionPrior | None,
        critics: Critics,
        lr: float,
        discount: float,
        reward_scale: float,
        value_range: tuple[float, float] | None,
        move: TargetCopy,
        fixed_latent: bool,
        capture: bool,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        verify_policy(policy, observation_size, action_size)
        if fixed_latent and not getattr(policy, "invertible", False):
            raise ValueError(f"a {type(policy).__name__} has no latent that could be fixed for an episode")
        if prior is not None and prior.action_size != action_size:
            raise ValueError(f"the prior has {prior.action_size} action numbers, the learner {action_size}")
        if not policy.squash and (prior is None or getattr(prior, "bounded", False)):
            kind = type(policy).__name__
            raise ValueError(f"the {kind} acts with any real numbers: it needs a prior over them, as GaussianPrior is")
        if not 0 <= discount < 1:
            raise ValueError(f"discount must be in [0, 1), not {discount}")
        verify_positive(lr=lr, reward_scale=reward_scale)
        if value_range is not None:
            _verify_range(value_range, prior, policy.squash)
        self.policy, self.observation_size, self.action_size = policy, observation_size, action_size
        self.prior, self.discount, self.reward_scale, self.move = prior, discount, reward_scale, move
        self.value_range = None if value_range is None else tuple(map(float, value_range))
        dtype = next(self.policy.parameters()).dtype
        self.critics = critics.to(dtype)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self.target.coordinates = self.critics.coordinates  # of the prior itself, not of a copy
        self.lr = lr
        self.fixed_latent, self.capture = fixed_latent, capture
        self._captured: CapturedStep | None = None
        self.latent: Tensor | None = None
        #: Updates so far.
        self.updates = 0
        self._settings = {
            "prior": described(prior),
            "hidden": critics.hidden,
            "lr": lr,
            "discount": discount,
            "reward_scale": reward_scale,
            "smoothing": move.smoothing,
            "target_every": move.every,
            "fixed_latent": fixed_latent,
        } | settings
        if self.value_range is not None:
            self._settings["value_range"] = self.value_range

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_captured": None}  # a graph of where the tensors are

    def optimise(self, *others: nn.Parameter | nn.Module) -> None:
        """Make the optimiser of policy, critics, and what else is to be learnt."""
        parameters = [*self.policy.parameters(), *self.critics.parameters()]
        for other in others:
            parameters += other.parameters() if isinstance(other, nn.Module) else [other]
        self.learnt = tuple(parameters)
        self.optimizer = torch.optim.Adam(parameters, lr=self.lr, fused=True)

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take one :meth:`step` of everything learnt, then move the targets if that is due; return what it returns."""
        if self.capture and batch.rewards.is_cuda:
            self._captured = self._captured or CapturedStep(self.step, self.optimizer)
            numbers = self._captured(batch)
        else:
            numbers = self.step(batch)
        self.updates += 1
        self.move(self.target.parameters(), self.followed.parameters(), self.updates)
        return numbers

    def step(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take one step of everything that is learnt by gradients.

        Returns:
            Named scalars, ``critic_loss`` among them, as tensors without a graph: nothing here waits for a device.
        """
        for parameter in self.learnt:
            parameter.grad = None
        loss, numbers = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return numbers

    def loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a scalar and what a :meth:`step` reports.

        The gradients of the scalar are those of the step; its value may mean nothing.
        """
        raise NotImplementedError

    def forward(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the :meth:`loss`."""
        return self.loss(batch)

    @property
    def followed(self) -> nn.Module:
        """What the target follows."""
        return self.critics

    def log_ratio(self, actions: Tensor, log_prob: Tensor) -> Tensor:
        """Return log pi(a|s) - log p(a) ``[...]``, p(a) counted as 1 without a prior."""
        return log_prob if self.prior is None else log_prob - self.prior.log_prob(actions)

    def bellman(self, rewards: Tensor, terminated: Tensor, following: Tensor) -> Tensor:
        """Return ``scale r + gamma (1 - terminated) V(s')`` ``[B]``: where time ran out, the next value counts.

        V(s'), ``following``, is kept within the ``value_range`` times the scale, if there is one.
        """
        if self.value_range is not None:
            following = following.clamp(*(self.reward_scale * bound for bound in self.value_range))
        return torch.addcmul(rewards * self.reward_scale, 1 - terminated, following, value=self.discount)

    def begin(self, seed: int) -> None:
        """Draw the latent of an episode, if it is to keep one; `learn` calls this where an episode begins."""
        if self.fixed_latent:
            weight = self.critics.biases[0]
            drawn = torch.randn(self.action_size, generator=torch.Generator().manual_seed(seed))
            self.latent = drawn.to(weight)

    @torch.no_grad()
    def act(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Return the normalised action ``[A]`` or actions ``[B, A]`` for observations ``[O]`` or ``[B, O]``."""
        weight = self.critics.biases[0]
        inputs = torch.as_tensor(observation, dtype=weight.dtype, device=weight.device)
        if deterministic:
            actions = self.policy.mode(inputs)
        elif self.latent is not None:
            actions = self.policy.actions(self.latent.expand(*inputs.shape[:-1], -1), inputs)
        else:
            actions = self.policy.draw(inputs)[0]
        return actions.cpu().numpy()

    def signature(self) -> str:
        """What two learners share exactly when one can go on from the other's checkpoint."""
        settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        return f"{type(self).__name__}({self.policy.signature()}, {settings})"

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that is in no tensor of the modules."""
        return {"updates": self.updates, "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`get_extra_state`, sharing nothing with it."""
        self._captured = None
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._captured = None  # parameters move to another device
        super()._apply(*args, **kwargs)
        if hasattr(self, "optimizer"):  # whose state moves where they are
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self


class SoftActorCritic(SoftLearner):
    """Soft actor-critic, whose policy step is variational inference of the action.

    Critics, with a' ~ pi(. | s') and the minimum of K target critics,

        Q_k(s, a)  <-  r + gamma (1 - terminated) (min_k Qbar_k(s', a') - alpha [log pi(a' | s') - log p(a')]),

    and policy, by the same minimum of the critics,

        min  E_{a ~ pi(. | s)}[alpha log pi(a | s) - alpha log p(a) - min_k Q_k(s, a)].

    (T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, eq. (5), (7), with a prior.) A policy
    that can be reparametrised is learnt by the gradient through its actions; another by the likelihood ratio, with the
    mean over the other draws of the state as the baseline. The temperature is the Lagrange multiplier of a bound on how
    far the policy may be from its prior, ``E[log pi - log p] = A log 2 - target_entropy``: with the uniform prior on
    (-1, 1)^A that is an entropy of ``target_entropy`` (eq. (18)), with another one a divergence equally great.

    ``first=True`` is the form that the latent space policies were learnt with (T. Haarnoja et al., "Soft Actor-Critic:
    Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic Actor", first version): one Q, a state
    value V and its target, the likelihood ratio with baseline V for any policy, and alpha = 1 with rewards scaled.

    Policy and critics are updated together, both by gradients at the same parameters.

    Args:
        policy: the policy; its sizes must be these.
        observation_size: O.
        action_size: A.
        prior: p(a), such as :class:`~pyrocontrol.models.GaussianPrior` for latents of a level below, which
            a policy with ``squash=False`` needs; None for the uniform one, its density counted as 1. The soft target is
            then gamma alpha A log 2 above that of ``UniformPrior(A)`` wherever the episode goes on: where episodes can
            terminate, a bonus for staying alive.
        hidden: sizes of the critics' hidden layers.
        lr: of Adam, for everything.
        discount: gamma.
        smoothing: how far a target moves towards its network; 1 copies.
        target_every: updates between the moves of a target.
        temperature: alpha, reward units a nat, or ``"learned"``, beginning at 1. None is 1 with ``first`` and
            ``"learned"`` else.
        target_entropy: nats, of a learned temperature; None for -A.
        reward_scale: what rewards are multiplied by.
        value_range: bounds of the discounted return from every state on, where they are known. The optimal soft value
            is between them, as the prior alone earns no less, at no cost, and nothing earns more. What is kept between
            them is one sample of what follows, ``min_k Qbar_k - alpha (log pi - log p)``, which at the exact posterior
            is the soft value whatever the action; so the optimum stays what it is. Without it, errors of the critics
            can add up beyond any return, or make an end of the episode, which is worth 0, better than going on. It
            needs a prior that is given, whose density is normalised over the policy's actions.
        elbo: take the policy's step by this Pyro ELBO, ``loss_and_grads`` on the Pyro model of one step, which the
            prior makes; None computes the same loss directly, and faster. Model and guide are scaled by alpha / B, so
            that it must be linear in the log joint, and change, so that it must not be compiled: ``Trace_ELBO``,
            ``TraceGraph_ELBO``, ``TraceEnum_ELBO``, ``TraceMeanField_ELBO`` or `StepwiseKL_ELBO`; ``RenyiELBO`` and
            other bounds of several particles are not linear.
        first: soft actor-critic's first form.
        fixed_latent: draw a flow's latent once an episode, by its seed, and act with it to the end: exploration that
            goes somewhere, as in the paper's maze. Not a part of the objective.
        particles: P, draws of one state in the policy's loss; None for 1, and for 4 where the likelihood ratio has no
            other baseline. An ELBO has its own.
        gradient: of the policy's loss, ``"pathwise"``, through the actions, or ``"score"``, by the likelihood ratio;
            None for pathwise where the policy can be reparametrised.
        capture: on a GPU, make the step one CUDA graph, for batches of one size; elsewhere it changes nothing.

    Raises:
        TypeError: if the policy or the ELBO is not what it should be.
        ValueError: for a policy or prior of other sizes, a policy of unbounded actions without a prior over them,
            numbers out of range, or arguments that exclude each other.
    """

    def __init__(
        self,
        policy: ActionGuide,
        observation_size: int,
        action_size: int,
        *,
        prior: ActionPrior | None = None,
        hidden: Sequence[int] = (128, 128),
        lr: float = 3e-4,
        discount: float = 0.99,
        smoothing: float = 0.01,
        target_every: int = 1,
        temperature: float | Literal["learned"] | None = None,
        target_entropy: float | None = None,
        reward_scale: float = 1.0,
        value_range: tuple[float, float] | None = None,
        elbo: ELBO | None = None,
        first: bool = False,
        fixed_latent: bool = False,
        particles: int | None = None,
        gradient: Literal["pathwise", "score"] | None = None,
        capture: bool = False,
    ) -> None:
        if temperature is None:
            temperature = 1.0 if first else "learned"
        if target_entropy is not None and temperature != "learned":
            raise ValueError("target_entropy goes with a learned temperature")
        if isinstance(temperature, str) and temperature != "learned":
            raise ValueError(f"temperature must be a number or 'learned', not {temperature!r}")
        if not isinstance(temperature, str):
            verify_positive(temperature=temperature)
        if target_entropy is not None and not math.isfinite(target_entropy):
            raise ValueError(f"target_entropy must be finite, not {target_entropy}")
        if particles is not None:
            verify_least(1, particles=particles)
        if gradient not in (None, "pathwise", "score"):
            raise ValueError(f"gradient must be 'pathwise' or 'score', not {gradient!r}")
        if gradient is not None and (first or elbo is not None):
            raise ValueError("the first form and an elbo have gradients of their own: neither goes with gradient")
        if elbo is not None:
            _verify_elbo(elbo, policy, prior, first, particles)
            if capture:
                raise ValueError("an elbo gives its loss to Python, which waits for the device: no capture with it")
        verify_policy(policy, observation_size, action_size)
        if gradient == "pathwise" and not policy.has_rsample:
            raise ValueError(f"a {type(policy).__name__} cannot be reparametrised: gradient must be 'score'")
        score = first or gradient == "score" or not policy.has_rsample
        self_baseline = score and not first
        if particles is None:
            particles = 4 if self_baseline else 1
        learned = temperature == "learned"
        goal = float(-action_size if target_entropy is None else target_entropy)
        super().__init__(
            policy,
            observation_size,
            action_size,
            prior=prior,
            critics=Critics(observation_size, action_size, hidden, 1 if first else 2, coordinates_of(prior)),
            lr=lr,
            discount=discount,
            reward_scale=reward_scale,
            value_range=value_range,
            move=TargetCopy(smoothing, target_every),
            fixed_latent=fixed_latent,
            capture=capture,
            settings={
                "temperature": temperature,
                "target_entropy": goal if learned else None,
                "first": first,
                "particles": particles,
                "elbo": None if elbo is None else f"{type(elbo).__name__}({getattr(elbo, 'num_particles', 1)})",
            }
            | ({} if gradient is None else {"gradient": gradient}),
        )
        self.elbo: Any = elbo  # those that SVI can call have loss_and_grads, which Pyro's class does not say
        self.first, self.particles, self.target_entropy, self.score = first, particles, goal, score
        self.shift = goal - (0 if prior is None else action_size * math.log(2))
        dtype = self.critics.biases[0].dtype
        log_alpha = torch.tensor(0.0 if isinstance(temperature, str) else math.log(temperature), dtype=dtype)
        others: list[nn.Parameter | nn.Module] = []
        self.log_alpha: Tensor
        if learned:
            self.log_alpha = nn.Parameter(log_alpha)
            others.append(self.log_alpha)
        else:
            self.register_buffer("log_alpha", log_alpha)
        self.learned = learned
        if first:  # what is followed slowly is the state value, and no target of Q is needed
            self.values = Critics(observation_size, 0, hidden, 1).to(dtype)
            self.target = copy.deepcopy(self.values).requires_grad_(False)
            others.append(self.values)
        self.optimise(*others)

    @property
    def alpha(self) -> Tensor:
        """The temperature, without a graph."""
        return self.log_alpha.detach().exp()

    @property
    def followed(self) -> nn.Module:
        """What the target follows: the critics, in the first form the state value."""
        return self.values if self.first else self.critics

    def loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a scalar whose gradients are those of policy, critics and temperature, and numbers to report.

        They are ``critic_loss``, ``policy_loss``, ``q``, ``alpha`` and ``divergence``, the mean of log pi - log p,
        which is not known, nan, for an ELBO with a given temperature. An ELBO adds its gradients itself.
        """
        alpha = self.alpha
        target = self.soft_target(batch, alpha)
        values = self.critics(batch.observations, batch.actions)
        error = values.detach() - target
        # The gradient is that of sum_k mean_b (Q_k - target)^2 / 2, whose graph would be longer.
        loss = (values * (error / len(target))).sum()
        of_policy, report, ratio = self.policy_loss(batch.observations, alpha)
        if of_policy is not None:
            loss = loss + of_policy
        divergence = ratio.mean()
        if self.learned:
            loss = loss - self.log_alpha * (divergence + self.shift)  # E[log pi - log p] - A log 2 + target entropy
        critic_loss = error.square().sum() * (0.5 / len(target))
        numbers = {"critic_loss": critic_loss, "policy_loss": report, "q": values.detach().mean()}
        return loss, numbers | {"alpha": alpha, "divergence": divergence}

    @torch.no_grad()
    def soft_target(self, batch: ReplayBatch, alpha: Tensor | None = None) -> Tensor:
        """Return what every Q(s, a) is drawn towards, ``[B]``: one sample of the soft Bellman backup."""
        alpha = self.alpha if alpha is None else alpha
        if self.first:
            following = self.target.minimum(batch.next_observations)
        else:
            actions, log_prob = self.policy.draw(batch.next_observations)
            following = self.target.minimum(batch.next_observations, actions)
            following = following - alpha * self.log_ratio(actions, log_prob)
        return self.bellman(batch.rewards, batch.terminated, following)

    def policy_loss(self, observations: Tensor, alpha: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the policy's loss, its value to report, and log pi - log p ``[..., B]``, both without a graph.

        The loss, of which gradients are taken, holds that of the state value in the first form. It is None where an
        ELBO has taken the gradient itself.
        """
        if self.elbo is not None:
            return self._elbo_loss(observations, alpha)
        if not self.score:
            draws = (self.particles,) if self.particles > 1 else ()
            actions, log_prob = self.policy.draw(observations, sample_shape=draws)
            ratio = self.log_ratio(actions, log_prob)
            loss = (alpha * ratio - self.critics.value_of_frozen(observations, actions)).mean()
            return loss, loss.detach(), ratio.detach()
        actions, log_prob = self._score(observations)
        with torch.no_grad():
            ratio = self.log_ratio(actions, log_prob)
            cost = alpha * ratio - self.critics.minimum(observations, actions)  # [P, B]
        loss = log_prob.new_zeros(())
        if self.first:
            values = self.values.minimum(observations)  # [B]
            loss = 0.5 * (values + cost).square().mean()  # V(s) <- E[Q - alpha (log pi - log p)]
            baseline = -values.detach()
        elif self.particles > 1:
            baseline = (cost.sum(0) - cost) / (self.particles - 1)
        else:
            baseline = torch.zeros_like(cost)
        return loss + (log_prob * (cost - baseline)).mean(), cost.mean(), ratio.detach()

    def _score(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``[P, B, A]`` without a graph, and their log-density as a function of the parameters alone."""
        if not self.policy.has_rsample:
            return self.policy.draw(observations, sample_shape=(self.particles,))
        distribution = self.policy(observations)
        actions = distribution.sample((self.particles,))
        return actions, distribution.log_prob(actions)

    def _elbo_loss(self, observations: Tensor, alpha: Tensor) -> tuple[None, Tensor, Tensor]:
        assert self.elbo is not None and self.prior is not None
        optimality = self.prior.optimality(self.critics.value_of_frozen, alpha)
        scale = poutine.scale(scale=alpha / len(observations))  # from nats of the batch to rewards of one state
        model, guide = scale(optimality.model), scale(optimality.guide_of(self.policy))
        report = self.elbo.loss_and_grads(model, guide, observations)
        if not self.learned:
            return None, alpha.new_tensor(report), alpha.new_tensor(math.nan)
        with torch.no_grad():
            return None, alpha.new_tensor(report), self.log_ratio(*self.policy.draw(observations))


def coordinates_of(prior: ActionPrior | None) -> Callable[[Tensor], Tensor] | None:
    """Return what critics read of actions: coordinates in which the prior is uniform on (-1, 1)^A.

    Of the latents of a level below, which have no bounds, a network makes values that grow without bounds, faster than
    the prior's density falls.

    Raises:
        TypeError: if the prior is none.
    """
    if prior is None:
        return None
    for name in ("action_size", "log_prob", "coordinates"):
        if not hasattr(prior, name):
            raise TypeError(f"prior must be one of actions, such as GaussianPrior(action_size), not {prior!r}")
    return prior.coordinates


def verify_policy(policy: Any, observation_size: int, action_size: int) -> None:
    """Refuse what is not a policy of these sizes."""
    if not isinstance(policy, nn.Module):
        raise TypeError(f"policy must be a module such as FlowPolicy, not {type(policy).__name__}")
    for name in ("observation_size", "action_size", "squash", "has_rsample", "draw", "mode", "signature"):
        if not hasattr(policy, name):
            raise TypeError(f"a {type(policy).__name__} is no policy to learn: it has no {name}")
    sizes: Any = (policy.observation_size, policy.action_size)
    if sizes != (observation_size, action_size):
        raise ValueError(
            f"the policy has {sizes[0]} observation and {sizes[1]} action numbers, "
            f"the learner {observation_size} and {action_size}"
        )
    parameters = [*policy.parameters()]
    if not any(parameter.requires_grad for parameter in parameters):
        why = "is frozen: call requires_grad_(True) on it, or a copy" if parameters else "has no parameters to learn"
        raise ValueError(f"the {type(policy).__name__} {why}")


def _verify_range(bounds: tuple[float, float], prior: ActionPrior | None, squash: bool) -> None:
    pair: Any = bounds
    two = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(bound, Real) for bound in pair)
    if not (two and -math.inf < pair[0] <= pair[1] < math.inf):
        raise ValueError(f"value_range must be the least and the greatest return, not {bounds}")
    if prior is None:
        raise ValueError("value_range needs a prior with its density, such as UniformPrior(action_size)")
    if squash and not getattr(prior, "bounded", False):
        raise ValueError(f"value_range needs a prior that is normalised within (-1, 1), which a {prior!r} is not")


def _verify_elbo(elbo: Any, policy: Any, prior: ActionPrior | None, first: bool, particles: int | None) -> None:
    if not callable(getattr(elbo, "loss_and_grads", None)):
        raise TypeError(f"elbo must be an ELBO such as Trace_ELBO(), not {type(elbo).__name__}")
    if type(elbo).__module__.startswith("pyro.") and type(elbo) not in _LINEAR:
        names = ", ".join([*(kind.__name__ for kind in _LINEAR), "StepwiseKL_ELBO"])
        raise TypeError(f"elbo must be linear in the log joint and not compiled, as {names}, not {type(elbo).__name__}")
    if isinstance(elbo, TraceMeanField_ELBO) and not getattr(policy, "has_rsample", True):
        kind = type(policy).__name__
        raise ValueError(f"a TraceMeanField_ELBO needs a policy that can be reparametrised, which a {kind} cannot")
    if first:
        raise ValueError("the first form has its own gradient of the policy: elbo and first exclude each other")
    if prior is None:
        raise ValueError("an elbo needs the prior that makes its model, such as UniformPrior(action_size)")
    if particles is not None:
        raise ValueError("particles are the elbo's own: give them to it as num_particles")
