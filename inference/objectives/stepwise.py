"""The ELBO with an analytic KL a step and the sequential score-function gradient."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, OneHotCategorical, kl_divergence

from .dependencies import Dependencies, Frame, dependencies, frames_of, latent_names

__all__ = ["BalancedKL", "InexactKLError", "StepTerm", "StepwiseKL_ELBO"]

Divergence = Callable[[Any, Any], Tensor]
"""KL(q || p) of two distributions, of their batch shape; a NotImplementedError where there is no closed form."""

_SCORES = ("sequential", "full", "none")


class InexactKLError(ValueError):
    """A per-step KL would be biased: a model-parent of the step is sampled after it, and from it, in the guide."""


class StepTerm(NamedTuple):
    """One site's contribution to the ELBO, for diagnostics.

    Attributes:
        kind: ``"kl"`` (analytic), ``"log_ratio"`` (sampled log q - log p) or ``"log_likelihood"``.
        value: scaled and masked, nats: plate shape, with the steps last for a sequence. The ELBO is the sum of
            the likelihoods minus the sum of the others. An :class:`~pyrocontrol.models.Emission` has steps too.
    """

    kind: str
    value: Tensor


class _Cost(NamedTuple):
    """A term of the ELBO (to be added), and which latent sites, by number, may influence it.

    Those up to ``reaches`` may, all of it but what stands in ``apart``: by number of a site, the part of the cost that
    the site cannot influence; where the site is a sequence, that each of its steps cannot, with the steps last.
    """

    term: StepTerm
    value: Tensor
    frames: frozenset[Frame]
    reaches: int
    apart: dict[int, Tensor]


class _Score(NamedTuple):
    """The log-probability of a guide site that needs a score-function gradient, step by step for a sequence."""

    log_prob: Tensor
    frames: frozenset[Frame]
    steps: bool


_Kept = dict[tuple[int, str], frozenset[Frame]]
"""By number of a score and name of a cost: the plates whose rows are apart, where they are fewer than both share."""


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

    An observed site is credited to all latent sites before it. An :class:`~pyrocontrol.models.Emission`, whose parts
    belong to the steps of a sequence, is credited part by part, to the steps up to the part's own; as a whole if the
    sequence is not the last latent site before it, through which later steps might influence it after all.

    Reparametrised steps carry pathwise gradients and no score, mixed steps both. Rows of a plate that model and guide
    share are credited separately, unless a row can influence another's cost after all: through a site outside the
    plate, or a sum over it. That is found by tracked dependencies and by changing a row, once for every structure of a
    model and guide; such costs are credited across the plate. (Pyro's own ELBOs take the plate's word for it.)

    Vectorised particles are baselines for each other: from what multiplies a particle's score, the mean over the other
    particles is subtracted (Kool et al., 2019). That is unbiased, and a constant added to a log-likelihood, such as
    another unit of what is observed, no longer changes the noise of the gradient.

    The score term is left unscaled and unmasked: costs are scaled and masked already, and a score once more
    would make the gradient that of another objective.

    A KL is exact where no parent of the step in the model is a descendant of it in the guide. If model and guide
    sample their sites in one order, that holds. If not, their dependencies are found once for every order of the
    sites of a model and guide: for a site of few values by running both again with every other value, for the others
    by tracking through tensors. What leaves tensors (Python numbers, control flow, shapes, text, ``vmap``) then counts
    as a dependency of all that follows. A dependency that is not there in these runs is not seen; a refusal that is
    wrong is silenced by ``infer={"exact_kl_checked": True}`` at the guide's site.

    Args:
        num_particles: how many samples to average.
        max_plate_nesting: of model and guide; guessed if None.
        vectorize_particles: draw the particles in one batched run, where they are baselines for each other.
        score: ``"sequential"``; ``"full"`` multiplies every score with all costs (the plain score function: also
            unbiased, noisier); ``"none"`` drops the score term (biased for steps that are not reparametrised).
        kl: the divergence of two distributions q and p, nats, of their batch shape. None for the registered one;
            :class:`BalancedKL` weighs its two gradients.
        free_nats: a KL costs at least so much, on average over a site's rows and steps (those after an end count as 0);
            less has no gradient (D. Hafner et al., "Learning Latent Dynamics for Planning from Pixels", 2019; on the
            mean, as their code has it). The loss is then no bound. For sites that are reparametrised, and neither
            scaled nor masked.

    Raises:
        InexactKLError: whether or not validation is on, when a KL would be biased.
        ValueError: for an unknown ``score``, when model and guide do not match: a latent site of one that the
            other lacks or observes; or when an emission goes along a site that is not there, or has other steps; for
            free nats that are negative, or of a site that needs the score function, is scaled or masked; where a ``kl``
        returns another shape, or it or free nats have no analytic KL to apply to, unless the guide's site asks for the
        sampled log-ratio.
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: int | None = None,
        vectorize_particles: bool = False,
        *,
        score: str = "sequential",
        kl: Divergence | None = None,
        free_nats: float = 0.0,
    ):
        if score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {score!r}")
        if not 0 <= free_nats < math.inf:
            raise ValueError(f"free_nats must be at least 0 and finite, got {free_nats}")
        nesting = float("inf") if max_plate_nesting is None else max_plate_nesting
        super().__init__(
            num_particles=num_particles, max_plate_nesting=nesting, vectorize_particles=vectorize_particles
        )
        self.score, self.kl, self.free_nats = score, kl, free_nats
        self._seen: tuple[Any, Any] | None = None
        self._legal: set[tuple[Any, ...]] = set()  # of the model and guide seen last, as are those kept
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    def __getstate__(self) -> dict[str, Any]:  # which model and guide were checked: functions, perhaps
        return self.__dict__ | {"_seen": None, "_legal": set(), "_kept": {}}

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
    ) -> float | Tensor:
        """Return the negative ELBO and add its gradient to whatever leaves it depends on.

        The loss is a float on a CPU and elsewhere a tensor without a graph, so that no step waits for the device.

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
        return float(loss) if loss.device.type == "cpu" else loss

    def step_terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> list[dict[str, StepTerm]]:
        """Return every site's terms of the ELBO, step by step, one dictionary a particle (one if vectorised)."""
        with torch.no_grad():
            return [
                {name: cost.term for name, cost in costs.items()}
                for costs, *_ in self._particles(model, guide, args, kwargs)
            ]

    # -- the estimator --------------------------------------------------------------------------------------------

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, GuideMessenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = unwrapped.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        _check_sites(model_trace, guide_trace)
        return model_trace, guide_trace

    def _particles(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Iterator[tuple[dict[str, _Cost], dict[int, _Score], bool, _Kept]]:
        """Yield each particle's costs, its scores, whether its traces hold parameters, and what plates keep apart."""
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            costs, scores = self._terms(model_trace, guide_trace)
            analytic = [name for name, cost in costs.items() if cost.term.kind == "kl"]
            # What replays or conditions them, they depend alike.
            pair = poutine.unwrap(model), poutine.unwrap(guide)
            if self._seen != pair:
                self._seen, self._legal, self._kept = pair, set(), {}
            self._check_order(analytic, model_trace, guide_trace, model, guide, args, kwargs)
            kept = self._plates(costs, scores, guide_trace, model, guide, args, kwargs)
            registered = any(
                site["type"] == "param" for trace in (model_trace, guide_trace) for site in trace.nodes.values()
            )
            yield costs, scores, registered, kept

    def _estimate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, bool]:
        """Return the loss, the surrogate loss, and whether the traces hold parameters."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        registered = False
        for costs, scores, holds, kept in self._particles(model, guide, args, kwargs):
            registered |= holds
            for cost in costs.values():
                total = cost.value.sum()
                loss = loss - total.detach() / self.num_particles
                surrogate = surrogate - total / self.num_particles
            for log_prob, multiplier in self._credit(costs, scores, kept):
                surrogate = surrogate - (log_prob * multiplier.detach()).sum() / self.num_particles
        return torch.as_tensor(loss), torch.as_tensor(surrogate), registered

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> tuple[dict[str, _Cost], dict[int, _Score]]:
        """Return the costs by site and the scores by number of the guide's latent sites."""
        latent = latent_names(guide_trace)
        number = {name: n for n, name in enumerate(latent)}
        costs: dict[str, _Cost] = {}
        scores: dict[int, _Score] = {}
        # A cost is reached by the latents before it in the guide, and by those before it in the model.
        model_trace.compute_log_prob(site_filter=lambda _, site: site["is_observed"] and not _is_emission(site))
        seen, reaches = -1, {}
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            reaches[name] = seen
            seen = max(seen, number.get(name, -1))
            if site["is_observed"]:
                likelihood, apart = _likelihood(name, model_trace, guide_trace, number, reaches)
                total = likelihood.sum(-1) if _is_emission(site) else likelihood
                costs[name] = _Cost(
                    StepTerm("log_likelihood", likelihood), total, frames_of(site), reaches[name], apart
                )
        for before, (name, site) in _in_order(guide_trace, number):
            if _is_factor(site):  # a part of log q
                costs[name] = _guide_factor(name, site, before)
        for name in latent:
            guide_site, model_site = guide_trace.nodes[name], model_trace.nodes.get(name)
            term, value, score, untouched = _latent_term(model_site, guide_site, self.kl)
            if self.kl is not None or self.free_nats:
                value = self._at_least_free(name, guide_site, term, value, score)
            n, steps = number[name], _has_steps(model_site, guide_site)
            last = max(n - 1, reaches.get(name, -1))
            if term.kind != "kl" or steps:
                last = max(last, n)  # a sampled log-ratio depends on the step itself, a sequence's KLs on its steps
            frames = frames_of(guide_site)
            shared = frames if model_site is None else frames & frames_of(model_site)
            # Where the model samples what it is given later in the guide, its later steps might influence its earlier
            # ratios through that after all; a KL is only analytic where nothing does.
            known = term.kind == "kl" or last == n
            apart = {n: untouched} if last >= n and known and untouched is not None else {}
            costs[name] = _Cost(term, value, shared, last, apart)
            if score is not None and score.requires_grad:
                scores[n] = _Score(score, frames, steps)
        return costs, scores

    def _at_least_free(self, name: str, site: Any, term: StepTerm, cost: Tensor, score: Tensor | None) -> Tensor:
        """Return a site's cost, or where its KL is on average less than the free nats, that of these."""
        if term.kind != "kl":
            if site["infer"].get("analytic_kl", True):
                raise ValueError(
                    f"kl and free_nats are of analytic KLs, and there is none of {name!r}: "
                    'infer={"analytic_kl": False} there takes its sampled log-ratio'
                )
            return cost
        if not self.free_nats:
            return cost
        if score is not None:
            raise ValueError(f"free nats are for reparametrised sites: {name!r} needs the score function")
        if site["mask"] is not None or not _same(site["scale"], 1.0):
            raise ValueError(f"free nats are for sites that are neither scaled nor masked, as {name!r} is")
        free = self.free_nats * (term.value.numel() / cost.numel())
        return torch.where(term.value.mean() > self.free_nats, cost, -free)

    def _credit(
        self, named: dict[str, _Cost], scores: dict[int, _Score], kept: _Kept
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair the log-probability of every score with the costs that it is to be multiplied with."""
        if self.score == "none" or not scores:
            return
        if kept:
            yield from self._credit_across(named, scores, kept)
            return
        costs = [*named.values()]
        by_reach: dict[int, list[_Cost]] = defaultdict(list)
        apart: dict[int, list[_Cost]] = defaultdict(list)
        for cost in costs:
            by_reach[cost.reaches].append(cost)
            for n in cost.apart:
                apart[n].append(cost)
        downstream: dict[frozenset[Frame], Tensor] = {}

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
            log_prob, frames, steps = scores[n]
            multiplier = log_prob.new_zeros(())
            for cost_frames, value in downstream.items():
                multiplier = multiplier + _sum_to(value, cost_frames & frames)
            if steps and multiplier.dim():
                multiplier = multiplier.unsqueeze(-1)
            if self.score == "sequential":
                for cost in apart[n]:
                    multiplier = multiplier - _sum_to(cost.apart[n].detach(), cost.frames & frames, steps=steps)
            yield _sum_to(log_prob, frames, steps=steps), _less_the_others(multiplier, frames, steps=steps)

    def _credit_across(
        self, costs: dict[str, _Cost], scores: dict[int, _Score], kept: _Kept
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same where a path from a score to a cost leaves a plate: there the cost's rows are added up."""
        for n, (log_prob, frames, steps) in scores.items():
            multiplier = log_prob.new_zeros(())
            for name, cost in costs.items():
                apart = kept.get((n, name), cost.frames & frames)
                if self.score == "full" or cost.reaches >= n:
                    value = _sum_to(cost.value.detach(), apart)
                    multiplier = multiplier + (value.unsqueeze(-1) if steps and value.dim() else value)
                if self.score == "sequential" and n in cost.apart:
                    multiplier = multiplier - _sum_to(cost.apart[n].detach(), apart, steps=steps)
            yield _sum_to(log_prob, frames, steps=steps), _less_the_others(multiplier, frames, steps=steps)

    def _plates(
        self,
        costs: dict[str, _Cost],
        scores: dict[int, _Score],
        guide_trace: Trace,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> _Kept:
        """Return which plates keep the rows of a score and a cost apart, for pairs of which some path leaves a plate.

        A row influences the costs of other rows through a site outside the plate, or through tensors inside it. That
        is found once for every structure of a model and guide, by tracked dependencies and by changing a single row.
        """
        shared = {frame for score in scores.values() for frame in score.frames if frame.size > 1}
        if self.score == "none" or not any(shared & cost.frames for cost in costs.values()):
            return {}
        latent = latent_names(guide_trace)
        key = (
            tuple((name, frames_of(guide_trace.nodes[name])) for name in latent),
            tuple((name, cost.frames, cost.reaches) for name, cost in costs.items()),
            tuple(scores),
        )
        if key not in self._kept:
            tracked = dependencies(model, guide, args, kwargs, rows={latent[n] for n in scores})
            self._kept[key] = _apart(costs, scores, latent, tracked)
        return self._kept[key]

    # -- when the KL is exact -------------------------------------------------------------------------------------

    def _check_order(
        self,
        analytic: list[str],
        model_trace: Trace,
        guide_trace: Trace,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> None:
        """Raise if a model-parent of an analytic step is a guide-descendant of it.

        Sites in one order in model and guide cannot break the condition. Where the orders differ, the
        dependencies are tracked once for every pair of orders.
        """
        guide_order = tuple(name for name in latent_names(guide_trace) if name in model_trace.nodes)
        among = set(guide_order)
        model_order = tuple(name for name in model_trace.nodes if name in among)
        if model_order == guide_order:
            return
        orders = (model_order, guide_order, *analytic)
        if orders in self._legal:
            return
        tracked = dependencies(model, guide, args, kwargs)
        for name in analytic:
            if (guide_trace.nodes[name]["infer"] or {}).get("exact_kl_checked"):
                continue
            for parent in tracked.model.get(name, ()):
                if parent in among and parent in tracked.descendants(name):
                    raise InexactKLError(
                        f"the KL of {name!r} would be biased: in the model it depends on {parent!r}, which the "
                        f"guide samples after {name!r} and from it. Sample the guide's sites in the model's order, "
                        f'or set infer={{"analytic_kl": False}} at {name!r} in the guide to use its sampled '
                        'log-ratio. If you know better, infer={"exact_kl_checked": True} there takes your word for it.'
                    )
        self._legal.add(orders)


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise if model and guide do not have the same latent sites."""
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in guide_trace.nodes:
            raise ValueError(f"the guide has no site {name!r}, which is latent in the model")
    for name, site in guide_trace.nodes.items():
        infer = site.get("infer") or {}
        if site["type"] != "sample" or infer.get("_deterministic"):
            continue
        if _is_factor(site):
            continue
        if site["is_observed"]:
            raise ValueError(f"the guide observes {name!r}: a guide samples latent sites only")
        if name not in model_trace.nodes and not infer.get("is_auxiliary"):
            raise ValueError(
                f"the model has no site {name!r}, which the guide samples "
                '(infer={"is_auxiliary": True} if it is meant)'
            )
        if name in model_trace.nodes and model_trace.nodes[name]["is_observed"]:
            raise ValueError(f"the guide samples {name!r}, which the model observes")


def _sum_to(value: Tensor, frames: frozenset[Frame], *, steps: bool = False) -> Tensor:
    """Sum over every dimension that is not of one of the frames (nor the steps, last if present)."""
    keep = {frame.dim for frame in frames}
    last = 1 if steps else 0
    for dim in range(-(value.dim() - last), 0):
        if dim not in keep and value.shape[dim - last] != 1:
            value = value.sum(dim - last, keepdim=True)
    return value


def _less_the_others(multiplier: Tensor, frames: frozenset[Frame], *, steps: bool) -> Tensor:
    """Subtract the mean over the other particles, which no score of a particle's own depends on."""
    for frame in frames:
        dim = frame.dim - (1 if steps else 0)
        if frame.name == "num_particles_vectorized" and multiplier.dim() >= -dim and multiplier.shape[dim] > 1:
            particles = multiplier.shape[dim]
            return (multiplier - multiplier.mean(dim, keepdim=True)) * (particles / (particles - 1))
    return multiplier


def _in_order(trace: Trace, number: dict[str, int]) -> Iterator[tuple[int, tuple[str, Any]]]:
    """The sites of a guide in order, each with the number of the last latent one before it (-1 for none)."""
    last = -1
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            yield last, (name, site)
            last = number.get(name, last)


def _is_factor(site: Any) -> bool:
    """Whether a site is a `pyro.factor`."""
    return isinstance(site["fn"], Unit) and site["is_observed"]


def _guide_factor(name: str, site: Any, reaches: int) -> _Cost:
    """The cost of a factor in the guide, which is a part of log q.

    Raises:
        ValueError: if it carries gradients that are not pathwise ones.
    """
    log_q = _weighed(site["fn"].log_factor, site, steps=False)
    if log_q.requires_grad and not site["fn"].has_rsample:
        raise ValueError(
            f"the factor {name!r} in the guide carries gradients: say has_rsample=True if they are pathwise ones, as "
            "those of a change of variables are; a density that needs the score function is a site of its own"
        )
    return _Cost(StepTerm("log_ratio", log_q), -log_q, frames_of(site), reaches, {})


def _has_steps(model_site: Any | None, guide_site: Any) -> bool:
    """Whether a latent site is a sequence, in model and guide."""
    return model_site is not None and hasattr(guide_site["fn"], "step_kl") and hasattr(model_site["fn"], "step_kl")


def _is_emission(site: Any) -> bool:
    """Whether a site holds observations of the steps of a sequence."""
    return hasattr(site["fn"], "along") and hasattr(site["fn"], "step_log_prob")


def _along(name: str, model_trace: Trace, before: Container[str]) -> str:
    """Return the name of the site that an emission goes along.

    Raises:
        ValueError: if the model has no such site before it, or one of other steps.
    """
    fn: Any = model_trace.nodes[name]["fn"]
    if fn.along not in before:
        raise ValueError(f"{name!r} goes along {fn.along!r}, but the model has no site of that name before it")
    site: Any = model_trace.nodes[fn.along]
    if hasattr(site["fn"], "step_kl"):
        steps = site["value"].shape[-len(site["fn"].event_shape)]
        if steps != fn.event_shape[0]:
            raise ValueError(f"{name!r} has {fn.event_shape[0]} steps, {fn.along!r}, along which it goes, has {steps}")
    return fn.along


def _likelihood(
    name: str, model_trace: Trace, guide_trace: Trace, number: dict[str, int], reaches: dict[str, int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the terms of an observed site, step by step for an emission, and what of them is apart (see `_Cost`)."""
    site: Any = model_trace.nodes[name]
    if not _is_emission(site):
        return site["log_prob"], {}
    along = _along(name, model_trace, reaches)
    terms = _weighed(site["fn"].step_log_prob(site["value"]), site, steps=True)
    # Through a site in between, later steps might influence it after all.
    last = along in number and number[along] == reaches[name]
    by_step = last and _has_steps(model_trace.nodes[along], guide_trace.nodes[along])
    return terms, {number[along]: terms.cumsum(-1) - terms} if by_step else {}


def _weighed(value: Tensor, by: Any, *, steps: bool) -> Tensor:
    """Scale and mask a site's value, ``[..., I]`` if it has steps, as the site is; plates are left of the steps."""
    weights = [by["scale"], by["mask"]]
    if steps:
        weights = [x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() else x for x in weights]
    return scale_and_mask(value, *weights)


def _latent_term(
    model_site: Any | None, guide_site: Any, divergence: Divergence | None
) -> tuple[StepTerm, Tensor, Tensor | None, Tensor | None]:
    """Return the diagnostic, the cost, the score, and what of the cost the site (each step of it) cannot influence."""
    q, z = guide_site["fn"], guide_site["value"]
    p: Any = None if model_site is None else model_site["fn"]
    sequence = _has_steps(model_site, guide_site)
    kl_of = partial(_kl, divergence=divergence)
    analytic = (
        model_site is not None
        and guide_site["infer"].get("analytic_kl", True)
        and _same(guide_site["scale"], model_site["scale"])
        and _same(guide_site["mask"], model_site["mask"])
    )
    steps = q.steps(z) if sequence else None
    pathwise = bool(q.has_rsample) and _is_pathwise(q if steps is None else steps.conditional)
    parts = None if pathwise else q.step_score_parts(z, steps) if sequence else q.score_parts(z)
    score = None if parts is None else _score(q, z, parts)

    if analytic:
        try:
            kl = q.step_kl(p, z, steps, kl_of) if sequence else kl_of(q, p)
        except NotImplementedError:
            pass
        else:
            kl = _weighed(kl, guide_site, steps=sequence)
            # A step's own KL is a function of what comes before the step.
            return StepTerm("kl", kl), -(kl.sum(-1) if sequence else kl), score, -(kl.cumsum(-1) if sequence else kl)
        if sequence and pathwise:
            log_ratio = _weighed(q.step_log_ratio(p, z, steps), guide_site, steps=True)
            return StepTerm("log_ratio", log_ratio), -log_ratio.sum(-1), None, log_ratio - log_ratio.cumsum(-1)
    parts = parts or (q.step_score_parts(z, steps) if sequence else q.score_parts(z))
    # The gradient of log q at a value that was not reparametrised has expectation zero: leave it out.
    log_q = parts.log_prob.detach() + _zero_valued(parts.entropy_term)
    log_ratio = _weighed(log_q, guide_site, steps=sequence)
    if model_site is not None:
        log_p = p.step_score_parts(z, p.steps(z)).log_prob if sequence else p.log_prob(z)
        log_ratio = log_ratio - _weighed(log_p, model_site, steps=sequence)
    if not sequence:
        return StepTerm("log_ratio", log_ratio), -log_ratio, score, None
    return StepTerm("log_ratio", log_ratio), -log_ratio.sum(-1), score, log_ratio - log_ratio.cumsum(-1)


def _is_pathwise(fn: Any) -> bool:
    """Whether all of a value is reparametrised, so that it needs no score function."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return bool(fn.has_rsample) and type(fn).score_parts is TorchDistributionMixin.score_parts


def _zero_valued(term: Any) -> Any:
    """The term's gradient without its value."""
    return term - term.detach() if isinstance(term, Tensor) else 0.0


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _score(q: Any, z: Tensor, parts: ScoreParts | None = None) -> Tensor | None:
    """The part of log q(z) that needs the score function; not masked, as a masked step is sampled all the same."""
    if isinstance(q, MaskedDistribution):
        return _score(q.base_dist, z)
    if isinstance(q, Independent):
        score = _score(q.base_dist, z)
        return score if score is None else sum_rightmost(score, q.reinterpreted_batch_ndims)
    score = (q.score_parts(z) if parts is None else parts).score_function
    return score if isinstance(score, Tensor) else None


def _kl(q: Any, p: Any, divergence: Divergence | None) -> Tensor:
    """Return the KL in closed form, of the guide's batch shape.

    Raises:
        NotImplementedError: if none is registered, or what is registered is not the expectation of the log-ratio.
        ValueError: if a user's divergence is of another shape.
    """
    kl = (divergence or closed_form)(q, p)
    if divergence is not None and (not isinstance(kl, Tensor) or kl.shape != q.batch_shape):
        found = [*kl.shape] if isinstance(kl, Tensor) else type(kl).__name__
        raise ValueError(f"kl must return a tensor of the distributions' batch shape {[*q.batch_shape]}, not {found}")
    if not isinstance(kl, Tensor) or kl.shape != q.batch_shape:
        raise NotImplementedError
    return kl


def closed_form(q: Any, p: Any) -> Tensor:
    """Return KL(q || p) as it is registered, or mended where that is wrong, of any shape.

    Raises:
        NotImplementedError: if none is registered, or what is registered is not the divergence.
    """
    inner = q
    while isinstance(inner, Independent | MaskedDistribution):
        inner = inner.base_dist
    if isinstance(inner, Delta):
        raise NotImplementedError  # what is registered leaves out its density, that of a transformed variable
    if isinstance(q, Independent) and isinstance(p, Independent):
        if q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
            return sum_rightmost(closed_form(q.base_dist, p.base_dist), q.reinterpreted_batch_ndims)
    if isinstance(q, MaskedDistribution) or isinstance(p, MaskedDistribution):
        # What is registered masks by both masks, also where only one of the two is masked.
        if type(q) is type(p) and _same(q._mask, p._mask):
            return scale_and_mask(closed_form(q.base_dist, p.base_dist), mask=q._mask)
        raise NotImplementedError
    if isinstance(q, OneHotCategorical) and isinstance(p, OneHotCategorical):
        return closed_form(q._categorical, p._categorical)
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        # The registered one has NaN gradients where the guide has probability zero.
        held = q.probs > 0
        difference = torch.where(held, q.logits, 0.0) - torch.where(held, p.logits, 0.0)
        return (q.probs * difference).sum(-1)
    return kl_divergence(q, p)


class BalancedKL:
    """A KL whose two gradients are weighed: ``prior KL(sg(q) || p) + posterior KL(q || sg(p))``.

    KL balancing, of D. Hafner et al., "Mastering Atari with Discrete World Models" (2021), whose 0.8 is the default: a
    prior that is learnt faster than the posterior is drawn to it. The value is ``prior + posterior`` times the KL.

    Args:
        prior: weight of the gradient of p.
        posterior: weight of the gradient of q.
        kl: the divergence.

    Raises:
        ValueError: for weights that are negative or not finite.
    """

    def __init__(self, prior: float = 0.8, posterior: float = 0.2, kl: Divergence = closed_form):
        for name, weight in {"prior": prior, "posterior": posterior}.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight {name} must be at least 0 and finite, got {weight}")
        self.prior, self.posterior, self.kl = prior, posterior, kl

    def __call__(self, q: Any, p: Any) -> Tensor:
        """Return the weighed divergence, of the distributions' batch shape."""
        return self.prior * self.kl(_without_graph(q), p) + self.posterior * self.kl(q, _without_graph(p))


def _without_graph(distribution: Any) -> Any:
    """A copy of a distribution whose tensors carry no gradients."""
    held = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            held.__dict__[name] = value.detach()
        elif isinstance(value, Distribution):
            held.__dict__[name] = _without_graph(value)
    return held


def _apart(costs: dict[str, _Cost], scores: dict[int, _Score], latent: list[str], tracked: Dependencies) -> _Kept:
    """Return the plates that keep a score and a cost apart, where a path between them leaves some."""
    kept: _Kept = {}
    for n, score in scores.items():
        for name, cost in costs.items():
            shared = score.frames & cost.frames
            left = {frame for frame in shared if _leaves(frame, latent[n], name, costs, latent, tracked)}
            if left:
                kept[n, name] = shared - left
    return kept


def _leaves(
    frame: Frame, start: str, end: str, costs: dict[str, _Cost], latent: list[str], tracked: Dependencies
) -> bool:
    """Whether a path of dependencies from a site to a cost leaves a plate."""
    crosses = {pair for pair, frames in tracked.crossed.items() if frame in frames}
    # By site: whether a path within the plate leads there, and one that has left it.
    within, out = {start}, set()
    for name in latent[latent.index(start) + 1 :]:
        for read in tracked.guide.get(name, ()):
            if read in out:
                out.add(name)
            if read in within:
                inside = frame in costs[name].frames if name in costs else False
                (within if inside and (read, name) not in crosses else out).add(name)
    reads = tracked.model.get(end, set()) | tracked.guide.get(end, set()) | ({end} if end in latent else set())
    return any(read in out or (read in within and (read, end) in crosses) for read in reads)
