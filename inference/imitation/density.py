"""Evidence from two densities, without an adversary: coupled random networks.

Shapes: N rows of a batch, X input numbers, E numbers of an embedding, K targets, `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._verify import verify_finite, verify_least
from .evidence import LearntEvidence

__all__ = ["CoupledRandomNetworks"]

_TINY = 1e-6


class CoupledRandomNetworks(LearntEvidence):
    r"""How much more familiar x is from the expert than from the agent, by networks that imitate random ones.

    Two predictors f_E and f_A learn, on the expert's and on the agent's inputs, to say what one of K random networks
    g_k, drawn anew for each row, makes of them:

    .. math:: \min \; E_k \big[ E_E |f_E(x) - g_k(x)|^2 + E_A |f_A(x) - g_k(x)|^2 \big],

    :math:`|.|^2` being the mean over the E numbers of the embedding.

    Where a predictor has learnt, it is the mean mu of the targets; where it has not, it is off. With the second
    moment B of the targets, all of one input, and a mean over the E numbers of the embedding,

    .. math:: b(x) = \alpha |f(x) - \mu(x)|^2
              + (1 - \alpha) \Big\langle \sqrt{|f(x)^2 - \mu(x)^2| / (B(x) - \mu(x)^2)} \Big\rangle

    is low where data were dense: the first term tells known from unknown, the square of the second estimates one over
    the number of visits. The reward, clipped and then weighed, is

    .. math:: r(x) = (1 - \zeta) b_A(x) - \zeta b_E(x).

    It is the difference of two regressions, so there is no adversary that could cycle or saturate. After
    S. Li, Z. Huang and H. Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation
    Learning" (2025), whose released code has the same r with alpha 0.9, zeta 0.8, K = 5 and E = 256; b is that of
    K. Yang et al., "Exploration and Anti-Exploration with Distributional Random Network Distillation" (2024). What
    differs: the code reads bounded latents, this class standardises inputs (see `LearntEvidence`) and adds 1e-6 under
    the root and to its denominator, so that the gradient is finite.

    Args:
        size: X.
        hidden: sizes of the hidden layers of all networks, with SiLU.
        embedding: E.
        targets: K, at least 2.
        alpha: share of the first term, in [0, 1].
        expert_share: zeta, in [0, 1]; below 1 the agent is drawn away from where it is, while that is far from the
            expert.
        lr: of Adam.
        weight: what the reward is multiplied by.
        clip: bound of the reward before it is weighed; None for no bound.
        standardize: see `LearntEvidence`.

    Raises:
        TypeError: for what is no number.
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        size: int,
        *,
        hidden: Sequence[int] = (128, 128),
        embedding: int = 64,
        targets: int = 5,
        alpha: float = 0.9,
        expert_share: float = 0.8,
        lr: float = 3e-4,
        weight: float = 1.0,
        clip: float | None = 10.0,
        standardize: bool = True,
    ) -> None:
        super().__init__(size, lr=lr, weight=weight, clip=clip, standardize=standardize)
        verify_least(1, embedding=embedding)
        verify_least(2, targets=targets)
        verify_finite(0.0, alpha=alpha, expert_share=expert_share)
        for name, share in (("alpha", alpha), ("expert_share", expert_share)):
            if share > 1:
                raise ValueError(f"{name} must be at most 1, not {share}")
        for number in hidden:
            verify_least(1, hidden=number)
        self.alpha, self.expert_share = alpha, expert_share

        def network() -> nn.Module:
            layers: list[nn.Module] = []
            sizes = [size, *hidden, embedding]
            for inputs, outputs in zip(sizes, sizes[1:], strict=False):
                layers += [nn.Linear(inputs, outputs), nn.SiLU()]
                nn.init.orthogonal_(layers[-2].weight, 2**0.5)  # type: ignore[arg-type]
                nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
            return nn.Sequential(*layers[:-1])

        self.targets = nn.ModuleList(network() for _ in range(targets)).requires_grad_(False)
        self.expert, self.agent = network(), network()
        self.learn(
            self.expert,
            self.agent,
            hidden=tuple(hidden),
            embedding=embedding,
            targets=targets,
            alpha=alpha,
            expert_share=expert_share,
        )

    def _of_targets(self, x: Tensor) -> Tensor:
        """What the targets say of standardised inputs ``[..., X]``: ``[K, ..., E]``."""
        return torch.stack([target(x) for target in self.targets])

    def loss(self, expert: Tensor, agent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of inputs ``[N, X]``, and what :meth:`update` reports.

        The numbers are ``loss``; ``expert_loss`` and ``agent_loss``, its two parts; and ``expert_reward`` and
        ``agent_reward``, the mean rewards of the two.
        """
        inputs = self.scaled(torch.stack([expert, agent]))
        aims = self._of_targets(inputs)
        chosen = torch.randint(len(self.targets), (1, *inputs.shape[:2], 1), device=inputs.device)
        aim = aims.gather(0, chosen.expand(-1, -1, -1, aims.shape[-1]))[0]
        of_expert, of_agent = (
            (network(x) - goal).square().mean()
            for network, x, goal in zip((self.expert, self.agent), inputs, aim, strict=True)
        )
        numbers = {"loss": of_expert + of_agent, "expert_loss": of_expert, "agent_loss": of_agent}
        numbers = {name: value.detach() for name, value in numbers.items()}
        with torch.no_grad():
            expert_reward, agent_reward = self._reward(inputs, aims).mean(1)
        return of_expert + of_agent, numbers | {"expert_reward": expert_reward, "agent_reward": agent_reward}

    def reward(self, x: Tensor) -> Tensor:
        """Return the reward ``[...]`` of inputs ``[..., X]``, differentiable in them alone."""
        with self.held():
            inputs = self.scaled(x)
            return self._reward(inputs, self._of_targets(inputs))

    def _reward(self, inputs: Tensor, aims: Tensor) -> Tensor:
        """The reward of standardised inputs, given what the targets say of them."""
        mean = aims.mean(0)
        spread = (aims - mean).square().mean(0)

        def bonus(network: nn.Module) -> Tensor:
            said = network(inputs)
            visits = ((said.square() - mean.square()).abs() / (spread + _TINY) + _TINY).sqrt()
            return self.alpha * (said - mean).square().sum(-1) + (1 - self.alpha) * visits.mean(-1)

        reward = (1 - self.expert_share) * bonus(self.agent) - self.expert_share * bonus(self.expert)
        return self.weight * self.clipped(reward)
