r"""The KL of one latent site weighed: beta-VAE, warm-up, free bits.

With KL_d the KL of latent dimension d, a mean over the rows of a batch, an ELBO of B rows becomes

.. math:: \log p(x | z) - \beta_t B \sum_d \max(KL_d, \delta),  \qquad  \beta_t = \beta \min(1, t / T),

after t updates. beta is that of Higgins et al. (2017); the warm-up over T updates that of Bowman et al. (2016) and
Sonderby et al. (2016); free bits (delta) those of Kingma et al. (2016), for posteriors that collapse to the prior.

Shapes: B rows of a batch, D latent dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Independent

from .stepwise import closed_form

__all__ = ["KLWeight"]

Sites = Callable[..., Any]


class KLWeight(nn.Module, ELBO):
    """An ELBO in which the KL of one latent site is weighed; also a module, whose state is the count of updates.

        elbo = KLWeight("z", StepwiseKL_ELBO(), beta=0.5, warmup=1000, free_bits=0.1)
        svi = SVI(skills.model, guide, optimiser, elbo)

    Both log q and log p of the site are scaled by beta_t, so that it serves analytic and sampled KLs, reparametrised
    and discrete sites. Free bits add ``beta_t sum_d relu(delta - KL_d)`` a row to the loss, by a factor in the model
    called ``NAME_free_bits``. The gradient of a dimension below delta is then 0 where the ELBO's KL is analytic, and
    0 in expectation where it is sampled.

    Updates are the calls of ``loss_and_grads``, and those of ``elbo(model, guide)`` with gradients, however many
    particles they draw; evaluation does not count. `fit` saves the count.

    Args:
        site: name of the latent site, in model and guide.
        elbo: the ELBO that is computed with the weighed site; weights of several sites may nest.
        beta: the weight in the end.
        warmup: T, updates until the weight is beta; the first update has the weight 0. 0 for no warm-up.
        free_bits: delta, nats a latent dimension. The dimensions are those of the site's event, any other is averaged;
            a site without an event, such as a `Categorical`, has one.

    Raises:
        TypeError: if ``elbo`` is no ELBO.
        ValueError: if numbers are negative or not finite; when model or guide has no such latent site, or free bits
            are asked of one without a closed form of its KL.
    """

    updates: Tensor
    elbo: Any

    def __init__(self, site: str, elbo: ELBO, *, beta: float = 1.0, warmup: int = 0, free_bits: float = 0.0):
        if not isinstance(elbo, ELBO):
            raise TypeError(f"elbo must be an ELBO such as StepwiseKL_ELBO(), got {type(elbo).__name__}")
        for name, value in (("beta", beta), ("warmup", warmup), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if warmup != int(warmup):
            raise ValueError(f"warmup must be a whole number of updates, got {warmup}")
        nn.Module.__init__(self)
        ELBO.__init__(self, num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles)
        self.site, self.elbo = site, elbo
        self.beta, self.warmup, self.free_bits = float(beta), int(warmup), float(free_bits)
        # Read by `fit`, which refuses to go on from a checkpoint of another objective.
        self.objective = f"{type(elbo).__name__}({_options(elbo)})"
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._weighed: tuple[Sites, Sites, tuple[Sites, Sites]] | None = None

    def __getstate__(self) -> dict[str, Any]:  # which model and guide it weighed, and tensors of the last step
        return self.__dict__ | {"_weighed": None}

    def weight(self) -> float | Tensor:
        """Return beta_t, as a tensor during a warm-up, so that no step waits for a GPU."""
        if not self.warmup:
            return self.beta
        return self.beta * (self.updates.to(torch.get_default_dtype()) / self.warmup).clamp(max=1.0)

    # -- what Pyro calls ------------------------------------------------------------------------------------------

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Return the loss of a model and a guide as a module."""
        return ELBOModule(model, guide, self)

    def loss(self, model: Sites, guide: Sites, *args: Any, **kwargs: Any) -> float:
        """Return an estimate of the loss, without gradients; the update count stays."""
        return self.elbo.loss(*self._sites(model, guide), *args, **kwargs)

    def differentiable_loss(self, model: Sites, guide: Sites, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor; an update, if gradients are enabled."""
        loss = self.elbo.differentiable_loss(*self._sites(model, guide), *args, **kwargs)
        if torch.is_grad_enabled():
            self.updates.add_(1)
        return loss

    def loss_and_grads(self, model: Sites, guide: Sites, *args: Any, **kwargs: Any) -> float | Tensor:
        """Return the loss and add its gradient to the parameters' own: an update."""
        loss = self.elbo.loss_and_grads(*self._sites(model, guide), *args, **kwargs)
        self.updates.add_(1)
        return loss

    def _get_trace(self, model: Sites, guide: Sites, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return self.elbo._get_trace(*self._sites(model, guide), args, kwargs)

    # -- model and guide with the weight --------------------------------------------------------------------------

    def _sites(self, model: Sites, guide: Sites) -> tuple[Sites, Sites]:
        """The model and the guide with the weight; the same ones for the same two, as some ELBOs remember them."""
        if self._weighed is None or self._weighed[:2] != (model, guide):
            # What the guide's run finds, the model's run needs.
            seen: dict[str, Any] = {}
            wrapped = functools.partial(self._model, model, seen), functools.partial(self._guide, guide, seen)
            self._weighed = model, guide, wrapped
        return self._weighed[2]

    def _guide(self, guide: Sites, seen: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen["weight"] = self.weight()
        with _Weighed(self.site, seen["weight"]) as weighed:
            result = guide(*args, **kwargs)
        seen["q"] = weighed.required("guide")
        return result

    def _model(self, model: Sites, seen: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with _Weighed(self.site, seen["weight"], self.free_bits, seen["q"]) as weighed:
            result = model(*args, **kwargs)
        weighed.required("model")
        return result


class _Weighed(Messenger):
    """Scales a latent site, and before it adds the factor of its free bits, where q is given."""

    def __init__(self, site: str, weight: float | Tensor, free_bits: float = 0.0, q: Any = None) -> None:
        super().__init__()
        self.site, self.weight, self.free_bits, self.q = site, weight, free_bits, q
        self.latent: dict[str, Any] = {}

    def required(self, where: str) -> Any:
        """The distribution of the site.

        Raises:
            ValueError: if there was no such latent site.
        """
        if self.site not in self.latent:
            there = ", ".join(self.latent) or "none"
            raise ValueError(f"the {where} has no latent site {self.site!r} to weigh; there are: {there}")
        return self.latent[self.site]

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        self.latent[msg["name"]] = msg["fn"]
        if msg["name"] != self.site:
            return
        if self.q is not None and self.free_bits:
            # Inside the site's own plates, and before it: its value has no influence on the factor.
            lacking = self._lacking(msg["fn"], msg["mask"])
            pyro.factor(f"{self.site}_free_bits", -self.weight * lacking)
        if isinstance(self.weight, Tensor) or self.weight != 1:
            # The one tensor in model and guide, where nothing else scales: the two need not be compared then.
            plain = not isinstance(msg["scale"], Tensor) and msg["scale"] == 1
            msg["scale"] = self.weight if plain else msg["scale"] * self.weight

    def _lacking(self, p: Any, mask: Any) -> Tensor:
        """``sum_d relu(delta - KL_d)`` for every row, of the batch shape of the site."""
        kl, masks = _kl_by_dimension(self.site, self.q, p)
        exists = torch.ones(kl.shape[:-1], dtype=torch.bool, device=kl.device)
        for each in (mask, *masks):
            if each is not None:
                exists = exists & each
        kl = torch.where(exists.unsqueeze(-1), kl, 0.0)
        mean = kl.reshape(-1, kl.shape[-1]).sum(0) / exists.sum().clamp(min=1)
        return torch.where(exists, (self.free_bits - mean).relu().sum(), 0.0)


def _kl_by_dimension(site: str, q: Any, p: Any) -> tuple[Tensor, list[Any]]:
    """KL(q || p) by latent dimension, ``[..., D]``, and the masks of the two."""
    masks = []
    names = f"{q} and {p}"
    while isinstance(q, MaskedDistribution):
        masks.append(q._mask)
        q = q.base_dist
    while isinstance(p, MaskedDistribution):
        masks.append(p._mask)
        p = p.base_dist
    dims = 0
    if isinstance(q, Independent) and isinstance(p, Independent):
        if q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
            dims, q, p = q.reinterpreted_batch_ndims, q.base_dist, p.base_dist
    try:
        kl = closed_form(q, p)
    except NotImplementedError:
        raise ValueError(f"free bits need the KL of {site!r} in closed form, there is none for {names}") from None
    return (kl.flatten(-dims) if dims else kl.unsqueeze(-1)), masks


def _options(elbo: ELBO) -> str:
    """The settings of an ELBO that change what it computes."""
    aside = ("training", "max_plate_nesting", "strict_enumeration_warning", "ignore_jit_warnings")
    found = {k: v for k, v in vars(elbo).items() if isinstance(v, bool | int | float | str)}
    return ", ".join(f"{k}={v}" for k, v in found.items() if k not in aside and not k.startswith("_"))
