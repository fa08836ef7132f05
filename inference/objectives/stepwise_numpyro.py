"""The ELBO with an analytic KL a step and the sequential score-function gradient, in NumPyro.

The twin of :mod:`.stepwise`, for the same models and guides: sequences, emissions along them, and plain sites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, Unit, kl_divergence
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer.elbo import ELBO
from numpyro.util import check_model_guide_match

from ..._verify import verify_least
from ...models.twin_numpyro import Array
from .stepwise import InexactKLError, StepTerm

__all__ = ["InexactKLError", "StepTerm", "StepwiseKL_ELBO"]

_Frames = frozenset[tuple[str, int]]
"""Plates, by name and dimension."""


class _Cost(NamedTuple):
    """A term of the ELBO, to be added: its value in plates, which latents may influence it, and what of it is apart.

    ``apart`` is by number of a site: the part of the cost that the site cannot influence; of a sequence, that each of
    its steps cannot, with the steps last.
    """

    term: StepTerm
    value: Array
    frames: _Frames
    reaches: int
    apart: dict[int, Array]


class _Score(NamedTuple):
    """The log-probability of a guide site that needs the score function, step by step for a sequence."""

    log_prob: Array
    multiplier: Array
    """What it is multiplied with."""


class StepwiseKL_ELBO(ELBO):
    """An ELBO whose KL is analytic in each step; see :class:`~pyrocontrol.inference.StepwiseKL_ELBO`.

    For ``numpyro.infer.SVI``. It differs in three things, as a compiled function cannot be tried out:

    * a KL is analytic where model and guide sample their sites in one order, and elsewhere refused, unless the guide's
      site has ``infer={"exact_kl_checked": True}`` or ``infer={"analytic_kl": False}``;
    * masks of a site in model and guide are taken to be the same;
    * rows of a plate are credited apart where all latent sites are in the same plates. Where model or guide mixes rows
      by itself, as by a mean over a batch, the guide's sites there need ``infer={"rows_apart": False}``, without which
      the gradient is biased.

    A factor in the guide is a part of log q. Its gradients are taken to be pathwise ones, as those of a change of
    variables are.

    Args:
        num_particles: how many samples to average; they are baselines for each other.
        score: ``"sequential"``, ``"full"`` or ``"none"``.

    Raises:
        InexactKLError: when a KL might be biased.
        ValueError: for less than one particle, an unknown ``score``, or when model and guide do not match.
    """

    can_infer_discrete = True

    def __init__(self, num_particles: int = 1, *, score: str = "sequential") -> None:
        if score not in ("sequential", "full", "none"):
            raise ValueError(f"score must be one of sequential, full, none, got {score!r}")
        verify_least(1, num_particles=num_particles)
        super().__init__(num_particles=num_particles)
        self.score = score

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Any,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return the negative ELBO, whose gradient is the estimator's; no mutable state."""

        def particle(key: Array) -> tuple[Array, list[_Score]]:
            costs, scores = self._terms(key, param_map, model, guide, args, kwargs)
            return sum((cost.value.sum() for cost in costs.values()), jnp.zeros(())), self._credit(costs, scores)

        keys = jax.random.split(rng_key, self.num_particles)
        if self.num_particles == 1:
            value, scores = particle(keys[0])
        else:
            values, scores = jax.vmap(particle)(keys)
            factor = self.num_particles / (self.num_particles - 1)
            scores = [_Score(log_prob, factor * (cost - cost.mean(0))) for log_prob, cost in scores]
            value = values.mean()
        surrogate = value
        for log_prob, multiplier in scores:
            surrogate = surrogate + (log_prob * lax.stop_gradient(multiplier)).sum() / self.num_particles
        return {"loss": -(surrogate + lax.stop_gradient(value - surrogate)), "mutable_state": None}

    def step_terms(
        self,
        rng_key: Array,
        param_map: Any,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, StepTerm]:
        """Return every site's terms of one particle's ELBO, step by step."""
        return {
            name: cost.term for name, cost in self._terms(rng_key, param_map, model, guide, args, kwargs)[0].items()
        }

    def _terms(
        self, key: Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[dict[str, _Cost], dict[int, tuple[Array, _Frames, bool, bool]]]:
        """Return the costs by site, and by number of a guide's site what needs the score function."""
        of_guide, of_model = jax.random.split(key)
        guide_trace = trace(substitute(seed(guide, of_guide), data=params)).get_trace(*args, **kwargs)
        replayed = replay(substitute(seed(model, of_model), data=params), trace=guide_trace)
        model_trace = trace(replayed).get_trace(*args, **kwargs)
        check_model_guide_match(model_trace, guide_trace)
        latent = [name for name, site in guide_trace.items() if site["type"] == "sample" and not site["is_observed"]]
        number = {name: n for n, name in enumerate(latent)}
        _check(latent, model_trace, guide_trace)
        costs: dict[str, _Cost] = {}
        scores: dict[int, tuple[Array, _Frames, bool, bool]] = {}
        seen, reaches = -1, {}
        for name, site in model_trace.items():
            if site["type"] != "sample":
                continue
            reaches[name] = seen
            seen = max(seen, number.get(name, -1))
            if site["is_observed"]:
                costs[name] = _likelihood(name, site, model_trace, guide_trace, number, reaches)
        before = -1
        for name, site in guide_trace.items():
            before = number.get(name, before)
            if _is_factor(site):  # a part of log q
                log_q = _weighed(site["fn"].log_factor, site, None)
                costs[f"guide {name}" if name in costs else name] = _Cost(
                    StepTerm("log_ratio", log_q), -log_q, _frames(site), before, {}
                )
        for n, name in enumerate(latent):
            q, p = guide_trace[name], model_trace[name]
            term, cost, score, untouched = _latent(q, p)
            steps = _has_steps(q, p)
            last = max(n - 1, reaches[name])
            if term.kind != "kl" or steps:
                last = max(last, n)
            known = term.kind == "kl" or last == n
            apart = {n: untouched} if last >= n and known and untouched is not None else {}
            costs[name] = _Cost(term, cost, _frames(q) & _frames(p), last, apart)
            if score is not None:
                scores[n] = score, _frames(q), steps, q["infer"].get("rows_apart", True)
        return costs, scores

    def _credit(self, costs: dict[str, _Cost], scores: dict[int, tuple[Array, _Frames, bool, bool]]) -> list[_Score]:
        """Pair the log-probability of every score with the costs that it is to be multiplied with."""
        if self.score == "none":
            return []
        alike = (
            len(
                {frames for _, frames, *_ in scores.values()}
                | {c.frames for c in costs.values() if c.term.kind != "log_likelihood"}
            )
            == 1
        )
        paired = []
        for n, (log_prob, frames, steps, apart) in scores.items():
            multiplier = jnp.zeros(())
            for cost in costs.values():
                shared = cost.frames & frames if alike and apart else frozenset()
                if self.score == "full" or cost.reaches >= n:
                    value = _sum_to(cost.value, shared)
                    multiplier = multiplier + (value[..., None] if steps and value.ndim else value)
                if self.score == "sequential" and n in cost.apart:
                    multiplier = multiplier - _sum_to(cost.apart[n], shared, steps=steps)
            paired.append(_Score(_sum_to(log_prob, frames, steps=steps), multiplier))
        return paired


def _check(latent: list[str], model_trace: Any, guide_trace: Any) -> None:
    """Raise if the sites do not match, or are in an order in which a KL might be biased."""
    for name, site in model_trace.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in guide_trace:
            raise ValueError(f"the guide has no site {name!r}, which is latent in the model")
    for name, site in guide_trace.items():
        if site["type"] == "sample" and site["is_observed"] and not _is_factor(site):
            raise ValueError(f"the guide observes {name!r}: a guide samples latent sites only")
    for name in latent:
        if name not in model_trace or model_trace[name]["is_observed"]:
            raise ValueError(f"the guide samples {name!r}, which is no latent site of the model")
    order = [name for name in model_trace if name in set(latent)]
    unchecked = [
        name
        for name in latent
        if not guide_trace[name]["infer"].get("exact_kl_checked")
        and guide_trace[name]["infer"].get("analytic_kl", True)
    ]
    if order != latent and unchecked:
        raise InexactKLError(
            f"the model samples {', '.join(order)} in this order, the guide {', '.join(latent)}: the KL of "
            f"{unchecked[0]!r} might be biased. Sample the guide's sites in the model's order, or set "
            'infer={"analytic_kl": False} in the guide; if you know that no site of the model depends on one that the '
            'guide samples after it and from it, infer={"exact_kl_checked": True}'
        )


def _is_factor(site: Any) -> bool:
    """Whether a site is a `numpyro.factor`."""
    return site["type"] == "sample" and site["is_observed"] and isinstance(_split(site["fn"])[0], Unit)


def _frames(site: Any) -> _Frames:
    return frozenset((frame.name, frame.dim) for frame in site["cond_indep_stack"])


def _has_steps(q: Any, p: Any) -> bool:
    return all(hasattr(_split(site["fn"])[0], "step_kl") for site in (q, p))


def _split(fn: Any) -> tuple[Any, Any]:
    """Return a distribution without its masks, and what they mask together, None for none."""
    if isinstance(fn, MaskedDistribution):
        inner, mask = _split(fn.base_dist)
        return inner, fn._mask if mask is None else fn._mask & mask
    if isinstance(fn, ExpandedDistribution):  # by a plate around the mask
        inner, mask = _split(fn.base_dist)
        if inner is not fn.base_dist:
            return inner.expand(fn.batch_shape), mask
    return fn, None


def _weighed(value: Array, site: Any, mask: Any, *, steps: bool = False) -> Array:
    """Scale and mask a site's value, ``[..., I]`` if it has steps."""

    def wide(weight: Any) -> Any:
        return weight[..., None] if steps and jnp.ndim(weight) else weight

    if mask is not None:
        value = jnp.where(wide(mask), value, 0.0)
    return value if site["scale"] is None else wide(site["scale"]) * value


def _likelihood(
    name: str, site: Any, model_trace: Any, guide_trace: Any, number: dict[str, int], reaches: dict[str, int]
) -> _Cost:
    """Return the cost of an observed site, step by step for an emission."""
    fn, mask = _split(site["fn"])
    if not (hasattr(fn, "along") and hasattr(fn, "step_log_prob")):
        value = _weighed(fn.log_prob(site["value"]), site, mask)
        return _Cost(StepTerm("log_likelihood", value), value, _frames(site), reaches[name], {})
    along = fn.along
    if along not in reaches:
        raise ValueError(f"{name!r} goes along {along!r}, but the model has no site of that name before it")
    terms = _weighed(fn.step_log_prob(site["value"]), site, mask, steps=True)
    of = model_trace[along]
    if hasattr(_split(of["fn"])[0], "step_kl"):
        steps = of["value"].shape[-len(of["fn"].event_shape)]
        if steps != terms.shape[-1]:
            raise ValueError(f"{name!r} has {terms.shape[-1]} steps, {along!r}, along which it goes, has {steps}")
    last = along in number and number[along] == reaches[name]
    by_step = last and _has_steps(guide_trace[along], model_trace[along])
    apart = {number[along]: terms.cumsum(-1) - terms} if by_step else {}
    return _Cost(StepTerm("log_likelihood", terms), terms.sum(-1), _frames(site), reaches[name], apart)


def _latent(q_site: Any, p_site: Any) -> tuple[StepTerm, Array, Array | None, Array | None]:
    """Return the diagnostic, the cost, the score, and what of the cost the site (each step of it) cannot influence."""
    (q, q_mask), (p, p_mask), z = _split(q_site["fn"]), _split(p_site["fn"]), q_site["value"]
    sequence = _has_steps(q_site, p_site)
    steps = q.steps(z) if sequence else None
    score = q.step_score(z, steps) if sequence else None if q.has_rsample else q.log_prob(z)
    if (q_mask is None) != (p_mask is None):
        raise ValueError(f"{q_site['name']!r} is masked in the model or in the guide alone: mask both alike")
    scales = q_site["scale"], p_site["scale"]
    alike = scales[0] is scales[1] or all(isinstance(scale, float) for scale in scales) and scales[0] == scales[1]
    if q_site["infer"].get("analytic_kl", True) and alike:
        try:
            kl = q.step_kl(p, z, steps) if sequence else _kl(q, p)
        except NotImplementedError:
            pass
        else:
            kl = _weighed(kl, q_site, q_mask, steps=sequence)
            return StepTerm("kl", kl), -(kl.sum(-1) if sequence else kl), score, -(kl.cumsum(-1) if sequence else kl)
    log_q = q.step_log_prob(z, steps) if sequence else q.log_prob(z)
    if not q.has_rsample:  # its gradient has expectation zero
        log_q = lax.stop_gradient(log_q)
    log_p = p.step_log_prob(z) if sequence else p.log_prob(z)
    ratio = _weighed(log_q, q_site, q_mask, steps=sequence) - _weighed(log_p, p_site, p_mask, steps=sequence)
    if not sequence:
        return StepTerm("log_ratio", ratio), -ratio, score, None
    return StepTerm("log_ratio", ratio), -ratio.sum(-1), score, ratio - ratio.cumsum(-1)


def _kl(q: Any, p: Any) -> Array:
    """Return KL(q || p) in closed form.

    Raises:
        NotImplementedError: if none is registered.
    """
    if isinstance(q, Independent) and isinstance(p, Independent):
        if (dims := q.reinterpreted_batch_ndims) == p.reinterpreted_batch_ndims:
            return _kl(q.base_dist, p.base_dist).sum(tuple(range(-dims, 0)))
    return kl_divergence(q, p)


def _sum_to(value: Array, frames: _Frames, *, steps: bool = False) -> Array:
    """Sum over every dimension that is not of one of the frames (nor the steps, last if present)."""
    keep, last = {dim for _, dim in frames}, 1 if steps else 0
    for dim in range(-(value.ndim - last), 0):
        if dim not in keep and value.shape[dim - last] != 1:
            value = value.sum(dim - last, keepdims=True)
    return value
