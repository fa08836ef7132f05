"""Soft actor-critic's first form, which the latent space policies were learnt with."""

from __future__ import annotations

import copy
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from ...models.optimality import ActionGuide
from .critics import Critics
from .policy_gradient import Estimate, Score
from .replay import ReplayBatch
from .soft_control import SoftActorCritic, SoftOptions
from .temperature import Temperature

__all__ = ["FirstSoftActorCritic"]


class FirstSoftActorCritic(SoftActorCritic):
    """One Q, a state value V and its target Vbar, and the likelihood ratio with baseline V for any policy.

        Q(s, a)  <-  r + gamma (1 - terminated) Vbar(s'),
        V(s)     <-  E_{a ~ pi(. | s)}[Q(s, a) - alpha (log pi(a | s) - log p(a))],

    (T. Haarnoja et al., "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
    Actor", first version.) There alpha is 1, and rewards are scaled.

    Args:
        policy: the policy; its sizes must be these.
        observation_size: O.
        action_size: A.
        temperature: as in `SoftActorCritic`.
        draws: of one state, in the losses of policy and V.
        **options: see `SoftOptions`.

    Raises:
        TypeError: as for `SoftActorCritic`.
        ValueError: as there.
    """

    critic_count = 1
    gradient: Score

    def __init__(
        self,
        policy: ActionGuide,
        observation_size: int,
        action_size: int,
        *,
        temperature: Temperature | float | Literal["learned"] = 1.0,
        draws: int = 1,
        **options: Unpack[SoftOptions],
    ) -> None:
        score = Score(draws)
        super().__init__(policy, observation_size, action_size, temperature=temperature, gradient=score, **options)
        self.values = Critics(observation_size, 0, self.critics.hidden, 1).to(self.log_alpha.dtype)
        self.target = copy.deepcopy(self.values).requires_grad_(False)
        self._settings.pop("gradient", None)  # there is no other
        self.learn_also(self.values, first=True)

    @property
    def followed(self) -> nn.Module:
        """What the target follows: the state value."""
        return self.values

    @torch.no_grad()
    def soft_target(self, batch: ReplayBatch, alpha: Tensor | None = None) -> Tensor:
        """Return what Q(s, a) is drawn towards, ``[B]``."""
        return self.bellman(batch.rewards, batch.terminated, self.target.minimum(batch.next_observations))

    def policy_loss(self, observations: Tensor, alpha: Tensor) -> Estimate:
        """Return the loss of policy and state value, the policy's to report, and log pi - log p ``[P, B]``."""
        log_prob, cost, ratio = self.gradient.costs(self, observations, alpha)
        values = self.values.minimum(observations)  # [B]
        loss = 0.5 * (values + cost).square().mean()
        return loss + (log_prob * (cost + values.detach())).mean(), cost.mean(), ratio
