"""Soft Q-learning: the soft value by importance sampling, and a policy fitted by Stein variational gradient descent.

T. Haarnoja, H. Tang, P. Abbeel and S. Levine, "Reinforcement Learning with Deep Energy-Based Policies" (2017).

Shapes: B batch, O observation numbers, A action numbers, M and N draws of one state.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._verify import verify_least, verify_positive
from ...models.optimality import ActionGuide
from .replay import ReplayBatch
from .soft_control import SoftLearner, SoftOptions

__all__ = ["SoftQLearning", "stein_direction"]

_EDGE = 1 - 1e-6  # squashed actions further out are taken for this, if a policy gives no others: at 1 none is finite


class SoftQLearning(SoftLearner):
    """Learns Q of the best policy itself, and a policy that samples from ``p(a) exp(Q(s, a) / alpha)``.

    Critic, with the policy as the proposal of importance sampling (eq. (10)),

        Q(s, a)  <-  r + gamma (1 - terminated) V(s'),
        V(s') = alpha log (1/M) sum_j p(a_j) exp(Qbar(s', a_j) / alpha) / pi(a_j | s'),  a_j ~ pi(. | s'),

    unlike that of :class:`~pyrocontrol.inference.SoftActorCritic` no function of the policy, but for the
    error of M samples. Policy, by amortised Stein variational gradient descent (eq. (13)): one half of the draws of a
    state say where the others should go; see :func:`stein_direction`. Squashed policies are moved before the squashing,
    where the density vanishes at the ends, as Stein's identity needs.

    Args:
        policy: any policy that can be reparametrised; its sizes must be these.
        observation_size: O.
        action_size: A.
        temperature: alpha, reward units a nat.
        particles: M, draws of one state for its value and for the policy.
        **options: see `SoftOptions`; ``smoothing`` and ``target_every`` are 1 and 1000, as in the paper.

    Raises:
        TypeError: if the policy is not what it should be.
        ValueError: for a policy or prior of other sizes, a policy of unbounded actions without a prior over them, one
            that cannot be reparametrised, or numbers out of range.
    """

    def __init__(
        self,
        policy: ActionGuide,
        observation_size: int,
        action_size: int,
        *,
        temperature: float = 1.0,
        particles: int = 16,
        **options: Unpack[SoftOptions],
    ) -> None:
        verify_positive(temperature=temperature)
        verify_least(4, particles=particles)  # half of which move the others
        usual: SoftOptions = {"smoothing": 1.0, "target_every": 1000}
        super().__init__(policy, observation_size, action_size, **usual | options)
        if not policy.has_rsample:
            raise ValueError(
                f"soft Q-learning moves the actions themselves, and those of a {type(policy).__name__} "
                "are no function of its parameters: use one that can be reparametrised"
            )
        self.temperature, self.particles = temperature, particles
        self.learn_also(temperature=temperature, particles=particles)

    def loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a scalar whose gradients are those of critic and policy, and numbers to report.

        They are ``critic_loss``, ``q``, and ``stein``, the mean length of the directions, which vanishes as the policy
        fits.
        """
        target = self.soft_target(batch)
        values = self.critics(batch.observations, batch.actions)
        critic_loss = (values - target).square().sum() * (0.5 / len(target))
        of_policy, length = self.policy_loss(batch.observations)
        numbers = {"critic_loss": critic_loss.detach(), "stein": length, "q": values.detach().mean()}
        return critic_loss + of_policy, numbers

    @torch.no_grad()
    def soft_value(self, observations: Tensor) -> Tensor:
        """Return V(s) ``[...]`` at observations ``[..., O]``, by the target critic (eq. (10))."""
        actions, log_prob = self.policy.draw(observations, sample_shape=(self.particles,))
        weights = self.target.minimum(observations, actions) / self.temperature - self.log_ratio(actions, log_prob)
        return self.temperature * (weights.logsumexp(0) - math.log(self.particles))

    @torch.no_grad()
    def soft_target(self, batch: ReplayBatch) -> Tensor:
        """Return what Q(s, a) is drawn towards, ``[B]``."""
        return self.bellman(batch.rewards, batch.terminated, self.soft_value(batch.next_observations))

    def policy_loss(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return a loss whose gradient is that of eq. (14), and the mean length of Stein's directions."""
        fixed_count = self.particles // 2
        with torch.no_grad():
            fixed = self._draw_raw(observations, fixed_count)
        moved = self._draw_raw(observations, self.particles - fixed_count)
        score = torch.func.grad(lambda actions: self.raw_log_density(observations, actions).sum())(fixed)
        direction = stein_direction(fixed, score.detach(), moved.detach())
        # A step along the direction, of every action: the loss has no meaning beyond its gradient.
        return -(moved * direction).sum(-1).mean(), direction.norm(dim=-1).mean()

    def _draw_raw(self, observations: Tensor, count: int) -> Tensor:
        """Actions before the squashing, ``[count, B, A]``."""
        draws = (count,)
        if self.policy.squash and hasattr(self.policy, "draw_raw"):
            return self.policy.draw_raw(self.policy.conditions(observations, draws))[0]
        drawn, _ = self.policy.draw(observations, sample_shape=draws)
        return torch.atanh(drawn.clamp(-_EDGE, _EDGE)) if self.policy.squash else drawn

    def raw_log_density(self, observations: Tensor, raw: Tensor) -> Tensor:
        """Return ``log p(a) + Q(s, a) / alpha``, a density of the action before squashing, ``[..., B]``."""
        actions = raw.tanh() if self.policy.squash else raw
        density = self.critics.value_of_frozen(observations, actions) / self.temperature
        if self.prior is not None:
            density = density + self.prior.log_prob(actions)
        if self.policy.squash:
            density = density + 2 * (math.log(2) - raw - F.softplus(-2 * raw)).sum(-1)  # log d tanh(u) / du
        return density


def stein_direction(fixed: Tensor, score: Tensor, moved: Tensor) -> Tensor:
    """Return where Stein variational gradient descent moves actions, ``[N, B, A]`` (eq. (13) over alpha).

        Delta(a) = (1/M) sum_j kappa(a_j, a) grad log p(a_j) + grad_{a_j} kappa(a_j, a),
        kappa(a', a) = exp(-|a' - a|^2 / h),  h = median |a_j - a|^2 / log(M + 1),

    the median taken over all pairs of a state, as in Q. Liu and D. Wang, "Stein Variational Gradient Descent" (2016).

    Args:
        fixed: a_j ``[M, B, A]``.
        score: the gradient of the log-density at them ``[M, B, A]``.
        moved: a ``[N, B, A]``.
    """
    difference = fixed.unsqueeze(1) - moved.unsqueeze(0)  # [M, N, B, A]
    distance = difference.square().sum(-1)
    pairs = distance.flatten(0, 1)
    width = (pairs.median(0).values / math.log(len(fixed) + 1)).clamp_min(1e-3)  # [B]
    kernel = (-distance / width).exp().unsqueeze(-1)
    repulsion = -2 / width.unsqueeze(-1) * difference * kernel
    return (kernel * score.unsqueeze(1) + repulsion).mean(0)
