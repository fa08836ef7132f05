"""Policies whose flow is one of Zuko's, https://zuko.readthedocs.io: splines, for one.

Shapes: ``...`` a batch of any shape, O observation numbers, A action numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from ...models.networks import mlp
from .action_policy import LatentPolicy

__all__ = ["ZukoPolicy"]

# Name of the flow, and whether it is made of couplings, which are as fast in both directions; an autoregressive flow
# draws in one pass and is inverted in A.
_TRANSFORMS = {
    "spline": ("NSF", True),
    "spline-autoregressive": ("NSF", False),
    "affine-autoregressive": ("MAF", False),
}


class ZukoPolicy(LatentPolicy):
    """pi(a | s) by a flow of Zuko's, ``a = tanh u(h; s), h ~ N(0, I)``. Needs the package zuko.

    The flow maps noise to actions in its fast direction, so that drawing is one pass whatever the transformation.

    Args:
        observation_size: O.
        action_size: A.
        transform: ``"spline"``: rational-quadratic splines (C. Durkan et al. 2019) on [-5, 5], the identity outside, in
            couplings; ``"spline-autoregressive"``: the same, each number depending on all before it;
            ``"affine-autoregressive"``: affine maps like that (G. Papamakarios et al. 2017).
        layers: transformations, the order of the numbers reversed from one to the next.
        bins: pieces of a spline.
        hidden: sizes of the ReLU layers that embed the observation.
        units: sizes of the hidden layers of each transformation's network.
        squash: whether actions are squashed into (-1, 1)^A by tanh.

    Raises:
        ImportError: without zuko.
        ValueError: for sizes that are not positive, or an unknown transformation.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        transform: str = "spline",
        layers: int = 2,
        bins: int = 8,
        hidden: Sequence[int] = (128, 128),
        units: Sequence[int] = (32,),
        squash: bool = True,
    ):
        super().__init__(observation_size, action_size, squash=squash)
        if transform not in _TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}, got {transform!r}")
        if layers < 1 or bins < 2:
            raise ValueError(f"there must be 1 layer and 2 bins at least, got {layers} and {bins}")
        self.transform, self.layers, self.bins = transform, layers, bins
        self.hidden, self.units = tuple(hidden), tuple(units)
        self.embedding = mlp(observation_size, self.hidden, "relu")
        name, coupling = _TRANSFORMS[transform]
        options: dict[str, Any] = {"bins": bins} if name == "NSF" else {}
        if action_size > 1:  # a single number has no other to depend on
            options["passes"] = 2 if coupling else action_size
        flow = getattr(_zuko().flows, name)(
            features=action_size,
            context=self.hidden[-1] if self.hidden else observation_size,
            transforms=layers,
            hidden_features=self.units,
            **options,
        )
        self.flow = flow.transform

    def condition(self, observations: Tensor) -> Tensor:
        """Return the embedding of observations ``[..., O]``."""
        return self.embedding(observations)

    def push(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw actions u(h; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        if not latents.numel():  # Zuko's networks have no answer to a batch of no rows
            return latents, latents.sum(-1)
        return self.flow(condition).call_and_ladj(latents)

    def pull(self, raw: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents h(u; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        if not raw.numel():
            return raw, raw.sum(-1)
        latents, log_determinant = self.flow(condition).inv.call_and_ladj(raw)
        return latents, -log_determinant


def _zuko() -> Any:
    """Import zuko, and undo that it turns off the validation of all distributions."""
    validate = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ImportError("the ZukoPolicy needs the package zuko: pip install zuko") from error
    finally:
        Distribution.set_default_validate_args(validate)
    return zuko
