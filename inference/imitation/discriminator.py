"""The discriminator: the probability that a step is the expert's, as evidence of optimality.

Shapes: N rows of a batch, X input numbers, `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._verify import verify_finite, verify_least
from .evidence import LearntEvidence, Schedule

__all__ = ["Discriminator"]

Link = Literal["logit", "log_d", "probability"]
Penalty = Literal["two-sided", "one-sided", "parameters"]


class Discriminator(LearntEvidence):
    r"""D(x), the probability that x is the expert's, told from the agent's by their cross-entropy.

    With f the logit of D, and noise e, e' ~ N(0, sigma^2) on the standardised inputs (see `LearntEvidence`),

    .. math:: \min_\psi \; -E_E[\log D(x + e)] - E_A[\log(1 - D(x + e'))] + \lambda \, E[(\|\nabla f(u)\|_2 - 1)^2],

    u being drawn evenly from the lines between a row of the expert's and one of the agent's. The first two terms are
    what eq. (2) of VMIL is for. As printed, it minimises ``E_A[log D] + E_E[log(1 - D)]``, which has no minimum.
    Maximised, as in GAIL, it makes D the probability of the *agent*, while the model needs log D as the evidence of the
    *expert's* event. The released code has the signs used here: D is the probability of the expert throughout. Without
    noise and penalty the optimum is ``p_E / (p_E + p_A)``, whose logit is the log ratio of the two densities.

    Something has to bound how fast the reward changes: by default the norm of each layer's weights, which from one
    demonstration of a walker ranks what agents do by the true reward better than the penalty does, for VMIL and DAC.

    The penalty is that of I. Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), eq. (3), on the logit.
    Three forms are known:

    - ``"two-sided"``: as above. The gradient is in units of the standardised inputs.
    - ``"one-sided"``: ``max(0, |grad f(u)| - 1)^2``, which leaves a flat logit alone (section 4 there).
    - ``"parameters"``: ``(|grad_psi mean f(u)| - 1)^2``, of the gradient in D's own parameters: what VMIL's released
      code computes under the name of a gradient penalty. It bounds no Lipschitz constant.

    Rewards, with the logit f clipped first; all are multiplied by the weight:

    - ``"logit"``: ``log D - log(1 - D) = f``: at the optimum it is the log ratio, and takes both signs.
    - ``"log_d"``: log D, the evidence of VMIL's model; never positive, so that ending an episode pays.
    - ``"probability"``: D, as in VMIL's released code; never negative, so that going on pays.

    Args:
        size: X.
        hidden: sizes of the hidden layers, with SiLU; () for a logit that is linear.
        noise: sigma, in units of the expert's standard deviations; or a function of the number of updates, such as
            `Annealed`. The paper has noise without its size, and proposes to anneal it against late degradation.
        gradient_penalty: lambda.
        penalty: the form of the penalty.
        lr: of Adam.
        weight: what the reward is multiplied by.
        clip: bound of the logit in the reward; there its gradient is 0. None for no bound.
        reward: the kind of reward.
        spectral_norm: divide the weights of each layer by their largest singular value, by one power iteration a pass
            (T. Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018), which bounds the
            Lipschitz constant by that of the activations, about 1.1 a layer.
        standardize: see `LearntEvidence`; without it noise and penalty are in units of the plain inputs.

    Raises:
        TypeError: for what is no number.
        ValueError: for numbers out of range, or an unknown reward or penalty.

    Example:
        >>> import torch
        >>> evidence = Discriminator(2, hidden=(8,))
        >>> numbers = evidence.update(torch.ones(4, 2), torch.zeros(4, 2))
        >>> sorted(numbers), evidence.reward(torch.zeros(3, 5, 2)).shape
        (['accuracy', 'agent_logit', 'expert_logit', 'loss', 'penalty'], torch.Size([3, 5]))
    """

    sigma: Tensor

    def __init__(
        self,
        size: int,
        *,
        hidden: Sequence[int] = (256, 256),
        noise: float | Schedule = 0.2,
        gradient_penalty: float = 0.0,
        penalty: Penalty = "two-sided",
        lr: float = 1e-4,
        weight: float = 0.2,
        clip: float | None = 10.0,
        reward: Link = "logit",
        spectral_norm: bool = True,
        standardize: bool = True,
    ) -> None:
        super().__init__(size, lr=lr, weight=weight, clip=clip, standardize=standardize)
        for name, given, known in (("reward", reward, Link), ("penalty", penalty, Penalty)):
            if given not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {given!r}")
        verify_finite(0.0, gradient_penalty=gradient_penalty, **({} if callable(noise) else {"noise": noise}))
        for number in hidden:
            verify_least(1, hidden=number)
        self.noise, self.gradient_penalty, self.penalty, self.link = noise, gradient_penalty, penalty, reward
        layers: list[nn.Module] = []
        linear = _SpectralLinear if spectral_norm else nn.Linear
        sizes = [size, *hidden, 1]
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            layers += [linear(inputs, outputs), nn.SiLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.register_buffer("sigma", torch.zeros(()), persistent=False)
        self.learn(
            self.network,
            hidden=tuple(hidden),
            noise=noise,
            gradient_penalty=gradient_penalty,
            penalty=penalty,
            reward=reward,
            spectral_norm=spectral_norm,
        )

    def prepare(self) -> None:
        """Set the noise and the rate of the moments.

        Raises:
            ValueError: for noise of a schedule that is negative or not finite.
        """
        super().prepare()
        noise = float(self.noise(self.updates)) if callable(self.noise) else self.noise
        verify_finite(0.0, noise=noise)
        self.sigma.fill_(noise)

    def logit(self, x: Tensor) -> Tensor:
        """Return log D - log(1 - D) ``[...]`` of inputs ``[..., X]``."""
        return self._f(self.scaled(x))

    def _f(self, x: Tensor) -> Tensor:
        logit: Tensor = self.network(x).squeeze(-1)
        return logit

    def reward(self, x: Tensor) -> Tensor:
        """Return the reward ``[...]`` of inputs ``[..., X]``, without noise, differentiable in them alone."""
        with self.held():
            logit = self.clipped(self.logit(x))
        value = {"log_d": functional.logsigmoid, "probability": torch.sigmoid}.get(self.link, lambda f: f)(logit)
        return self.weight * value

    def loss(self, expert: Tensor, agent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of inputs ``[N, X]`` at the noise of the last update, and what :meth:`update` reports.

        The numbers are ``loss``, the cross-entropy alone; ``accuracy``, the share of rows on the right side of 0;
        ``expert_logit`` and ``agent_logit``, means; ``penalty``, not multiplied by lambda.
        """
        inputs = self.scaled(torch.stack([expert, agent]))
        inputs = inputs + self.sigma * torch.randn_like(inputs)
        of_expert, of_agent = self._f(inputs)
        entropy = functional.softplus(-of_expert).mean() + functional.softplus(of_agent).mean()
        penalty = self._penalty(*inputs) if self.gradient_penalty else entropy.new_zeros(())
        numbers = {
            "loss": entropy,
            "accuracy": torch.cat([of_expert > 0, of_agent < 0]).to(entropy.dtype).mean(),
            "expert_logit": of_expert.mean(),
            "agent_logit": of_agent.mean(),
            "penalty": penalty,
        }
        numbers = {name: value.detach() for name, value in numbers.items()}
        return entropy + self.gradient_penalty * penalty, numbers

    def _penalty(self, expert: Tensor, agent: Tensor) -> Tensor:
        """The penalty between what the network has read of the expert and of the agent, ``[N, X]`` each."""
        between = torch.lerp(agent, expert, torch.rand_like(expert[:, :1])).requires_grad_()
        logits = self._f(between)
        if self.penalty == "parameters":
            gradients: Any = torch.autograd.grad(logits.mean(), self.learnt, create_graph=True)
            norms = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        else:
            (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
            norms = gradient.norm(dim=-1)  # whose own gradient is 0 at 0
        excess = norms - 1
        return (excess.relu() if self.penalty == "one-sided" else excess).square().mean()


class _SpectralLinear(nn.Linear):
    """A linear layer whose weights are divided by their largest singular value, followed by power iterations."""

    direction: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("direction", functional.normalize(torch.randn(outputs), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., outputs]``; an iteration is made while training."""
        with torch.no_grad():
            right = functional.normalize(self.weight.mT @ self.direction, dim=0)
            left = functional.normalize(self.weight @ right, dim=0)
            if self.training:
                self.direction.copy_(left)
        return functional.linear(x, self.weight / (left @ self.weight @ right), self.bias)
