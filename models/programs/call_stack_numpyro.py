"""The call stack of parametrised hierarchical procedures, as a NumPyro process; the twin of :mod:`.call_stack`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import torch
from jax import lax
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ..process_numpyro import DISCRETE, Process
from ..twin_numpyro import LOG_2_PI, Array, Twin, one_hot
from . import call_stack, call_stack_native
from .call_stack import _LOG_SCALE, _NEVER
from .procedure_tree import Field, PlacedField, ProcedureTree

__all__ = ["CallStack", "CallStackContext", "CallStackState", "ProcedureNetworks", "ProcedureStep", "scored_rows"]


_rows: ContextVar[int | None] = ContextVar("rows", default=None)


@contextmanager
def scored_rows(rows: int | None) -> Iterator[None]:
    """Compile what is compiled in here for so many steps of a whole batch.

    Shapes are fixed when a function is compiled, and most of ``[B, I]`` is padding: the horizon is what a call trace
    may need. The steps that exist are scored in ``rows`` rows; of steps beyond these, everything is NaN.

    Args:
        rows: None for a row for each of ``[B, I]``.
    """
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


class CallStackState(NamedTuple):
    """A call stack; see :class:`~pyrocontrol.models.CallStackState`."""

    depth: Array
    time: Array
    frame: Array
    below: Array | None


class CallStackContext(NamedTuple):
    """What the steps are conditioned on; see :class:`~pyrocontrol.models.CallStackContext`."""

    features: Array
    task: Array
    actions: Array | None = None
    arguments: Array | None = None
    observations: Array | None = None


class ProcedureNetworks(Twin, of=call_stack.ProcedureNetworks):
    """One multi-layer perceptron a procedure, evaluated as one product; the twin of the torch module."""

    def __call__(self, x: Array, procedure: Array) -> Array:
        """Return ``[..., output]`` for inputs ``[..., input]`` of procedures (long) ``[...]``."""
        count, activate = self.mirrored.procedures, jax.nn.relu if self.mirrored.activation == "relu" else jnp.tanh
        layers = [
            (self.weights[f"weights.{n}"], self.weights[f"biases.{n}"]) for n in range(len(self.mirrored.weights))
        ]
        own = one_hot(procedure, count, x)
        blocks = jnp.expand_dims(x, -2)
        for number, (weight, bias) in enumerate(layers):
            if number == len(layers) - 1:
                masked = own[..., None] * blocks
                return masked.reshape(*x.shape[:-1], -1) @ weight.reshape(-1, weight.shape[-1]) + own @ bias
            if number == 0:
                flat = x @ weight.transpose(1, 0, 2).reshape(x.shape[-1], -1) + bias.reshape(-1)
                blocks = flat.reshape(*x.shape[:-1], *bias.shape)
            else:
                blocks = jnp.einsum("...hi,hio->...ho", blocks, weight) + bias
            blocks = activate(blocks)
        raise AssertionError("a network has at least one layer")


class ProcedureStep(dist.Distribution):
    """Distribution of one PHP step (h+, u+); see :class:`~pyrocontrol.models.ProcedureStep`."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    pytree_data_fields = ("log_probs", "procedure", "parameters", "observed")
    pytree_aux_fields = ("tree",)

    def __init__(
        self,
        tree: ProcedureTree,
        log_probs: Array,
        procedure: Array,
        parameters: Array | None = None,
        observed: Array | None = None,
    ) -> None:
        self.tree, self.log_probs, self.procedure = tree, log_probs, procedure
        self.parameters, self.observed = parameters, observed
        super().__init__(log_probs.shape[:-1], (1 + tree.arg_size,), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether a latent argument or return value is a real vector."""
        return self.tree.has_latent_reals

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``(choice, u+...)``; real fields keep their graph, the choice and one-hot fields have none."""
        key, other = jax.random.split(key)
        choice = jax.random.categorical(
            key, lax.stop_gradient(self.log_probs), shape=(*sample_shape, *self.batch_shape)
        )
        return self._fill(choice, other)

    @property
    def mode(self) -> Array:
        """The likeliest choice, with the mode of its argument."""
        return self._fill(self.log_probs.argmax(-1), None)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Return ``log p(h+) + log p(u+ | h+)`` in nats, ``[...]``."""
        discrete, real = self._log_probs(value)
        return discrete + real

    def score(self, value: Array) -> Array:
        """Return the log-probability of what is discrete, which needs the score function, ``[...]``."""
        return self._log_probs(value)[0]

    def kl(self, p: ProcedureStep) -> Array:
        """Return ``KL(h+) + E_q(h+)[KL(u+ | h+)]``; the argument of an observed action costs ``-log p(u | h+)``."""
        kl = (jnp.exp(self.log_probs) * (self.log_probs - p.log_probs)).sum(-1)
        if self.parameters is None:
            return kl
        for placed in self.tree.placed_fields:
            if self.observed is not None and placed.of_action:
                cost = -p._field_log_prob(placed, _placed_in(self.observed, placed))
            else:
                cost = _field_kl(placed.field, self._parameters(placed), p._parameters(placed))
            kl = kl + self._slot_probability(placed.slot) * cost
        return kl

    def _fill(self, choice: Array, key: Array | None) -> Array:
        row = choice[..., None].astype(self.log_probs.dtype)
        argument = jnp.zeros((*choice.shape, self.tree.arg_size), row.dtype)
        if self.parameters is not None:
            slot = self._slots(choice)
            for number, placed in enumerate(self.tree.placed_fields):
                if self.observed is not None and placed.of_action:
                    continue
                drawn = self._draw(placed, choice.shape, None if key is None else jax.random.fold_in(key, number))
                filled = argument.at[..., placed.place : placed.place + placed.field.size].set(drawn)
                argument = jnp.where((slot == placed.slot)[..., None], filled, argument)
            if self.observed is not None:
                acts = (choice >= len(self.tree.procedures)) & (choice < self.tree.null)
                argument = jnp.where(acts[..., None], self.observed, argument)
        return jnp.concatenate([row, argument], -1)

    def _draw(self, placed: PlacedField, shape: tuple[int, ...], key: Array | None) -> Array:
        field = placed.field
        parameters = jnp.broadcast_to(self._parameters(placed), (*shape, field.parameters))
        if field.kind == "onehot":
            held = lax.stop_gradient(parameters)
            index = held.argmax(-1) if key is None else jax.random.categorical(key, held)
            return one_hot(index, field.size, parameters)
        location, log_scale = jnp.split(parameters, 2, -1)
        if key is None:
            return location
        return location + jnp.exp(log_scale) * jax.random.normal(key, location.shape, location.dtype)

    def _log_probs(self, value: Array) -> tuple[Array, Array]:
        choice = value[..., 0].astype(int)
        discrete = jnp.take_along_axis(self.log_probs, choice[..., None], -1)[..., 0]
        real = jnp.zeros_like(discrete)
        if self.parameters is not None:
            slot = self._slots(choice)
            for placed in self.tree.placed_fields:
                if self.observed is not None and placed.of_action:
                    continue
                chosen = slot == placed.slot
                u = jnp.where(chosen[..., None], _placed_in(value[..., 1:], placed), 0.0)
                term = jnp.where(chosen, self._field_log_prob(placed, u), 0.0)
                if placed.field.kind == "onehot":
                    discrete = discrete + term
                else:
                    real = real + term
        return discrete, real

    def _field_log_prob(self, placed: PlacedField, u: Array) -> Array:
        parameters = self._parameters(placed)
        if placed.field.kind == "onehot":
            return (u * parameters).sum(-1)
        location, log_scale = jnp.split(parameters, 2, -1)
        z = (u - location) * jnp.exp(-log_scale)
        return (-0.5 * z**2 - log_scale - 0.5 * LOG_2_PI).sum(-1)

    def _parameters(self, placed: PlacedField) -> Array:
        assert self.parameters is not None
        raw = self.parameters[..., placed.parameter : placed.parameter + placed.field.parameters]
        if placed.field.kind == "onehot":
            return jax.nn.log_softmax(raw, -1)
        location, log_scale = jnp.split(raw, 2, -1)
        return jnp.concatenate([location, log_scale.clip(*_LOG_SCALE)], -1)

    def _slots(self, choice: Array) -> Array:
        return jnp.where(choice == self.tree.null, self.tree.null + self.procedure, choice)

    def _slot_probability(self, slot: int) -> Array:
        if slot < self.tree.null:
            return jnp.exp(self.log_probs[..., slot])
        returns = self.procedure == slot - self.tree.null
        return jnp.where(returns, jnp.exp(self.log_probs[..., self.tree.null]), 0.0)


kl_divergence.add((ProcedureStep, ProcedureStep), lambda q, p: q.kl(p))


def _placed_in(argument: Array, placed: PlacedField) -> Array:
    return argument[..., placed.place : placed.place + placed.field.size]


def _field_kl(field: Field, q: Array, p: Array) -> Array:
    if field.kind == "onehot":
        return (jnp.exp(q) * (q - p)).sum(-1)
    (q_loc, q_log), (p_loc, p_log) = jnp.split(q, 2, -1), jnp.split(p, 2, -1)
    ratio = 2 * (q_log - p_log)
    return (0.5 * (jnp.exp(ratio) + (q_loc - p_loc) ** 2 * jnp.exp(-2 * p_log) - 1 - ratio)).sum(-1)


class CallStack(Process, of=call_stack.CallStack):
    """The call-stack process of a control program, prior or posterior; see :class:`~pyrocontrol.models.CallStack`.

    On a CPU, in single precision and with discrete arguments, the C walk of the torch module takes the walk.
    """

    terminates = True
    end_is_discrete = True
    support = DISCRETE  # the choices are, where latent arguments are not

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        module = self.mirrored
        self.tree: ProcedureTree = module.tree
        self.posterior: bool = module.posterior
        self.event_shape = tuple(module.event_shape)
        self.has_rsample = self.tree.has_latent_reals
        self.consistent, self.available, self.counts = (
            jnp.asarray(buffer.cpu().numpy()) for buffer in (module.consistent, module.available, module._counts)
        )

    def initial(self, context: CallStackContext) -> CallStackState:
        """The stack that holds the root, called with the task as its argument."""
        zeros = jnp.zeros(len(context.features), int)
        frame = self._new_frame(zeros, context.task)
        return CallStackState(
            zeros + 1, zeros, frame, jnp.zeros((len(zeros), self.tree.depth, frame.shape[-1]), frame.dtype)
        )

    def live(self, state: CallStackState, context: CallStackContext) -> Array:
        """A program runs until its stack is empty."""
        return state.depth > 0

    def conditional(self, state: CallStackState, context: CallStackContext) -> ProcedureStep:
        """The step of the top frame: eq. (2), or eq. (4) masked by the next action."""
        trace = jnp.arange(len(state.time)).reshape((-1,) + (1,) * (state.time.ndim - 1))
        trace = jnp.broadcast_to(trace, state.time.shape)
        rows = _rows.get()
        if rows is None or state.time.ndim == 1 or rows >= state.time.size:
            return ProcedureStep(self.tree, *self._choose(state.frame, state.time, trace, context))
        # Most rows of a batch are padding: those that live are moved together, and their choices back.
        live = (state.depth > 0).reshape(-1)
        (where,) = jnp.nonzero(live, size=rows, fill_value=0)
        frame, time, trace = (leaf.reshape(-1, *leaf.shape[2:])[where] for leaf in (state.frame, state.time, trace))
        log_probs, _, parameters, observed = self._choose(frame, time, trace, context)
        place = (live.cumsum() - 1).clip(0)
        lost = place >= rows

        def spread(part: Array | None) -> Array | None:
            if part is None:
                return None
            found = jnp.where((live & ~lost)[:, None], part[jnp.minimum(place, rows - 1)], 0.0)
            return jnp.where(lost[:, None], jnp.nan, found).reshape(*state.time.shape, -1)

        procedure = state.frame[..., 0].astype(int)
        return ProcedureStep(self.tree, spread(log_probs), procedure, spread(parameters), spread(observed))

    def _choose(self, frame: Array, time: Array, trace: Array, context: CallStackContext) -> tuple[Any, ...]:
        """Return log-probabilities of the choices, procedures, parameters of arguments, and observed arguments."""
        procedure = frame[..., 0].astype(int)
        x = jnp.concatenate(
            [
                context.features[trace, time],
                (frame[..., 1] * self.counts[procedure].astype(frame.dtype))[..., None],
                one_hot(frame[..., 2].astype(int), len(self.tree.choices), frame),
                frame[..., 3:],
            ],
            -1,
        )
        if self.posterior:
            assert context.actions is not None
            allowed = self.consistent[procedure, context.actions[trace, time]]
        else:
            allowed = self.available[procedure]
        # A procedure takes at least one step before it returns.
        allowed = jnp.concatenate([allowed[..., :-1], allowed[..., -1:] & (frame[..., 1:2] > 0)], -1)
        logits = jnp.where(allowed, self.part("choose")(x, procedure), _NEVER)
        parameters = None if self.mirrored.argue is None else self.part("argue")(x, procedure)
        observed = None
        if self.posterior and context.arguments is not None and parameters is not None:
            observed = context.arguments[trace, time]
        return jax.nn.log_softmax(logits, -1), procedure, parameters, observed

    def advance(self, state: CallStackState, z: Array, context: CallStackContext) -> CallStackState:
        """Algorithm 1: pop on a return, push on a call, let time pass on an action."""
        assert state.below is not None
        choice, u = z[..., 0].astype(int), z[..., 1:]
        width, level = u.shape[-1], jnp.arange(self.tree.depth)
        returns, calls = choice == self.tree.null, choice < len(self.tree.procedures)
        stepped = jnp.concatenate(
            [
                state.frame[..., :1],
                state.frame[..., 1:2] + 1,
                z[..., :1],
                state.frame[..., 3 : 3 + width],
                jnp.where(calls[..., None], 0.0, u),
            ],
            -1,
        )
        caller = (level == (state.depth - 2)[..., None])[..., None]
        popped = jnp.where(caller, state.below, 0.0).sum(-2)
        popped = jnp.concatenate([popped[..., : 3 + width], u], -1)
        top = (level == (state.depth - 1)[..., None]) & calls[..., None]
        below = jnp.where(top[..., None], stepped[..., None, :], state.below)
        new = self._new_frame(choice.clip(max=len(self.tree.procedures) - 1), u)
        frame = jnp.where(calls[..., None], new, jnp.where(returns[..., None], popped, stepped))
        acts = ~(calls | returns)
        time = (state.time + acts).clip(max=context.features.shape[1] - 1)
        return CallStackState(state.depth + calls - returns.astype(int), time, frame, below)

    def unroll(self, z: Array, context: CallStackContext) -> tuple[CallStackState, Array]:
        """Compute all top frames along ``z`` at once, by running maxima a level of the stack."""
        tree = self.tree
        choice, u = z[..., 0].astype(int), z[..., 1:]
        depth = self.depths(choice)
        live = depth > 0
        choice, u = jnp.where(live, choice, tree.null), jnp.where(live[..., None], u, 0.0)
        returns, calls = live & (choice == tree.null), live & (choice < len(tree.procedures))
        acts = live & ~(calls | returns)
        time = (acts.cumsum(1) - acts).clip(max=context.features.shape[1] - 1)
        number, level = jnp.arange(z.shape[1])[:, None], jnp.arange(tree.depth)
        on = depth[..., None] == level + 1
        enters = calls[..., None] & (depth[..., None] == level)
        place = (depth - 1).clip(0, tree.depth - 1)[..., None]

        def before(running: Array, first: int) -> Array:
            shifted = jnp.concatenate([jnp.full_like(running[:, :1], first), running[:, :-1]], 1)
            return jnp.take_along_axis(shifted, place, -1)[..., 0]

        maker = before(lax.cummax(jnp.where(enters, number, -1), axis=1), -1)
        last = before(lax.cummax(jnp.where(on, number, -1), axis=1), -1)
        count = on.cumsum(1)
        made = maker.clip(min=0)
        at_call = jnp.take_along_axis(jnp.take_along_axis(count, made[..., None], 1), place, -1)[..., 0]
        counter = before(count, 0) - jnp.where(maker >= 0, at_call, 0)
        procedure = jnp.where(maker >= 0, jnp.take_along_axis(choice, made, 1), 0).clip(max=len(tree.procedures) - 1)
        taken = jnp.where(counter > 0, jnp.take_along_axis(choice, last.clip(min=0), 1), tree.null)
        argument = jnp.take_along_axis(u, made[..., None], 1)
        argument = jnp.where((maker >= 0)[..., None], argument, context.task[:, None])
        popped = jnp.where((returns | acts)[..., None], u, 0.0)
        returned = jnp.concatenate([jnp.zeros_like(popped[:, :1]), popped[:, :-1]], 1)
        head = jnp.stack([procedure, counter, taken], -1).astype(z.dtype)
        return CallStackState(depth, time, jnp.concatenate([head, argument, returned], -1), None), live

    def depths(self, choice: Array) -> Array:
        """Return how many frames there are before each of the choices (long ``[B, I]``); 0 after the end."""
        change = (choice < len(self.tree.procedures)).astype(int) - (choice == self.tree.null)
        depth = 1 + change.cumsum(1) - change
        return jnp.where(lax.cummin(depth, axis=1) > 0, depth, 0)

    def walk(self, key: Array, context: CallStackContext, horizon: int) -> tuple[Array, Array] | None:
        """Walk natively where that is possible; see :meth:`~pyrocontrol.models.CallStack.walk`."""
        single = all(weight.dtype == jnp.float32 for weight in [*self.weights.values(), context.features, context.task])
        fits = single and self.mirrored.native and jax.default_backend() == "cpu" and not self.has_rsample
        if not (fits and call_stack_native.ready()):
            return None
        seed = jax.random.randint(key, (), 0, 2**31 - 1)
        batch, shape = len(context.features), (horizon, *self.event_shape)
        found = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), bool)
        native = partial(_native, self.mirrored, horizon)
        return jax.pure_callback(native, found, self.weights, context, seed, vmap_method="sequential")

    def _new_frame(self, procedure: Array, argument: Array) -> Array:
        head = jnp.stack([procedure, jnp.zeros_like(procedure), jnp.full_like(procedure, self.tree.null)], -1)
        return jnp.concatenate([head.astype(argument.dtype), argument, jnp.zeros_like(argument)], -1)


def _native(module: call_stack.CallStack, horizon: int, weights: Any, context: Any, seed: Any) -> tuple[Any, Any]:
    """Take a walk in C, with weights and a context from a compiled function."""

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array))

    held = {name: tensor(weight) for name, weight in weights.items()}
    leaves: dict[str, Any] = {name: None if leaf is None else tensor(leaf) for name, leaf in context._asdict().items()}
    given = call_stack.CallStackContext(**leaves)
    try:
        found = call_stack_native.walk(module, given, horizon, False, weights=held, seed=int(seed))
    except ValueError:  # networks that gave NaN: no row ends, so that the walk is NaN too
        shape = (len(given.features), horizon, *module.event_shape)
        return np.zeros(shape, np.float32), np.zeros(len(given.features), bool)
    assert found is not None, "what the native walk takes was checked"
    z, steps = found
    return z.numpy(), (steps <= horizon).numpy()
