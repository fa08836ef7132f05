"""Sequence distributions in NumPyro: the walk is a compiled loop, the scoring one batched call.

The twin of :mod:`.process`. A process sees one batch dimension ``[B]`` here too; particles and seeds are ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints, kl_divergence

from .._verify import verify_least
from .process import Process as TorchProcess
from .twin_numpyro import Array, Twin

__all__ = ["Emission", "Process", "Sequence", "Steps", "at_step"]

State = Any
Context = Any

DISCRETE: constraints.Constraint = constraints.dependent(is_discrete=True, event_dim=0)
"""The support of values of which no more is said than that they are discrete, in part at least."""


class Process(Twin):
    """A sequence of latent choices, as a state machine over batched arrays; see :class:`~pyrocontrol.models.Process`.

    It is the twin of a torch process, whose parameters are its ``weights``. One that mirrors none is made without
    arguments. Methods and attributes mean what they mean there; a ``walk`` gets a key and no kind of draw.

    Attributes:
        support: constraint on one step's value. None for real numbers where ``has_rsample``, and else for what is
            discrete, by which NumPyro knows that the value has no pathwise gradient.
    """

    of = TorchProcess
    event_shape: tuple[int, ...] = ()
    support: constraints.Constraint | None = None
    terminates: bool = False
    has_rsample: bool = False
    end_is_discrete: bool = False
    padding: float = 0.0

    def initial(self, context: Context) -> State:
        """Return the state before step 0, leaves ``[B, ...]``."""
        raise NotImplementedError

    def conditional(self, state: State, context: Context) -> dist.Distribution:
        """Return ``p(z_i | z_<i, context)``, batch shape ``[B]`` or ``[B, I]`` as the state has it."""
        raise NotImplementedError

    def advance(self, state: State, z: Array, context: Context) -> State:
        """Return the state after a step with value ``z`` ``[B, *event_shape]``."""
        raise NotImplementedError

    def live(self, state: State, context: Context) -> Array:
        """Return which rows have not ended, bool ``[B]``; asked only of a process that ``terminates``."""
        raise NotImplementedError

    def walk(self, key: Array, context: Context, horizon: int) -> tuple[Array, Array] | None:
        """Take a whole walk in some faster way, or return None.

        Returns:
            The values ``[B, horizon, ...]`` and which rows ended, bool ``[B]``.
        """
        return None

    def unroll(self, z: Array, context: Context) -> tuple[State, Array]:
        """Return the states before each step of a given ``z``, leaves ``[B, I, ...]``, and which steps exist."""
        first = self.initial(context)

        def step(carry: Any, value: Array) -> Any:
            state, live = carry
            if self.terminates:
                live = live & self.live(state, context)
            value = _filled(self, value, live)
            there = _select(live, state, first, self.terminates)
            after = _select(live, self.advance(state, value, context), state, self.terminates)
            return (after, live), (there, live)

        carry = first, jnp.ones(len(z), bool)
        _, (states, live) = lax.scan(step, carry, jnp.moveaxis(z, 1, 0))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), states), live.T


def at_step(values: Array, step: Array) -> Array:
    """Return what a context holds for the steps that come next; see :func:`~pyrocontrol.models.at_step`."""
    rows = jnp.arange(len(step)).reshape((-1,) + (1,) * (step.ndim - 1))
    return values[rows, jnp.minimum(step, values.shape[1] - 1)]


class Steps(NamedTuple):
    """All steps of a given sequence: states ``[B, I, ...]``, which exist ``[B, I]``, and their distributions."""

    state: State
    live: Array
    conditional: dist.Distribution


def _trailing(flag: Array, like: Array) -> Array:
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def _select(keep: Array, new: State, old: State, needed: bool) -> State:
    if not needed:
        return new
    return jax.tree.map(lambda n, o: jnp.where(_trailing(keep, n), n, o), new, old)


def _filled(process: Process, z: Array, live: Array) -> Array:
    """Put padding after the end, and where a row has not ended."""
    if not process.terminates:
        return z
    return jnp.where(_trailing(live, z) & ~_is_lost(z), z, jnp.asarray(process.padding, z.dtype))


def _lost(dtype: Any) -> Any:
    """What a row is drawn as that has not ended: NaN, and of integers, which have none, the greatest."""
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.nan


def _is_lost(z: Array) -> Array:
    return z == _lost(z.dtype) if jnp.issubdtype(z.dtype, jnp.integer) else jnp.isnan(z)


class Sequence(dist.Distribution):
    """The distribution over whole sequences that a process defines; see :class:`~pyrocontrol.models.Sequence`.

    Args:
        process: the state machine.
        context: what every step is conditioned on: a pytree of arrays that lead with ``batch_shape``.
        horizon: the largest number of steps ``I``.
        batch_shape: the first dimension of the context's leaves if None.

    The event shape is ``(I,) + process.event_shape``. No error can leave a compiled function: a row that has not ended
    at the horizon is drawn as NaN (as the greatest integer where values are integers), and all that is computed of it
    is NaN.

    Raises:
        TypeError: if the horizon is not whole.
        ValueError: if the horizon is not positive, the context has no leaves or they disagree about the batch, a value
            has the wrong shape, or ends might depend on reparametrised values.
    """

    pytree_data_fields = ("context",)
    pytree_aux_fields = ("process", "horizon")

    def __init__(
        self,
        process: Process,
        context: Context,
        horizon: int,
        *,
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        verify_least(1, horizon=horizon)
        if process.terminates and process.has_rsample and not process.end_is_discrete:
            raise ValueError(
                f"the steps of a {type(process).__name__} are reparametrised and it ends by itself: an end that a "
                "reparametrised value decides has no pathwise gradient. If ends depend on the context and on discrete "
                "parts of the steps alone, set end_is_discrete = True; if not, has_rsample = False"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(context)]
        if not shapes:
            raise ValueError("a sequence needs a context: it says how many rows there are")
        batch_shape = shapes[0][:1] if batch_shape is None else tuple(batch_shape)
        for shape in shapes:
            if shape[: len(batch_shape)] != batch_shape:
                raise ValueError(
                    f"every array of the context must lead with the batch shape {batch_shape}, one has shape {shape}"
                )
        self.process, self.context, self.horizon = process, context, horizon
        super().__init__(batch_shape, (horizon, *process.event_shape), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether reparametrised parts of the steps carry pathwise gradients."""
        return self.process.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """Every step's value lies in the support of the process."""
        each = self.process.support or (constraints.real if self.has_rsample else DISCRETE)
        return constraints.independent(each, len(self.event_shape) - each.event_dim)

    def expand(self, batch_shape: tuple[int, ...]) -> Sequence:
        """Return the same distribution for a larger batch, leading dimensions added or broadcast; plates ask for it."""
        batch_shape, rank = tuple(batch_shape), len(self.batch_shape)
        if batch_shape == self.batch_shape:
            return self
        new = len(batch_shape) - rank

        def wide(leaf: Array) -> Array:
            leaf = leaf.reshape((1,) * new + leaf.shape)
            return jnp.broadcast_to(leaf, batch_shape + leaf.shape[len(batch_shape) :])

        return Sequence(self.process, jax.tree.map(wide, self.context), self.horizon, batch_shape=batch_shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``sample_shape + batch_shape + [I, ...]``; the graph is kept of what is reparametrised."""
        if sample_shape:
            keys = jax.random.split(key, sample_shape)
            draw: Any = self.sample
            for _ in sample_shape:
                draw = jax.vmap(draw)
            return draw(keys)
        process, context = self.process, self._flat_context()
        if not self.has_rsample:
            process, context = process.with_weights(lax.stop_gradient(process.weights)), lax.stop_gradient(context)
        z = _walk(process, key, context, self.horizon)
        z = z if self.has_rsample else lax.stop_gradient(z)
        return z.reshape(self.batch_shape + z.shape[1:])

    def steps(self, z: Array) -> Steps:
        """Return all steps along ``z`` ``batch_shape + [I, ...]``, on one flat batch dimension.

        Equal unrollings of two sequences are compiled to one.
        """
        mine, z = self._for(z)
        context = mine._flat_context()
        state, live = self.process.unroll(z, context)
        return Steps(state, live, self.process.conditional(state, context))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Return ``sum_i log p(z_i | z_<i, context)``, ``batch_shape``, nats."""
        return self.step_log_prob(value).sum(-1)

    def step_log_prob(self, z: Array, steps: Steps | None = None) -> Array:
        """Return ``log p(z_i | z_<i, context)`` of every step, ``batch_shape + [I]``; 0 after the end."""
        steps = steps or self.steps(z)
        mine, z = self._for(z)
        return mine._masked(steps.conditional.log_prob(_filled(self.process, z, steps.live)), steps.live, z)

    def step_score(self, z: Array, steps: Steps | None = None) -> Array | None:
        """Return the part of ``log q(z_i | z_<i)`` of every step that needs the score function; None for none."""
        steps = steps or self.steps(z)
        known: Any = getattr(steps.conditional, "score", None)
        if known is None:
            return None if self.has_rsample else self.step_log_prob(z, steps)
        mine, z = self._for(z)
        return mine._masked(known(_filled(self.process, z, steps.live)), steps.live, z)

    def step_kl(
        self, other: Sequence, z: Array, steps: Steps | None = None, kl: Callable[[Any, Any], Array] = kl_divergence
    ) -> Array:
        """Return ``KL(self(z_i | z_<i) || other(z_i | z_<i))`` of every step along ``z``, ``batch_shape + [I]``.

        Raises:
            NotImplementedError: if no closed form is registered for the two conditionals.
        """
        steps = steps or self.steps(z)
        mine, flat = self._for(z)
        others = other.expand(mine.batch_shape).steps(z)
        return mine._masked(kl(steps.conditional, others.conditional), steps.live, flat)

    def greedy(self) -> Array:
        """Return the sequence of likeliest steps, each given those before it; cut off at the horizon.

        Raises:
            NotImplementedError: for a conditional whose mode is not known.
        """
        z = lax.stop_gradient(_walk(self.process, None, self._flat_context(), self.horizon))
        return z.reshape(self.batch_shape + z.shape[1:])

    def _flat_context(self) -> Context:
        """The context with exactly one batch dimension."""
        rank, rows = len(self.batch_shape), math.prod(self.batch_shape)
        if rank == 1:
            return self.context
        return jax.tree.map(lambda leaf: leaf.reshape((rows, *leaf.shape[rank:])), self.context)

    def _for(self, z: Array) -> tuple[Sequence, Array]:
        """This distribution for the batch of ``z``, and ``z`` broadcast to it, on one batch dimension."""
        place = max(z.ndim - len(self.event_shape), 0)
        batch, event = z.shape[:place], z.shape[place:]
        fits = len(event) == len(self.event_shape) and event[1:] == self.process.event_shape
        fits = fits and (1 <= event[0] <= self.horizon if self.process.terminates else event[0] == self.horizon)
        try:
            batch = jnp.broadcast_shapes(batch, self.batch_shape)
        except ValueError:
            fits = False
        if not fits:
            most = "at most " if self.process.terminates else ""
            raise ValueError(
                f"a value of this sequence has shape {self.batch_shape} + [{most}{self.horizon}] + "
                f"{self.process.event_shape}, got {z.shape}"
            )
        return self.expand(batch), jnp.broadcast_to(z, batch + event).reshape(math.prod(batch), *event)

    def _masked(self, value: Array, live: Array, z: Array) -> Array:
        """Terms of the steps that exist, 0 for the others; NaN for a row that was drawn as one that has not ended."""
        first = z.reshape(len(z), -1)[:, :1]
        value = jnp.where(_is_lost(first), jnp.nan, jnp.where(live, value, 0.0))
        return value.reshape(self.batch_shape + value.shape[1:])


def _mode(fn: Any) -> Array:
    """The likeliest value of a distribution.

    Raises:
        NotImplementedError: if it is not known.
    """
    if isinstance(fn, dist.Independent | dist.MaskedDistribution):
        return _mode(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(_mode(fn.base_dist), fn.shape())
    if isinstance(fn, dist.Normal | dist.Laplace | dist.StudentT | dist.Cauchy | dist.MultivariateNormal):
        return jnp.broadcast_to(fn.loc, fn.shape())
    if isinstance(fn, dist.BernoulliProbs | dist.BernoulliLogits):
        return (fn.probs > 0.5).astype(int)
    if isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
        return fn.probs.argmax(-1)
    if isinstance(fn, dist.Delta):
        return fn.v
    try:
        return fn.mode
    except NotImplementedError:
        raise NotImplementedError(f"the mode of a {type(fn).__name__} is not known: give it a property mode") from None


def _walk(process: Process, key: Array | None, context: Context, horizon: int) -> Array:
    """Walk every row to its end or the horizon; by likeliest steps without a key."""
    if key is not None and (fast := process.walk(key, context, horizon)) is not None:
        z, ended = fast
        return jnp.where(_trailing(ended, z), z, _lost(z.dtype))
    first = process.initial(context)

    def step(state: State, live: Array, i: Array) -> tuple[Array, State, Array]:
        there = _select(live, state, first, process.terminates)
        conditional = process.conditional(there, context)
        z = _mode(conditional) if key is None else conditional.sample(jax.random.fold_in(key, i))
        z = _filled(process, z, live)
        state = _select(live, process.advance(there, z, context), state, process.terminates)
        return z, state, live & process.live(state, context) if process.terminates else live

    rows = len(jax.tree.leaves(context)[0])
    live = process.live(first, context) if process.terminates else jnp.ones(rows, bool)
    if process.has_rsample or not process.terminates:  # a scan, which has a gradient, and ends at the horizon anyway

        def scanned(carry: Any, i: Array) -> Any:
            state, live = carry
            z, state, live = step(state, live, i)
            return (state, live), z

        (_, live), values = lax.scan(scanned, (first, live), jnp.arange(horizon))
        z = jnp.moveaxis(values, 0, 1)
    else:
        shape = jax.eval_shape(lambda: step(first, live, jnp.zeros((), int))[0])
        z = jnp.full((rows, horizon, *shape.shape[1:]), process.padding, shape.dtype)

        def on(carry: Any) -> Array:
            return (carry[0] < horizon) & carry[2].any()

        def looped(carry: Any) -> Any:
            i, state, live, z = carry
            value, state, live = step(state, live, i)
            return i + 1, state, live, lax.dynamic_update_index_in_dim(z, value, i, 1)

        _, _, live, z = lax.while_loop(on, looped, (jnp.zeros((), int), first, live, z))
    return jnp.where(_trailing(live, z), _lost(z.dtype), z) if process.terminates and key is not None else z


class Emission(dist.Independent):
    """Observations of the steps of a sequence; see :class:`~pyrocontrol.models.Emission`.

    Args:
        base: the distribution of every observation, batch shape ``[B, I]``.
        along: name of the site of the sequence.
        mask: which observations exist, bool, broadcast with ``[B, I]``; all if None.
    """

    pytree_aux_fields = ("along",)

    def __init__(
        self, base: dist.Distribution, along: str, *, mask: Array | None = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(base if mask is None else base.mask(mask), 1, validate_args=validate_args)
        self.along = along

    def expand(self, batch_shape: tuple[int, ...]) -> Emission:
        """Return the same distribution for a larger batch; plates ask for it."""
        base = self.base_dist.expand((*batch_shape, *self.event_shape[:1]))
        return Emission(base, self.along)

    def step_log_prob(self, x: Array) -> Array:
        """Return ``log p(x_i | z_<=i)`` of every observation ``[B, I]``; 0 where there is none."""
        return self.base_dist.log_prob(x)
