"""Soft actor-critic: maximum-entropy control, with any policy of the protocol as the guide.

The soft Q-function is the backward message of the optimality model (:mod:`pyrocontrol.models.optimality`), and the step
of the policy is an SVI step on its one-step form, ``a ~ prior; factor(Q(s, a) / alpha)``.

Shapes: B batch, O observation numbers, A action numbers, K critics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..._verify import verify_positive
from ...models.optimality import ActionGuide, ActionPrior
from ..training.checkpoint import described
from ..training.optimized import Optimized
from .captured import CapturedStep
from .critics import Critics, TargetCopy
from .policy_gradient import ByELBO, Estimate, PolicyGradient, Score, policy_gradient
from .replay import ReplayBatch
from .temperature import Temperature, as_temperature

__all__ = ["SoftActorCritic", "SoftLearner", "SoftOptions"]


class SoftOptions(TypedDict, total=False):
    """Options of every soft learner, by name.

    Attributes:
        prior: p(a), such as :class:`~pyrocontrol.models.GaussianPrior` for latents of a level below, which a policy
            with ``squash=False`` needs; None for the uniform one, its density counted as 1. The soft target is then
            gamma alpha A log 2 above that of ``UniformPrior(A)`` wherever the episode goes on: where episodes can
            terminate, a bonus for staying alive (None).
        hidden: sizes of the critics' hidden layers (128, 128).
        lr: of Adam, for everything (3e-4).
        discount: gamma (0.99).
        smoothing: how far a target moves towards its network; 1 copies (0.01).
        target_every: updates between the moves of a target (1).
        reward_scale: what rewards are multiplied by (1).
        value_range: bounds of the discounted return from every state on, where they are known. The optimal soft value
            is between them, as the prior alone earns no less, at no cost, and nothing earns more. What is kept between
            them is one sample of what follows, ``min_k Qbar_k - alpha (log pi - log p)``, which at the exact posterior
            is the soft value whatever the action; so the optimum stays what it is. Without it, errors of the critics
            can add up beyond any return, or make an end of the episode, which is worth 0, better than going on. It
            needs a prior that is given, whose density is normalised over the policy's actions (None).
        fixed_latent: draw a flow's latent once an episode, by its seed, and act with it to the end: exploration that
            goes somewhere, as in the paper's maze. Not a part of the objective (False).
        capture: on a GPU, make the step one CUDA graph, for batches of one size; elsewhere it changes nothing (False).
    """

    prior: ActionPrior | None
    hidden: Sequence[int]
    lr: float
    discount: float
    smoothing: float
    target_every: int
    reward_scale: float
    value_range: tuple[float, float] | None
    fixed_latent: bool
    capture: bool


class SoftLearner(Optimized):
    """What maximum-entropy learners share: a policy that acts, critics, target critics, one optimiser.

    Its ``state_dict`` is all of it, the optimiser's state and the number of updates included. A kind of learner calls
    :meth:`learn_also` when it is made.

    Args:
        policy: the policy, an ``nn.Module``.
        observation_size: O.
        action_size: A.
        prior, hidden, lr, discount, smoothing, target_every, reward_scale, value_range, fixed_latent, capture: see
            `SoftOptions`.

    Raises:
        TypeError: if the policy is no module, or lacks a part of the protocol.
        ValueError: for a policy or prior of other sizes, a policy of unbounded actions without a prior over them, or
            numbers out of range.
    """

    #: K.
    critic_count: ClassVar[int] = 1
    policy: Any  # a module that is an ActionGuide, which mypy cannot say

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
        reward_scale: float = 1.0,
        value_range: tuple[float, float] | None = None,
        fixed_latent: bool = False,
        capture: bool = False,
    ) -> None:
        super().__init__()
        _verify_policy(policy, observation_size, action_size)
        if fixed_latent and not getattr(policy, "invertible", False):
            raise ValueError(f"a {type(policy).__name__} has no latent that could be fixed for an episode")
        coordinates = _coordinates_of(prior)
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
            value_range = (float(value_range[0]), float(value_range[1]))
        self.policy, self.observation_size, self.action_size = policy, observation_size, action_size
        self.prior, self.discount, self.reward_scale, self.lr = prior, discount, reward_scale, lr
        self.value_range, self.fixed_latent, self.capture = value_range, fixed_latent, capture
        self.move = TargetCopy(smoothing, target_every)
        dtype = next(self.policy.parameters()).dtype
        self.critics = self.make_critics(hidden, coordinates).to(dtype)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self.target.coordinates = coordinates  # of the prior itself, not of a copy
        self._captured: CapturedStep | None = None
        self.latent: Tensor | None = None
        both = (*self.policy.parameters(), *self.critics.parameters())
        self.learnt: tuple[nn.Parameter, ...] = tuple(dict.fromkeys(both))  # some may be of both
        self._settings = {
            "prior": described(prior),
            "hidden": self.critics.hidden,
            "lr": lr,
            "discount": discount,
            "reward_scale": reward_scale,
            "smoothing": smoothing,
            "target_every": target_every,
            "fixed_latent": fixed_latent,
        }

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_captured": None}  # a graph of where the tensors are

    def make_critics(self, hidden: Sequence[int], coordinates: Callable[[Tensor], Tensor] | None) -> Critics:
        """Return the critics, which a subclass may make in another way."""
        return Critics(self.observation_size, self.action_size, hidden, self.critic_count, coordinates)

    def learn_also(self, *others: nn.Parameter | nn.Module, **settings: Any) -> None:
        """Learn more than policy and critics, and make the optimiser of it all.

        Args:
            *others: what else.
            **settings: what tells the learner from others of its kind, beside the options that all share.
        """
        for other in others:
            self.learnt += tuple(other.parameters()) if isinstance(other, nn.Module) else (other,)
        self.optimizer = torch.optim.Adam(self.learnt, lr=self.lr, fused=True)
        self._settings |= settings

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
        bounds = {} if self.value_range is None else {"value_range": self.value_range}
        settings = ", ".join(f"{name}={value}" for name, value in (self._settings | bounds).items())
        return f"{type(self).__name__}({self.policy.signature()}, {settings})"

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`get_extra_state`, sharing nothing with it."""
        self._captured = None
        super().set_extra_state(state)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._captured = None  # parameters move to another device
        return super()._apply(*args, **kwargs)


class SoftActorCritic(SoftLearner):
    """Soft actor-critic, whose policy step is variational inference of the action.

    Critics, with a' ~ pi(. | s') and the minimum of K = 2 target critics,

        Q_k(s, a)  <-  r + gamma (1 - terminated) (min_k Qbar_k(s', a') - alpha [log pi(a' | s') - log p(a')]),

    and policy, by the same minimum of the critics,

        min  E_{a ~ pi(. | s)}[alpha log pi(a | s) - alpha log p(a) - min_k Q_k(s, a)].

    (T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, eq. (5), (7), with a prior.) Policy and
    critics are updated together, both by gradients at the same parameters.

    Args:
        policy: the policy; its sizes must be these.
        observation_size: O.
        action_size: A.
        temperature: alpha: a `Temperature`, or short for one, a number or ``"learned"``.
        gradient: how the policy's gradient is estimated: `Pathwise`, `Score`, or by a Pyro ELBO such as
            ``Trace_ELBO()``, which needs a prior that is given; see
            :class:`~pyrocontrol.inference.control.policy_gradient.ByELBO`. None for pathwise where the policy can be
            reparametrised, and the score elsewhere. Both are faster than the same by Pyro.
        **options: see `SoftOptions`.

    Raises:
        TypeError: if something is not what it should be.
        ValueError: for a policy or prior of other sizes, a policy of unbounded actions without a prior over them,
            numbers out of range, or arguments that exclude each other.
    """

    critic_count = 2

    def __init__(
        self,
        policy: ActionGuide,
        observation_size: int,
        action_size: int,
        *,
        temperature: Temperature | float | Literal["learned"] = "learned",
        gradient: PolicyGradient | ELBO | None = None,
        **options: Unpack[SoftOptions],
    ) -> None:
        for name in _MOVED.keys() & options.keys():
            raise TypeError(f"SoftActorCritic has no {name}: use {_MOVED[name]}")
        super().__init__(policy, observation_size, action_size, **options)
        self.temperature = as_temperature(temperature)
        self.gradient = policy_gradient(gradient, policy, self.prior)
        if self.capture and isinstance(self.gradient, ByELBO):
            raise ValueError("an elbo gives its loss to Python, which waits for the device: no capture with it")
        goal = self.temperature.target_entropy
        self.target_entropy = float(-action_size if goal is None else goal)
        self.shift = self.target_entropy - (0 if self.prior is None else action_size * math.log(2))
        log_alpha = torch.tensor(math.log(self.temperature.initial), dtype=self.critics.biases[0].dtype)
        self.log_alpha: Tensor
        if self.temperature.is_learned:
            self.log_alpha = nn.Parameter(log_alpha)
            self.learnt += (self.log_alpha,)
        else:
            self.register_buffer("log_alpha", log_alpha)
        self.learn_also(**self._told_apart_by())

    def _told_apart_by(self) -> dict[str, Any]:
        """What tells it from others, as version 0.1 said it as far as there were such."""
        learned, initial, gradient = self.temperature.is_learned, self.temperature.initial, self.gradient
        return {
            "temperature": "learned" if learned else initial,
            "target_entropy": self.target_entropy if learned else None,
            "first": False,
            "particles": 1 if isinstance(gradient, ByELBO) else gradient.draws,
            "elbo": gradient if isinstance(gradient, ByELBO) else None,
            **({"gradient": "score"} if type(gradient) is Score and self.policy.has_rsample else {}),
            **({"initial_temperature": initial} if learned and initial != 1 else {}),
        }

    @property
    def alpha(self) -> Tensor:
        """The temperature, without a graph."""
        return self.log_alpha.detach().exp()

    def loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a scalar whose gradients are those of policy, critics and temperature, and numbers to report.

        They are ``critic_loss``, ``policy_loss``, ``q``, ``alpha`` and ``divergence``, the mean of log pi - log p,
        which is not known, nan, for an ELBO with a fixed temperature. An ELBO adds its gradients itself.
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
        if self.temperature.is_learned:
            loss = loss - self.log_alpha * (divergence + self.shift)  # E[log pi - log p] - A log 2 + target entropy
        critic_loss = error.square().sum() * (0.5 / len(target))
        numbers = {"critic_loss": critic_loss, "policy_loss": report, "q": values.detach().mean()}
        return loss, numbers | {"alpha": alpha, "divergence": divergence}

    @torch.no_grad()
    def soft_target(self, batch: ReplayBatch, alpha: Tensor | None = None) -> Tensor:
        """Return what every Q(s, a) is drawn towards, ``[B]``: one sample of the soft Bellman backup."""
        alpha = self.alpha if alpha is None else alpha
        actions, log_prob = self.policy.draw(batch.next_observations)
        following = self.target.minimum(batch.next_observations, actions)
        following = following - alpha * self.log_ratio(actions, log_prob)
        return self.bellman(batch.rewards, batch.terminated, following)

    def policy_loss(self, observations: Tensor, alpha: Tensor) -> Estimate:
        """Return the policy's loss, its value to report, and log pi - log p ``[..., B]``, both without a graph.

        The loss, of which gradients are taken, is None where an ELBO has taken the gradient itself.
        """
        return self.gradient(self, observations, alpha)


_MOVED = {  # arguments of version 0.1
    "first": "FirstSoftActorCritic",
    "elbo": "gradient=elbo",
    "particles": "gradient=Pathwise(draws), gradient=Score(draws), or the elbo's num_particles",
    "target_entropy": "temperature=Temperature.learned(target_entropy=...)",
}


def _coordinates_of(prior: ActionPrior | None) -> Callable[[Tensor], Tensor] | None:
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


def _verify_policy(policy: Any, observation_size: int, action_size: int) -> None:
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
