"""Sequence distributions in NumPyro: the walk is a compiled loop, the scoring one batched call.

The twin of :mod:`.process`. A process sees one batch dimension ``[B]`` here too; particles and seeds are ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints, kl_divergence

from .process import Process as TorchProcess
from .twin_numpyro import Array, Twin

__all__ = ["Emission", "Process", "Sequence", "Steps", "at_step", "walks_kept"]

State = Any
Context = Any


class Process(Twin):
    """A sequence of latent choices, as a state machine over batched arrays; see :class:`~pyrocontrol.models.Process`.

    It is the twin of a torch process, whose parameters are its ``weights``. One that mirrors none is made without
    arguments. Methods and attributes mean what they mean there; a ``walk`` gets a key and no kind of draw.
    """

    of = TorchProcess
    event_shape: tuple[int, ...] = ()
    terminates: bool = False
    has_rsample: bool = False
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

    def same_states(self, other: Process, context: Context, theirs: Context) -> bool:
        """Whether ``other``, in its context, has the same states and ends along the same sequence, for certain."""
        return same_weights(self, other) and same_arrays(context, theirs)


def same_arrays(one: Context, other: Context) -> bool:
    """Whether two trees hold the very same arrays."""
    form: Any = jax.tree.structure(one)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=False)
    return bool(form == jax.tree.structure(other)) and all(a is b for a, b in pairs)


def same_weights(one: Twin, other: Twin) -> bool:
    """Whether two twins are of one module, with the very same weights."""
    return one is other or (one.mirrored is other.mirrored and same_arrays(one.weights, other.weights))


def at_step(values: Array, step: Array) -> Array:
    """Return what a context holds for the steps that come next; see :func:`~pyrocontrol.models.at_step`."""
    rows = jnp.arange(len(step)).reshape((-1,) + (1,) * (step.ndim - 1))
    return jnp.asarray(values)[rows, jnp.minimum(step, values.shape[1] - 1)]


class Steps(NamedTuple):
    """All steps of a given sequence: states ``[B, I, ...]``, which exist ``[B, I]``, and their distributions."""

    state: State
    live: Array
    conditional: dist.Distribution


class _Walk(NamedTuple):
    """A walk that kept its graph: what was drawn, by which process, and the states before each step."""

    z: Array
    process: Process
    context: Context
    state: State
    live: Array


_walks: ContextVar[list[_Walk] | None] = ContextVar("walks", default=None)


@contextmanager
def walks_kept() -> Iterator[None]:
    """Keep the states of walks that are drawn in here, so that scoring what was drawn unrolls nothing again.

    Only of walks with a graph, by a process without an unrolling of its own; as in torch, where tensors keep them.
    """
    token = _walks.set([])
    try:
        yield
    finally:
        _walks.reset(token)


def _trailing(flag: Array, like: Array) -> Array:
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def _select(keep: Array, new: State, old: State, needed: bool) -> State:
    if not needed:
        return new
    return jax.tree.map(lambda n, o: jnp.where(_trailing(keep, n), n, o), new, old)


def _filled(process: Process, z: Array, live: Array) -> Array:
    return jnp.where(_trailing(live, z), z, process.padding) if process.terminates else z


class Sequence(dist.Distribution):
    """The distribution over whole sequences that a process defines; see :class:`~pyrocontrol.models.Sequence`.

    Args:
        process: the state machine.
        context: what every step is conditioned on: a pytree of arrays that lead with ``[B]``.
        horizon: the largest number of steps ``I``.

    The batch shape is ``[B]``, the event shape ``(I,) + process.event_shape``. No error can leave a compiled function:
    a row that has not ended at the horizon is drawn as NaN, and so is all that is computed of it.

    Raises:
        ValueError: if the horizon is not positive, or the context has no leaves.
    """

    pytree_data_fields = ("context",)
    pytree_aux_fields = ("process", "horizon")
    support = constraints.real

    def __init__(self, process: Process, context: Context, horizon: int, *, validate_args: bool | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"a sequence needs a horizon of at least one step, got {horizon}")
        leaves = jax.tree.leaves(context)
        if not leaves:
            raise ValueError("a sequence needs a context: it says how many rows there are")
        self.process, self.context, self.horizon = process, context, horizon
        super().__init__(leaves[0].shape[:1], (horizon, *process.event_shape), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether reparametrised parts of the steps carry pathwise gradients."""
        return self.process.has_rsample

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``sample_shape + [B, I, ...]``; the graph is kept of what is reparametrised."""
        if sample_shape:
            keys = jax.random.split(key, sample_shape)
            draw: Any = self.sample
            for _ in sample_shape:
                draw = jax.vmap(draw)
            return draw(keys)
        if not self.has_rsample:
            held = self.process.with_weights(lax.stop_gradient(self.process.weights))
            return lax.stop_gradient(_walk(held, key, lax.stop_gradient(self.context), self.horizon))
        return _walk(self.process, key, self.context, self.horizon)

    def steps(self, z: Array, like: Steps | None = None) -> Steps:
        """Return all steps along ``z`` ``[B, I, ...]``. Equal unrollings of two sequences are compiled to one.

        With ``like``, the steps of a process with the same states along the same ``z``, its unrolling is used again.
        """
        state, live = self._unrolled(z) if like is None else like[:2]
        return Steps(state, live, self.process.conditional(state, self.context))

    def states(self, z: Array) -> State:
        """Return the states before each step along ``z``, leaves ``[B, I, ...]``, as :meth:`steps` does."""
        return self._unrolled(z)[0]

    def _unrolled(self, z: Array) -> tuple[State, Array]:
        """Return the states along ``z`` and which steps exist, of the walk that drew ``z`` where it was kept."""
        for walk in _walks.get() or ():
            if walk.z is z and self.process.same_states(walk.process, self.context, walk.context):
                return walk.state, walk.live
        return self.process.unroll(z, self.context)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Return ``sum_i log p(z_i | z_<i, context)`` ``[B]``, nats."""
        return self.step_log_prob(value).sum(-1)

    def step_log_prob(self, z: Array, steps: Steps | None = None) -> Array:
        """Return ``log p(z_i | z_<i, context)`` of every step ``[B, I]``; 0 after the end."""
        steps = steps or self.steps(z)
        return _masked(steps.conditional.log_prob(_filled(self.process, z, steps.live)), steps.live, z)

    def step_score(self, z: Array, steps: Steps | None = None) -> Array | None:
        """Return the part of ``log q(z_i | z_<i)`` ``[B, I]`` that needs the score function; None for none."""
        steps = steps or self.steps(z)
        known: Any = getattr(steps.conditional, "score", None)
        if known is not None:
            return _masked(known(_filled(self.process, z, steps.live)), steps.live, z)
        return None if self.has_rsample else self.step_log_prob(z, steps)

    def step_kl(
        self, other: Sequence, z: Array, steps: Steps | None = None, kl: Callable[[Any, Any], Array] = kl_divergence
    ) -> Array:
        """Return ``KL(self(z_i | z_<i) || other(z_i | z_<i))`` of every step along ``z`` ``[B, I]``.

        Raises:
            NotImplementedError: if no closed form is registered for the two conditionals.
        """
        steps = steps or self.steps(z)
        same = self.process.same_states(other.process, self.context, other.context)
        others = other.steps(z, like=steps if same else None)
        return _masked(kl(steps.conditional, others.conditional), steps.live, z)

    def greedy(self) -> Array:
        """Return the sequence of likeliest steps, each given those before it, ``[B, I, ...]``."""
        return lax.stop_gradient(_walk(self.process, None, self.context, self.horizon))


def _masked(value: Array, live: Array, z: Array) -> Array:
    """Terms of the steps that exist, 0 for the others; NaN for a row that was drawn so."""
    broken = jnp.isnan(z.reshape(len(z), -1)[:, :1])
    return jnp.where(broken, jnp.nan, jnp.where(live, value, 0.0))


def _mode(conditional: Any) -> Array:
    """The likeliest value; NumPyro has none of these two."""
    if isinstance(conditional, dist.Independent):
        return _mode(conditional.base_dist)
    return conditional.loc if isinstance(conditional, dist.Normal) else conditional.mode


def _walk(process: Process, key: Array | None, context: Context, horizon: int) -> Array:
    """Walk every row to its end or the horizon; by likeliest steps without a key."""
    if key is not None and (fast := process.walk(key, context, horizon)) is not None:
        z, ended = fast
        return jnp.where(_trailing(ended, z), z, jnp.nan)
    first = process.initial(context)

    def step(state: State, live: Array, i: Array) -> tuple[Array, State, Array]:
        there = _select(live, state, first, process.terminates)
        conditional: Any = process.conditional(there, context)
        z = _mode(conditional) if key is None else conditional.sample(jax.random.fold_in(key, i))
        z = _filled(process, z, live)
        state = _select(live, process.advance(there, z, context), state, process.terminates)
        return z, state, live & process.live(state, context) if process.terminates else live

    rows = len(jax.tree.leaves(context)[0])
    kept: Any = None
    live = process.live(first, context) if process.terminates else jnp.ones(rows, bool)
    if process.has_rsample or not process.terminates:  # a scan, which has a gradient, and ends at the horizon anyway

        def scanned(carry: Any, i: Array) -> Any:
            state, live = carry
            before = _select(live, state, first, process.terminates), live
            z, state, live = step(state, live, i)
            return (state, live), (z, before if keeps else None)

        keeps = key is not None and process.has_rsample and type(process).unroll is Process.unroll
        (_, live), found = lax.scan(scanned, (first, live), jnp.arange(horizon))
        z, kept = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
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
    z = jnp.where(_trailing(live, z), jnp.nan, z) if process.terminates else z
    if kept is not None and (walks := _walks.get()) is not None:
        walks.append(_Walk(z, process, context, *kept))
    return z


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
