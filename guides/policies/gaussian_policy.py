"""Policies of one normal distribution, and of a mixture of them.

The squashed normal is the policy of soft actor-critic in its later form (T. Haarnoja et al. 2018, "Soft actor-critic
algorithms and applications"), the mixture that of its first form, which latent space policies are compared with.

Shapes: ``...`` a batch of any shape, O observation numbers, A action numbers, K components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .action_policy import ActionPolicy, LatentPolicy, condition_network, standard_normal_log_prob

__all__ = ["GaussianPolicy", "MixturePolicy"]

# Least and greatest log sigma, as in soft actor-critic.
_LOG_SCALES = (-20.0, 2.0)
# Of a mixture's components.
_MIXED_LOG_SCALES = (-5.0, 2.0)
_MIXED_MEAN = 5.0


class GaussianPolicy(LatentPolicy):
    """pi(a | s) by a diagonal normal, ``a = tanh(mu(s) + sigma(s) h), h ~ N(0, I)``; log sigma is kept in [-20, 2].

    Args:
        observation_size: O.
        action_size: A.
        hidden: sizes of the hidden ReLU layers.
        squash: whether actions are squashed into (-1, 1)^A by tanh.

    Raises:
        ValueError: for sizes that are not positive.
    """

    def __init__(
        self, observation_size: int, action_size: int, *, hidden: Sequence[int] = (128, 128), squash: bool = True
    ):
        super().__init__(observation_size, action_size, squash=squash)
        self.hidden = tuple(hidden)
        self.network = condition_network(observation_size, self.hidden, 2 * action_size)

    def condition(self, observations: Tensor) -> Tensor:
        """Return the mean and log sigma (not yet within bounds) at ``[..., O]``, ``[..., 2 * A]``."""
        return self.network(observations)

    def push(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw actions u(h; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        mean, log_scale = self._split(condition)
        return torch.addcmul(mean, latents, log_scale.exp()), log_scale.sum(-1)

    def pull(self, raw: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents h(u; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        mean, log_scale = self._split(condition)
        return (raw - mean) * log_scale.neg().exp(), log_scale.sum(-1)

    def _split(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = condition.chunk(2, -1)
        return mean, log_scale.clamp(*_LOG_SCALES)


class MixturePolicy(ActionPolicy):
    """pi(a | s) by a mixture, ``a = tanh u, u ~ sum_k w_k(s) N(mu_k(s), sigma_k(s)^2)``.

    Means are within [-5, 5] and log sigma in [-5, 2], both by tanh, so that there is a gradient everywhere: a component
    that has become a point, or has gone to where the squashing is flat, could not be brought back by samples of it, and
    a learned temperature would rise without end. (The authors' code keeps log sigma above -5 and has a small penalty
    on means and log sigmas to this end.)

    Which component an action is of is a discrete choice: gradients reach the parameters through the log-probability
    alone, and there is no map from one latent per number to the action.

    Args:
        observation_size: O.
        action_size: A.
        components: K.
        hidden: sizes of the hidden ReLU layers.
        squash: whether actions are squashed into (-1, 1)^A by tanh.

    Raises:
        ValueError: for sizes that are not positive.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        components: int = 4,
        hidden: Sequence[int] = (128, 128),
        squash: bool = True,
    ):
        super().__init__(observation_size, action_size, squash=squash)
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.components, self.hidden = components, tuple(hidden)
        self.network = condition_network(observation_size, self.hidden, components * (1 + 2 * action_size))
        output = self.network[-1]
        assert isinstance(output, nn.Linear)
        # Components that start at one place would stay together for long.
        nn.init.normal_(output.bias[components : components * (1 + action_size)])

    def condition(self, observations: Tensor) -> Tensor:
        """Return logits, means and log sigmas (not yet within bounds) at ``[..., O]``, ``[..., K * (1 + 2 * A)]``."""
        return self.network(observations)

    @torch.no_grad()
    def draw_component(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a component at random, long ``[...]``."""
        logits = self._split(condition)[0]
        # The greatest of logit + Gumbel noise, which is -log of an exponential.
        noise = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - noise.log()).argmax(-1)

    def draw_raw(self, condition: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return a raw action u ``[..., A]``, without a graph, and log p(u) ``[...]`` at ``[..., K * (1 + 2 * A)]``."""
        with torch.no_grad():
            _, means, log_scales = self._split(condition)
            component = self.draw_component(condition, generator)
            mean, log_scale = _pick(means, component), _pick(log_scales, component)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            raw = torch.addcmul(mean, noise, log_scale.exp())
        return raw, self.raw_log_prob(raw, condition)

    def raw_log_prob(self, raw: Tensor, condition: Tensor) -> Tensor:
        """Return log p(u) ``[...]`` of raw actions ``[..., A]`` at conditions of the same batch shape."""
        logits, means, log_scales = self._split(condition)
        standard = (raw.unsqueeze(-2) - means) * log_scales.neg().exp()
        components = standard_normal_log_prob(standard) - log_scales.sum(-1)
        return (logits.log_softmax(-1) + components).logsumexp(-1)

    def raw_mode(self, condition: Tensor) -> Tensor:
        """Return the mean of the likeliest component ``[..., A]``: between two of them there may be a wall."""
        logits, means, _ = self._split(condition)
        return _pick(means, logits.argmax(-1))

    def signature(self) -> str:
        """Return one line that two mixtures share exactly when they can share weights and mean the same by them."""
        return f"{super().signature()} within {_MIXED_MEAN} and {_MIXED_LOG_SCALES}"

    def _split(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[..., K]``, means and log sigmas ``[..., K, A]``."""
        k, a = self.components, self.action_size
        logits, means, log_scales = condition.split([k, k * a, k * a], -1)
        low, high = _MIXED_LOG_SCALES
        middle, half = (low + high) / 2, (high - low) / 2
        # 0 stays near 0, with a slope near 1: components begin with sigma near 1.
        log_scales = middle + half * torch.tanh((log_scales - middle) / half)
        means = _MIXED_MEAN * torch.tanh(means / _MIXED_MEAN)
        return logits, means.unflatten(-1, (k, a)), log_scales.unflatten(-1, (k, a))


def _pick(values: Tensor, component: Tensor) -> Tensor:
    """``[..., A]`` of ``[..., K, A]``: the given component."""
    index = component[..., None, None].expand(component.shape + (1, values.shape[-1]))
    return values.gather(-2, index).squeeze(-2)
