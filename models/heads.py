"""Action distributions: what stands between the last layer of a policy and the action that it takes.

A head is a module from features ``[..., F]`` to a distribution of actions in their stored form, batch shape ``[...]``:
a long number for `Discrete`, a long vector ``[A]`` for `MultiDiscrete`, a vector of floats ``[A]`` for `Box`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import transforms

from .._saved import Saved

__all__ = [
    "AdditiveHead",
    "CategoricalHead",
    "DeterministicHead",
    "GaussianHead",
    "Head",
    "MixtureHead",
    "MultiCategoricalHead",
    "SquashedHead",
    "action_features",
    "action_features_size",
    "make_head",
]

# Categories that do not exist: a finite number, since the gradient of minus infinity is NaN.
_NEVER = -1e9
# What softplus makes 1 of.
_UNIT = math.log(math.e - 1)
# Greatest distance from the middle of its range, in half ranges, at which the density of a squashed action is asked.
_EDGE = 1 - 1e-6


class Head(Saved, nn.Module):
    """A distribution of actions given features.

    Args:
        features: F, width of the features.
    """

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the distribution at ``[..., F]``, batch shape ``[...]``."""
        raise NotImplementedError

    def mode(self, distribution: TorchDistribution) -> Tensor:
        """Return the action of greedy prediction, ``[...]`` or ``[..., A]``."""
        return distribution.mode

    def draw(self, distribution: TorchDistribution) -> Tensor:
        """Return an action at random, ``[...]`` or ``[..., A]``, without a graph."""
        return distribution.sample()

    def settings(self) -> dict[str, Any]:
        """What two heads of a kind share exactly when they can share weights, the sizes apart."""
        return {}

    def signature(self) -> str:
        """Return the kind of the head and its settings in a line."""
        given = ", ".join(f"{name}={value}" for name, value in self.settings().items())
        return f"{type(self).__name__}({given})"


class CategoricalHead(Head):
    """One of n actions, by a softmax."""

    def __init__(self, features: int, n: int):
        super().__init__(features)
        self.logits = nn.Linear(features, n)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return a categorical distribution, event shape ``()``."""
        return dist.Categorical(logits=self.logits(features))


class MultiCategoricalHead(Head):
    """A vector of independent choices of different sizes ``nvec`` ``[A]``, by a softmax each."""

    index: Tensor

    def __init__(self, features: int, nvec: np.ndarray):
        super().__init__(features)
        total, most = int(nvec.sum()), int(nvec.max())
        self.logits = nn.Linear(features, total)
        # Where each choice's logits are, [A, most]; what it does not have stands one past the last.
        first = np.cumsum(nvec) - nvec
        step = np.arange(most)
        index = np.where(step < nvec[:, None], first[:, None] + step, total)
        self.register_buffer("index", torch.as_tensor(index), persistent=False)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return independent categorical distributions, event shape ``(A,)``."""
        logits = F.pad(self.logits(features), (0, 1), value=_NEVER)[..., self.index]
        return dist.Categorical(logits=logits).to_event(1)


class GaussianHead(Head):
    """Independent normals, N(mu(f), sigma^2); sigma a function of the features, or one for all of them (`shared`).

    sigma is ``min_scale + softplus``, and 1 or so at first: demonstrations without noise would have it vanish, and the
    density grow without bound.
    """

    def __init__(self, features: int, size: int, *, shared: bool = False, min_scale: float = 1e-3):
        super().__init__(features)
        self.min_scale = _positive(min_scale)
        self.loc = nn.Linear(features, size)
        self.scale: nn.Linear | nn.Parameter
        self.scale = nn.Parameter(torch.zeros(size)) if shared else nn.Linear(features, size)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return a diagonal normal, event shape ``(A,)``."""
        loc = self.loc(features)
        return dist.Normal(loc, self.scales(features).expand_as(loc)).to_event(1)

    def evaluator(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a map from features to mean and deviation, both layers in one product: for walks of many small steps.

        It holds the parameters as they are now.
        """
        layer = self.scale
        if not isinstance(layer, nn.Linear):
            return lambda features: (self.loc(features), self.scales(features))
        weight = torch.cat([self.loc.weight, layer.weight])
        bias = torch.cat([self.loc.bias, layer.bias + _UNIT])
        size = len(layer.bias)

        def evaluate(features: Tensor) -> tuple[Tensor, Tensor]:
            mean, raw = F.linear(features, weight, bias).split(size, -1)
            return mean, F.softplus(raw).add(self.min_scale)

        return evaluate

    def scales(self, features: Tensor) -> Tensor:
        """Return sigma(f) ``[..., A]``, or ``[A]`` where it is shared."""
        return _scale(self.scale(features) if isinstance(self.scale, nn.Linear) else self.scale, self.min_scale)

    def settings(self) -> dict[str, Any]:
        """What two heads of a kind share exactly when they can share weights, the sizes apart."""
        return {"shared": isinstance(self.scale, nn.Parameter), "min_scale": self.min_scale}


class AdditiveHead(GaussianHead):
    """Independent normals whose mean is linear in all features, and whose deviation sees the first ``common`` alone.

    Of the features of an :class:`~pyrocontrol.models.Additive` network these are the functions of time.

    Args:
        features: F, width of the features.
        size: A.
        common: how many features the deviation sees.
        apart: whether of the A features after these each has a part in the number of its own place alone.
        min_scale: least deviation.
    """

    mask: Tensor

    def __init__(self, features: int, size: int, *, common: int, apart: bool = False, min_scale: float = 1e-3):
        super().__init__(features, size, min_scale=min_scale)
        if not 1 <= common <= features - size * apart:
            raise ValueError(f"common must leave room among the {features} features, got {common}")
        self.common, self.apart = common, apart
        self.scale = nn.Linear(common, size)
        mask = torch.ones(size, features)
        if apart:
            mask[:, common : common + size] = torch.eye(size)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return a diagonal normal, event shape ``(A,)``."""
        mean, scale = self.evaluator()(features)
        return dist.Normal(mean, scale).to_event(1)

    def evaluator(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a map from features to mean and deviation."""
        weight = self.loc.weight * self.mask
        return lambda features: (F.linear(features, weight, self.loc.bias), self.scales(features))

    def joint(self) -> tuple[Tensor, Tensor]:
        """Return weights ``[2 A, F]`` and biases ``[2 A]`` of the mean and of what softplus makes the deviation of."""
        scale: Any = self.scale
        wide = F.pad(scale.weight, (0, self.features - self.common))
        return torch.cat([self.loc.weight * self.mask, wide]), torch.cat([self.loc.bias, scale.bias + _UNIT])

    def scales(self, features: Tensor) -> Tensor:
        """Return sigma ``[..., A]`` of the common features."""
        return super().scales(features[..., : self.common])

    def settings(self) -> dict[str, Any]:
        """What two heads of a kind share exactly when they can share weights, the sizes apart."""
        return {"common": self.common, "apart": self.apart, "min_scale": self.min_scale}


class DeterministicHead(Head):
    """The action mu(f) itself; a normal of variance 1 around it, so that maximum likelihood is least squares."""

    def __init__(self, features: int, size: int):
        super().__init__(features)
        self.loc = nn.Linear(features, size)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return a normal of unit variance, event shape ``(A,)``."""
        loc = self.loc(features)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def draw(self, distribution: TorchDistribution) -> Tensor:
        """Return the mean: the variance stands for the loss, not for noise."""
        return distribution.mean.detach()


class MixtureHead(Head):
    """A mixture of diagonal normals, ``sum_k w_k(f) N(mu_k(f), sigma_k(f)^2)``."""

    def __init__(self, features: int, size: int, *, components: int = 5, min_scale: float = 1e-3):
        super().__init__(features)
        self.components, self.size, self.min_scale = components, size, _positive(min_scale)
        self.output = nn.Linear(features, components * (1 + 2 * size))
        # Components that start at one place would stay together for long.
        nn.init.normal_(self.output.bias[components : components * (1 + size)])

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the mixture, event shape ``(A,)``."""
        k, a = self.components, self.size
        logits, loc, raw = self.output(features).split([k, k * a, k * a], -1)
        shape = features.shape[:-1] + (k, a)
        parts = dist.Normal(loc.reshape(shape), _scale(raw.reshape(shape), self.min_scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    def mode(self, distribution: TorchDistribution) -> Tensor:
        """Return the mean of the likeliest component, not of all of them: between two ways there may be a wall."""
        assert isinstance(distribution, dist.MixtureSameFamily)
        means = distribution.component_distribution.mean
        likeliest = distribution.mixture_distribution.probs.argmax(-1)
        return means.gather(-2, likeliest[..., None, None].expand(means.shape[:-2] + (1, means.shape[-1]))).squeeze(-2)

    def settings(self) -> dict[str, Any]:
        """What two heads of a kind share exactly when they can share weights, the sizes apart."""
        return {"components": self.components, "min_scale": self.min_scale}


class SquashedHead(Head):
    """Normals squashed into finite bounds, ``low + (high - low) (1 + tanh u) / 2`` with u ~ N(mu(f), sigma(f)^2).

    Actions on the bounds, whose density would be infinite, are taken for actions a little inside of them.
    """

    middle: Tensor
    reach: Tensor

    def __init__(self, features: int, low: np.ndarray, high: np.ndarray, *, min_scale: float = 1e-3):
        super().__init__(features)
        self.gaussian = GaussianHead(features, len(low), min_scale=min_scale)
        low, high = low.astype(np.float64), high.astype(np.float64)
        self.low, self.high = low.tolist(), high.tolist()
        # Kept in the precision of the parameters, which the buffers follow.
        dtype = torch.get_default_dtype()
        self.register_buffer("middle", torch.as_tensor((low + high) / 2, dtype=dtype), persistent=False)
        self.register_buffer("reach", torch.as_tensor((high - low) / 2, dtype=dtype), persistent=False)

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the squashed normal, event shape ``(A,)``."""
        squash = [_ClampedTanh(cache_size=1), transforms.AffineTransform(self.middle, self.reach, cache_size=1)]
        return dist.TransformedDistribution(self.gaussian(features), squash)

    def mode(self, distribution: TorchDistribution) -> Tensor:
        """Return the squashed mean of the normal, the median of every number."""
        assert isinstance(distribution, dist.TransformedDistribution)
        action = distribution.base_dist.mean
        for transform in distribution.transforms:
            action = transform(action)
        return action

    def settings(self) -> dict[str, Any]:
        """What two heads of a kind share exactly when they can share weights, the sizes apart."""
        return {"low": self.low, "high": self.high, "min_scale": self.gaussian.min_scale}


class _ClampedTanh(transforms.TanhTransform):
    """tanh, whose inverse takes what is on the bounds, or beyond by rounding, for what is a little inside."""

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.atanh(y.clamp(-_EDGE, _EDGE))


def _positive(min_scale: float) -> float:
    if not 0 < min_scale < math.inf:
        raise ValueError(f"min_scale must be positive, got {min_scale}")
    return min_scale


def _scale(raw: Tensor, least: float) -> Tensor:
    return least + F.softplus(raw + _UNIT)


def make_head(head: str | Head, features: int, action_space: gymnasium.Space) -> Head:
    """Return the head of a policy.

    Args:
        head: a name, or a head, which is returned if it takes these features.

            ``"auto"``: ``"categorical"`` for `Discrete` and `MultiDiscrete`, ``"gaussian-shared"`` for `Box`;
            ``"gaussian"``, ``"gaussian-shared"``: the standard deviation depends on the features, or does not;
            ``"deterministic"``: least squares; ``"mixture"``: of five normals; ``"squashed"``: a normal through tanh,
            for a `Box` with finite bounds.
        features: F, width of the features.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box`, whose actions are flattened.

    Raises:
        TypeError: for another action space.
        ValueError: for an unknown name, a head that is not for this space, bounds that are not finite where they have
            to be, or a head of another number of features.
    """
    if isinstance(head, Head):
        if head.features != features:
            raise ValueError(f"the head takes {head.features} features, the policy gives {features}")
        return head
    makers = _makers(features, action_space)
    if head == "auto":
        return next(iter(makers.values()))()
    if head not in makers:
        raise ValueError(f"a head for {action_space} must be one of auto, {', '.join(makers)}, got {head!r}")
    return makers[head]()


def _makers(features: int, action_space: gymnasium.Space) -> dict[str, Callable[[], Head]]:
    """The heads that there are for a space, the usual one first."""
    match action_space:
        case spaces.Discrete():
            return {"categorical": lambda: CategoricalHead(features, int(action_space.n))}
        case spaces.MultiDiscrete() if action_space.nvec.ndim == 1:
            return {"categorical": lambda: MultiCategoricalHead(features, action_space.nvec.astype(np.int64))}
        case spaces.Box() if np.issubdtype(action_space.dtype, np.floating):
            size = math.prod(action_space.shape)
            return {
                "gaussian-shared": lambda: GaussianHead(features, size, shared=True),
                "gaussian": lambda: GaussianHead(features, size),
                "deterministic": lambda: DeterministicHead(features, size),
                "mixture": lambda: MixtureHead(features, size),
                "squashed": lambda: SquashedHead(features, *_bounds(action_space)),
            }
    raise TypeError(f"a policy acts in Discrete, MultiDiscrete (one dimension) or Box of floats, not {action_space}")


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = space.low.ravel(), space.high.ravel()
    with np.errstate(over="ignore"):
        finite = np.isfinite(high.astype(np.float64) - low)
    if not (finite & (low < high)).all():
        raise ValueError(f"a squashed head needs finite bounds, and the upper above the lower; the space is {space}")
    return low, high


# -- actions as inputs --------------------------------------------------------------------------------------------


def action_features_size(action_space: gymnasium.Space) -> int:
    """Return how many numbers `action_features` makes of an action."""
    match action_space:
        case spaces.Discrete():
            return int(action_space.n)
        case spaces.MultiDiscrete():
            return int(action_space.nvec.sum())
    return math.prod(action_space.shape or ())


def action_features(action_space: gymnasium.Space, actions: Tensor, dtype: torch.dtype) -> Tensor:
    """Return stored actions as numbers for a network, ``[..., X]``: one-hot where they are choices; the null is 0.

    Args:
        action_space: `Discrete`, `MultiDiscrete` or `Box`.
        actions: ``[...]`` or ``[..., A]``.
        dtype: of the result.
    """
    match action_space:
        case spaces.Discrete():
            n = int(action_space.n)
            return F.one_hot(actions, n + 1)[..., :n].to(dtype)
        case spaces.MultiDiscrete():
            columns = zip(actions.unbind(-1), action_space.nvec.tolist(), strict=True)
            return torch.cat([F.one_hot(column, n) for column, n in columns], -1).to(dtype)
    return actions.to(dtype)
