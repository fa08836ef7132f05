"""The ELBO with an analytic KL a step and the sequential score-function gradient."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.inspect import TrackProvenance
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import get_provenance
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

__all__ = ["InexactKLError", "StepTerm", "StepwiseKL_ELBO"]

_SCORES = ("sequential", "full", "none")


class InexactKLError(ValueError):
    """A per-step KL would be biased: a model-parent of the step is sampled after it, and from it, in the guide."""


class StepTerm(NamedTuple):
    """One site's contribution to the ELBO, for diagnostics.

    Attributes:
        kind: ``"kl"`` (analytic), ``"log_ratio"`` (sampled log q - log p) or ``"log_likelihood"``.
        value: scaled and masked, nats: plate shape, with the steps last for a sequence. The ELBO is the sum of
            the likelihoods minus the sum of the others.
    """

    kind: str
    value: Tensor


class _Cost(NamedTuple):
    """A term of the ELBO (to be added), and the last latent site, by number, that may influence it."""

    term: StepTerm
    value: Tensor
    frames: frozenset[Any]
    reaches: int


class _Score(NamedTuple):
    """The log-probability of a guide site that needs a score-function gradient, and its costs within the site."""

    log_prob: Tensor
    within: Tensor | None
    frames: frozenset[Any]


class StepwiseKL_ELBO(ELBO):
    r"""An ELBO whose KL is analytic in each step, with a sequential score-function gradient.

    With latent steps :math:`z_t`, likelihood terms :math:`l_t` and
    :math:`KL_t = KL(q(z_t | z_{<t}) \| p(z_t | z_{<t}))`, a function of :math:`z_{<t}`, the bound is

    .. math:: L = E_q \sum_t (l_t - KL_t),

    eq. (5) of Fox et al. (2018), and its gradient is that of the surrogate

    .. math::
        \sum_t (l_t - KL_t)
        + \sum_t \log q(z_t | z_{<t})\, sg\Bigl[\sum_{s \ge t} l_s - \sum_{s > t} KL_s\Bigr],

    eq. (6) with the sums exchanged: one reverse cumulative sum, linear in the number of steps.

    It takes any Pyro model and guide. A latent site is one step, in the guide's order; a site whose distribution
    offers ``step_kl``, such as :class:`~pyrocontrol.models.Sequence`, contributes all its steps at once. Where no
    closed form is registered for the two distributions, or the two are scaled or masked differently, the sampled
    log-ratio takes the place of the KL; ``infer={"analytic_kl": False}`` at a guide site asks for it.
    Reparametrised steps carry pathwise gradients and no score, mixed steps both. Dimensions that are declared
    independent by plates are credited separately.

    The score term is left unscaled and unmasked: costs are scaled and masked already, and a score once more
    would make the gradient that of another objective.

    Args:
        num_particles: how many samples to average.
        max_plate_nesting: of model and guide; guessed if None.
        vectorize_particles: draw the particles in one batched run.
        score: ``"sequential"``; ``"full"`` multiplies every score with all costs (the plain score function: also
            unbiased, noisier); ``"none"`` drops the score term (biased for steps that are not reparametrised).

    Raises:
        InexactKLError: whether or not validation is on, when a KL would be biased (see :meth:`loss`).
        ValueError: for an unknown ``score``, or when the model has a latent site that the guide lacks.
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: int | None = None,
        vectorize_particles: bool = False,
        *,
        score: str = "sequential",
    ):
        if score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {score!r}")
        nesting = float("inf") if max_plate_nesting is None else max_plate_nesting
        super().__init__(
            num_particles=num_particles, max_plate_nesting=nesting, vectorize_particles=vectorize_particles
        )
        self.score = score
        self._legal_orders: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()

    # -- what Pyro calls ------------------------------------------------------------------------------------------

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Return an estimate of the negative ELBO, without gradients."""
        with torch.no_grad():
            return float(self._estimate(model, guide, args, kwargs)[0])

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the negative ELBO as a tensor whose gradient is the estimator's."""
        loss, surrogate, _ = self._estimate(model, guide, args, kwargs)
        return surrogate + (loss - surrogate).detach()

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return the negative ELBO and add its gradient to whatever leaves it depends on.

        Pyro's optimisers only see parameters that the param store knows: a warning says when there are none.
        """
        loss, surrogate, registered = self._estimate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            if not registered:
                warnings.warn(
                    "neither model nor guide has a pyro.param or pyro.module site: gradients are computed, but "
                    "SVI's optimiser will not see these parameters. Register the modules with pyro.module, or "
                    "use elbo(model, guide) as a module with a torch optimiser.",
                    stacklevel=2,
                )
            surrogate.backward(retain_graph=self.retain_graph)
        return float(loss)

    def step_terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> list[dict[str, StepTerm]]:
        """Return every site's terms of the ELBO, step by step, one dictionary a particle (one if vectorised)."""
        with torch.no_grad():
            return [
                {name: cost.term for name, cost in self._terms(*traces)[0].items()}
                for traces in self._get_traces(model, guide, args, kwargs)
            ]

    # -- the estimator --------------------------------------------------------------------------------------------

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        self._check_sites(model_trace, guide_trace)
        self._check_order(model_trace, guide_trace, model, guide, args, kwargs)
        return model_trace, guide_trace

    def _estimate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, bool]:
        """Return the loss, the surrogate loss, and whether the traces hold parameters."""
        if self.max_plate_nesting == float("inf") and (self.vectorize_particles and self.num_particles > 1):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        loss: Any = 0.0
        surrogate: Any = 0.0
        registered = False
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            costs, scores = self._terms(model_trace, guide_trace)
            for cost in costs.values():
                total = cost.value.sum()
                loss = loss - total.detach() / self.num_particles
                surrogate = surrogate - total / self.num_particles
            for log_prob, multiplier in self._credit(list(costs.values()), scores):
                surrogate = surrogate - (log_prob * multiplier.detach()).sum() / self.num_particles
            registered |= any(
                site["type"] == "param" for trace in (model_trace, guide_trace) for site in trace.nodes.values()
            )
        return torch.as_tensor(loss), torch.as_tensor(surrogate), registered

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> tuple[dict[str, _Cost], dict[int, _Score]]:
        """Return the costs by site and the scores by number of the guide's latent sites."""
        latent = _latent_names(guide_trace)
        number = {name: n for n, name in enumerate(latent)}
        costs: dict[str, _Cost] = {}
        scores: dict[int, _Score] = {}
        # A cost is reached by the latents before it in the guide, and by those before it in the model.
        model_trace.compute_log_prob(site_filter=lambda name, site: site["is_observed"])
        seen, reaches = -1, {}
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            reaches[name] = seen
            seen = max(seen, number.get(name, -1))
            if site["is_observed"]:
                value = site["log_prob"]
                costs[name] = _Cost(StepTerm("log_likelihood", value), value, _frames(site), reaches[name])
        for name in latent:
            guide_site = guide_trace.nodes[name]
            term, value, score, within = _latent_term(model_trace.nodes.get(name), guide_site)
            n = number[name]
            last = max(n - 1, reaches.get(name, -1))
            if term.kind != "kl" and within is None:
                last = max(last, n)  # a sampled log-ratio depends on the step itself
            costs[name] = _Cost(term, value, _frames(guide_site), last)
            if score is not None and score.requires_grad:
                scores[n] = _Score(score, within, _frames(guide_site))
        return costs, scores

    def _credit(self, costs: list[_Cost], scores: dict[int, _Score]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair the log-probability of every score with the costs that it is to be multiplied with."""
        if self.score == "none" or not scores:
            return
        by_reach: dict[int, list[_Cost]] = defaultdict(list)
        for cost in costs:
            by_reach[cost.reaches].append(cost)
        downstream: dict[frozenset[Any], Tensor] = {}

        def add(members: list[_Cost]) -> None:
            for cost in members:
                value = cost.value.detach()
                held = downstream.get(cost.frames)
                downstream[cost.frames] = value if held is None else held + value

        if self.score == "full":
            add(costs)
        for n in range(max(max(by_reach, default=0), max(scores)), -1, -1):
            if self.score == "sequential":
                add(by_reach[n])
            if n not in scores:
                continue
            log_prob, within, frames = scores[n]
            steps = within is not None
            multiplier = log_prob.new_zeros(())
            for cost_frames, value in downstream.items():
                multiplier = multiplier + _sum_to(value, cost_frames & frames)
            if steps and multiplier.dim():
                multiplier = multiplier.unsqueeze(-1)
            if steps and self.score == "sequential":
                assert within is not None
                multiplier = multiplier + _sum_to(within.detach(), frames, steps=True)
            yield _sum_to(log_prob, frames, steps=steps), multiplier

    # -- when the KL is exact -------------------------------------------------------------------------------------

    def _check_sites(self, model_trace: Trace, guide_trace: Trace) -> None:
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and name not in guide_trace.nodes:
                raise ValueError(f"the guide has no site {name!r}, which is latent in the model")
        for name in _latent_names(guide_trace):
            site = guide_trace.nodes[name]
            if name not in model_trace.nodes and not site["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"the model has no site {name!r}, which the guide samples "
                    '(infer={"is_auxiliary": True} if it is meant)'
                )

    def _check_order(
        self, model_trace: Trace, guide_trace: Trace, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> None:
        """Raise if a model-parent of an analytic step is a guide-descendant of it.

        Sites in one order in model and guide cannot break the condition. Where the orders differ, the
        dependencies are tracked once for every pair of orders.
        """
        guide_order = tuple(name for name in _latent_names(guide_trace) if name in model_trace.nodes)
        place = {name: n for n, name in enumerate(guide_order)}
        model_order = tuple(name for name in model_trace.nodes if name in place)
        if model_order == guide_order or (model_order, guide_order) in self._legal_orders:
            return
        parents, descendants = _dependencies(model, guide, args, kwargs)
        for name in guide_order:
            if not guide_trace.nodes[name]["infer"].get("analytic_kl", True):
                continue
            for parent in parents.get(name, ()):
                if parent in place and parent in descendants.get(name, ()):
                    raise InexactKLError(
                        f"the KL of {name!r} would be biased: in the model it depends on {parent!r}, which the guide "
                        f"samples after {name!r} and from it. Sample the guide's sites in the model's order, or set "
                        f'infer={{"analytic_kl": False}} at {name!r} in the guide to use its sampled log-ratio.'
                    )
        self._legal_orders.add((model_order, guide_order))


def _latent_names(guide_trace: Trace) -> list[str]:
    return [
        name for name, site in guide_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]
    ]


def _frames(site: dict[str, Any]) -> frozenset[Any]:
    return frozenset(frame for frame in site["cond_indep_stack"] if frame.vectorized)


def _sum_to(value: Tensor, frames: frozenset[Any], *, steps: bool = False) -> Tensor:
    """Sum over every dimension that is not of one of the frames (nor the steps, last if present)."""
    keep = {frame.dim for frame in frames}
    last = 1 if steps else 0
    for dim in range(-(value.dim() - last), 0):
        if dim not in keep and value.shape[dim - last] != 1:
            value = value.sum(dim - last, keepdim=True)
    return value


def _latent_term(
    model_site: dict[str, Any] | None, guide_site: dict[str, Any]
) -> tuple[StepTerm, Tensor, Tensor | None, Tensor | None]:
    """Return the diagnostic, the cost, the score, and a sequence's own downstream costs at each of its steps."""
    q, z = guide_site["fn"], guide_site["value"]
    scale, mask = guide_site["scale"], guide_site["mask"]
    p = None if model_site is None else model_site["fn"]
    sequence = hasattr(q, "step_kl") and hasattr(p, "step_kl")
    analytic = (
        model_site is not None
        and guide_site["infer"].get("analytic_kl", True)
        and _same(scale, model_site["scale"])
        and _same(mask, model_site["mask"])
    )
    parts: ScoreParts = q.step_score_parts(z) if sequence else q.score_parts(z)
    score = parts.score_function if isinstance(parts.score_function, Tensor) else None

    def finish(value: Tensor, by: dict[str, Any]) -> Tensor:
        scale, mask = by["scale"], by["mask"]
        if sequence:  # plates are to the left of the steps
            scale = scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale
            mask = mask.unsqueeze(-1) if isinstance(mask, Tensor) and mask.dim() else mask
        return scale_and_mask(value, scale, mask)

    if analytic:
        try:
            kl = finish(q.step_kl(p, z) if sequence else _kl(q, p), guide_site)
        except NotImplementedError:
            pass
        else:
            within = (kl.cumsum(-1) - kl.sum(-1, keepdim=True)) if sequence else None
            return StepTerm("kl", kl), -(kl.sum(-1) if sequence else kl), score, within
    # The gradient of log q at a value that was not reparametrised has expectation zero: leave it out.
    log_q = parts.log_prob.detach() + _zero_valued(parts.entropy_term)
    log_ratio = finish(log_q, guide_site)
    if model_site is not None:
        log_ratio = log_ratio - finish(p.step_log_prob(z) if sequence else p.log_prob(z), model_site)
    within = None
    if sequence:
        within = -(log_ratio.sum(-1, keepdim=True) - log_ratio.cumsum(-1) + log_ratio)
    return StepTerm("log_ratio", log_ratio), -(log_ratio.sum(-1) if sequence else log_ratio), score, within


def _zero_valued(term: Any) -> Any:
    """The term's gradient without its value."""
    return term - term.detach() if isinstance(term, Tensor) else 0.0


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _kl(q: Any, p: Any) -> Tensor:
    """The registered KL; for categoricals one whose gradient is finite where the guide has probability zero."""
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        held = q.probs > 0
        difference = torch.where(held, q.logits, 0.0) - torch.where(held, p.logits, 0.0)
        return (q.probs * difference).sum(-1)
    return kl_divergence(q, p)


def _dependencies(
    model: Any, guide: Any, args: Any, kwargs: Any
) -> tuple[dict[str, frozenset[str]], dict[str, set[str]]]:
    """Return each latent site's parents in the model and its descendants in the guide, by tracked provenance."""
    with torch.random.fork_rng(), pyro.validation_enabled(False), torch.no_grad(), TrackProvenance():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        with poutine.replay(trace=guide_trace):
            model_trace = poutine.trace(model).get_trace(*args, **kwargs)
        parents = _parents(model_trace)
        above = _parents(guide_trace)
    descendants: dict[str, set[str]] = {name: set() for name in above}
    for name in _latent_names(guide_trace):  # in order, so a site's ancestors are complete when it is reached
        ancestors = set(above[name])
        for ancestor, below in descendants.items():
            if below & above[name]:
                ancestors.add(ancestor)
        for ancestor in ancestors:
            descendants.setdefault(ancestor, set()).add(name)
    return parents, descendants


def _parents(trace: Trace) -> dict[str, frozenset[str]]:
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            found[name] = get_provenance(site["fn"].log_prob(site["value"])) - {name}
    return found
