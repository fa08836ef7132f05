"""Sequence distributions: a process samples step by step, a sequence scores all steps at once.

A :class:`Process` is a state machine over batched tensors; :class:`Sequence` turns it into a Pyro
distribution over whole sequences ``z = (z_0, ..., z_{I-1})`` with

    log p(z | context) = sum_i log p(z_i | z_<i, context).

Sampling walks the state machine. Scoring unrolls the states along a *given* ``z`` and evaluates every
conditional in one batched call, so that gradients never flow through the sequential walk when the steps are
discrete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from .._saved import Saved

__all__ = ["Emission", "Process", "Sequence", "Steps", "at_step", "same_tensors"]

State = Any
Context = Any


class Process(Saved, nn.Module):
    """A sequence of latent choices, as a pure state machine over batched tensors.

    Subclasses give :meth:`initial`, :meth:`conditional` and :meth:`advance`; a ``State`` and a context are any
    pytree of tensors (a ``NamedTuple``, say) whose leaves lead with the batch. The process itself always sees
    exactly one batch dimension ``[B]``: :class:`Sequence` flattens plates and particles away. In
    :meth:`conditional` a state may carry one more dimension of steps, ``[B, I]``, because all steps of a given
    sequence are scored in one call; write it with ``...`` and it serves both.

    Attributes:
        event_shape: shape of one step's value ``z_i``.
        support: constraint on one step's value.
        terminates: whether sequences end by themselves; then :meth:`live` says when, and a walk that is still
            alive at the horizon is an error. A process that does not terminate runs to its horizon.
        has_rsample: whether the walk keeps its graph, so that reparametrised parts of the steps carry pathwise
            gradients. Discrete processes leave it False and are walked without a graph.
        end_is_discrete: that ends depend on the context and on discrete parts of the steps alone. A process that
            terminates and has reparametrised parts has to say so: whether a step exists has no pathwise gradient, so an
            end that such a part decides would bias the gradient in silence.
        padding: value inside the support of every step, which fills the steps after the end.
        compile_walk: compile the sampling walk with ``torch.compile``, a chunk of steps at a time. Worth its
            half minute of compilation in a long training; needs a C++ compiler (or a GPU with Triton).
    """

    event_shape: torch.Size = torch.Size()
    support: constraints.Constraint = constraints.real
    terminates: bool = False
    has_rsample: bool = False
    end_is_discrete: bool = False
    padding: float = 0.0
    compile_walk: bool = False

    def initial(self, context: Context) -> State:
        """Return the state before step 0, leaves ``[B, ...]``."""
        raise NotImplementedError

    def conditional(self, state: State, context: Context) -> TorchDistribution:
        """Return ``p(z_i | z_<i, context)``, batch shape ``[B]`` or ``[B, I]`` as the state has it."""
        raise NotImplementedError

    def advance(self, state: State, z: Tensor, context: Context) -> State:
        """Return the state after a step with value ``z`` ``[B, *event_shape]``; deterministic."""
        raise NotImplementedError

    def live(self, state: State, context: Context) -> Tensor:
        """Return which rows have not ended, bool ``[B]``; asked only of a process that ``terminates``."""
        raise NotImplementedError

    def step(self, state: State, context: Context, draw: str) -> tuple[Tensor, State]:
        """Take one step of a walk that does not end by itself; return its value ``[B, ...]`` and the state after it.

        The default draws from :meth:`conditional` and calls :meth:`advance`. Override it where both need the same
        computation.

        Args:
            state: leaves ``[B, ...]``.
            context: leaves ``[B, ...]``.
            draw: ``"sample"``, ``"rsample"`` or ``"mode"``.
        """
        z = _drawn(self.conditional(state, context), draw)
        return z, self.advance(state, z, context)

    def walk(self, context: Context, horizon: int, draw: str) -> tuple[Tensor, Tensor] | None:
        """Take a whole walk in some faster way, or return None: then :class:`Sequence` walks step by step.

        Args:
            context: leaves ``[B, ...]``.
            horizon: most steps.
            draw: ``"sample"``, ``"rsample"`` or ``"mode"`` at every step.

        Returns:
            The values ``[B, horizon, ...]`` and how many steps each row took ``[B]``; ``horizon + 1`` where a row
            had not ended.
        """
        return None

    def unroll(self, z: Tensor, context: Context) -> tuple[State, Tensor]:
        """Return the states before each step of a given ``z`` and which steps exist.

        The default loops over the steps; override it where the states can be computed in parallel.

        Args:
            z: ``[B, I, *event_shape]``.
            context: leaves ``[B, ...]``.

        Returns:
            The states, leaves ``[B, I, ...]``, and ``live``, bool ``[B, I]``. After the end stands the state before
            step 0: a conditional in it is finite, and so is the gradient that a mask then drops.
        """
        first = state = self.initial(context)
        live = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
        states, lives = [], []
        for i in range(z.shape[1]):
            if self.terminates:
                live = live & self.live(state, context)
            states.append(_select(live, state, first, self.terminates))
            lives.append(live)
            value = _fill_dead(self, z[:, i], live)
            state = _select(live, self.advance(state, value, context), state, self.terminates)
        stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves, 1), *states)
        return stacked, torch.stack(lives, 1)

    def steps_alive(self, z: Tensor) -> int:
        """Return a number of steps ``[B, I, ...]`` after which no row lives; fewer than I if that is cheaply known."""
        return z.shape[1]

    def depends_on(self) -> Iterator[Tensor]:
        """The tensors that states and steps follow from, beside the context; a process that uses others' adds these."""
        yield from self.parameters()
        yield from self.buffers()

    def same_states(self, other: Process, context: Context, theirs: Context) -> bool:
        """Whether ``other``, in its context, has the same states and ends along the same sequence.

        Then one unrolling serves both. The default says so of a process and itself, in equal contexts.
        """
        return other is self and same_tensors(context, theirs)


def at_step(values: Tensor, step: Tensor) -> Tensor:
    """Return what a context holds for the steps that come next, inside a conditional or an advance.

    Args:
        values: ``[B, T, ...]``, one entry a step.
        step: long ``[B]``, where each row is, or ``[B, I]``, all steps at once; those past the end get the last entry.

    Returns:
        ``[B, ...]`` or ``[B, I, ...]``.
    """
    rows = torch.arange(len(step), device=step.device)
    rows = rows if step.dim() == 1 else rows.unsqueeze(1)
    return values[rows, step.clamp(max=values.shape[1] - 1)]


class Steps(NamedTuple):
    """All steps of a given sequence: states ``[B, I, ...]``, which exist ``[B, I]``, and their distributions.

    I may be smaller than the sequence's length: all further steps are dead.
    """

    state: State
    live: Tensor
    conditional: TorchDistribution


def _select(keep: Tensor, new: State, old: State, needed: bool) -> State:
    """Return ``new`` in the rows to keep and ``old`` elsewhere: an ended row stays as it ended."""
    if not needed:
        return new
    return pytree.tree_map(lambda n, o: torch.where(_trailing(keep, n), n, o), new, old)


def _fill_dead(process: Process, z: Tensor, live: Tensor) -> Tensor:
    """Replace whatever stands after the end, so that not even a NaN there reaches a gradient."""
    return z.masked_fill(~_trailing(live, z), process.padding) if process.terminates else z


def same_tensors(one: Context, other: Context) -> bool:
    """Whether two trees hold the same tensors: the same memory, or, on a CPU, equal numbers that carry no gradient."""
    if one is other:
        return True
    (leaves, form), (others, their_form) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return form == their_form and all(map(_same_leaf, leaves, others))


def _same_leaf(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)
    if one.requires_grad or other.requires_grad or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device == other.device and one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return one.device.type == other.device.type == "cpu" and torch.equal(one, other)  # elsewhere it would wait


def _trailing(flag: Tensor, like: Tensor) -> Tensor:
    return flag.reshape(flag.shape + (1,) * (like.dim() - flag.dim()))


def _drawn(conditional: TorchDistribution, draw: str) -> Tensor:
    return conditional.mode if draw == "mode" else getattr(conditional, draw)()


def _take_steps(
    process: Process, state: State, context: Context, steps: int, draw: str
) -> tuple[State, Tensor, Tensor, list[State]]:
    """Take ``steps`` steps; return the state, the values ``[B, steps, ...]``, the ends, and the states before each.

    The ends are which rows were alive before each step and after the last one, ``[B, steps + 1]``. The states before
    are kept of a walk that keeps its graph.
    """
    values, lives, states = [], [], []
    # A walk that keeps its graph never asks for a conditional after the end, whose gradient need not be finite.
    first = process.initial(context) if process.terminates and draw == "rsample" else None
    for _ in range(steps):
        there = state if first is None else _select(process.live(state, context), state, first, True)
        if draw == "rsample":
            states.append(there)
        if process.terminates:
            z = _drawn(process.conditional(there, context), draw)
            live = process.live(state, context)
            lives.append(live)
            z = _fill_dead(process, z, live)
            state = _select(live, process.advance(state, z, context), state, True)
        else:
            z, state = process.step(state, context, draw)
        values.append(z)
    stacked = torch.stack(values, 1)
    if not process.terminates:
        return state, stacked, stacked.new_ones((stacked.shape[0], steps + 1), dtype=torch.bool), states
    return state, stacked, torch.stack([*lives, process.live(state, context)], 1), states


class _Walk(NamedTuple):
    """A walk that kept its graph: the states before its steps and after the last one, and what they are of."""

    process: Process
    context: Context
    versions: list[int]
    state: State
    live: Tensor
    last: State


# By the values that a walk drew. Nothing in a walk refers to them, so that both go together.
_walks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _versions(process: Process, context: Context, z: Tensor) -> list[int]:
    """Numbers that change when the values, or what the states follow from, are changed in place."""
    leaves = [leaf for leaf in pytree.tree_leaves(context) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in (z, *leaves, *process.depends_on())]


# One step of lookahead costs little, a host synchronisation a step costs much: rows are asked whether they
# still live once a chunk.
_CHUNK = 8
_COMPILED_CHUNK = 4


class Sequence(TorchDistribution):
    """The distribution over whole sequences that a process defines.

    Args:
        process: the state machine.
        context: what every step is conditioned on; a pytree of tensors that lead with ``batch_shape``. None stands for
            rows of no numbers, ``[*batch_shape, 0]``, by which a process knows how many rows there are.
        horizon: the largest number of steps ``I``.
        batch_shape: defaults to the first dimension of the context's leaves (``()`` without any).
        validate_args: check the shape of values.

    The event shape is ``(horizon,) + process.event_shape``. What stands after the end of a row is the process's
    padding; values of any length up to the horizon are scored.

    Raises:
        ValueError: if the horizon is not positive, leaves disagree about the batch, a value has the wrong shape,
            a walk has not ended at the horizon (naming the row), or ends might depend on reparametrised values.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        process: Process,
        context: Context,
        horizon: int,
        *,
        batch_shape: torch.Size | tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ):
        if horizon < 1:
            raise ValueError(f"a sequence needs a horizon of at least one step, got {horizon}")
        if process.terminates and process.has_rsample and not process.end_is_discrete:
            raise ValueError(
                f"the steps of a {type(process).__name__} are reparametrised and it ends by itself: an end that a "
                "reparametrised value decides has no pathwise gradient. If ends depend on the context and on discrete "
                "parts of the steps alone, set end_is_discrete = True; if not, has_rsample = False"
            )
        if context is None:
            context = torch.zeros(*(batch_shape or ()), 0)
            batch_shape = context.shape[:-1]
        leaves = [leaf for leaf in pytree.tree_leaves(context) if isinstance(leaf, Tensor)]
        if batch_shape is None:
            batch_shape = leaves[0].shape[:1] if leaves else ()
        batch_shape = torch.Size(batch_shape)
        for leaf in leaves:
            if leaf.shape[: len(batch_shape)] != batch_shape:
                raise ValueError(
                    f"every tensor of the context must lead with the batch shape {tuple(batch_shape)}, "
                    f"one has shape {tuple(leaf.shape)}"
                )
        self.process, self.context, self.horizon = process, context, horizon
        super().__init__(batch_shape, torch.Size((horizon,)) + process.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry pathwise gradients (of the parts of a step that are reparametrised)."""
        return self.process.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """Every step's value lies in the support of the process."""
        support = self.process.support
        return constraints.independent(support, len(self.event_shape) - support.event_dim)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Sequence | None = None
    ) -> Sequence:
        """Return the same distribution for a larger batch, leading dimensions added or broadcast."""
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        old = len(self.batch_shape)
        context = pytree.tree_map_only(Tensor, lambda leaf: leaf.expand(batch_shape + leaf.shape[old:]), self.context)
        return Sequence(self.process, context, self.horizon, batch_shape=batch_shape, validate_args=self._validate_args)

    def to(self, device: torch.device | str) -> Sequence:
        """Return the same distribution with its context on ``device`` (move the process like any module)."""
        context = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), self.context)
        return Sequence(
            self.process,
            context,
            self.horizon,
            batch_shape=self.batch_shape,
            validate_args=self._validate_args,
        )

    # -- sampling ---------------------------------------------------------------------------------------------

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw sequences step by step without a graph, ``sample_shape + batch_shape + [I, ...]``."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape), "sample")

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw sequences step by step, keeping the graph of the reparametrised parts."""
        if not self.has_rsample:
            raise NotImplementedError(f"{type(self.process).__name__} has no reparametrised steps")
        return self._draw(torch.Size(sample_shape), "rsample")

    def greedy(self) -> Tensor:
        """Take the mode of every step in turn, ``batch_shape + [I, ...]``; cut off at the horizon."""
        with torch.no_grad():
            return self._draw(torch.Size(), "mode")

    @property
    def mode(self) -> Tensor:
        """Same as :meth:`greedy`: what a walk takes for the mode where a sequence is one step of another."""
        return self.greedy()

    def _draw(self, sample_shape: torch.Size, draw: str) -> Tensor:
        shape = sample_shape + self.batch_shape
        context = self.expand(shape)._flat_context()
        states: list[State] = []
        z, steps = self.process.walk(context, self.horizon, draw) or self._step_by_step(context, draw, states)
        if self.process.terminates:
            used = int(steps.max())
            if used > self.horizon and draw != "mode":
                raise ValueError(
                    f"horizon exhausted: sequence {int(steps.argmax())} of the batch has not ended "
                    f"after {self.horizon} steps"
                )
        # As long as the event shape says, whatever the longest row: draws can be stacked, and be steps of a sequence.
        missing = self.horizon - z.shape[1]
        if missing > 0:
            z = torch.cat([z, z.new_full((len(z), missing) + z.shape[2:], self.process.padding)], 1)
        z = z[:, : self.horizon]
        values = z.reshape(shape + z.shape[1:])
        # A process with an unrolling of its own may have other states in it, and finds them fast.
        if states and torch.is_grad_enabled() and type(self.process).unroll is Process.unroll:
            *states, last = states
            state = pytree.tree_map(lambda *leaves: torch.stack(leaves, 1), *states)
            live = torch.arange(len(states), device=z.device) < steps.unsqueeze(1)
            _walks[values] = _Walk(self.process, context, _versions(self.process, context, values), state, live, last)
        return values

    def _step_by_step(self, context: Context, draw: str, states: list[State]) -> tuple[Tensor, Tensor]:
        """Walk the process, and return what :meth:`Process.walk` does.

        The states before each step, and the last one, are added to a list, if the walk keeps its graph.
        """
        process = self.process
        compiled = process.compile_walk and draw == "sample"
        take = _compiled_steps(process) if compiled else _take_steps
        chunk = _COMPILED_CHUNK if compiled else _CHUNK
        state, values, lives, taken = process.initial(context), [], [], 0
        rows = self._rows(context)
        for leaf in pytree.tree_leaves(state):
            if isinstance(leaf, Tensor) and leaf.shape[:1] != (rows,):
                raise ValueError(
                    f"the initial state of a {type(process).__name__} must lead with the batch [{rows}], "
                    f"a part of it has shape {[*leaf.shape]}"
                )
        while taken < self.horizon:
            # A compiled walk keeps one chunk length: what it takes beyond the horizon is cut off.
            steps = chunk if compiled else min(chunk, self.horizon - taken)
            state, block, live, before = take(process, state, context, steps, draw)
            states += before
            values.append(block)
            lives.append(live[:, :steps])
            taken += steps
            if process.terminates and not bool(live[:, -1].any()):
                break
        if states:
            states.append(state)
        return torch.cat(values, 1), torch.cat([*lives, live[:, -1:]], 1).sum(1)

    # -- scoring ----------------------------------------------------------------------------------------------

    def steps(self, z: Tensor, like: Steps | None = None) -> Steps:
        """Return all steps along ``z`` ``batch_shape + [I, ...]``, on one flat batch dimension.

        Give them to :meth:`step_score_parts` and :meth:`step_kl` to evaluate the conditionals once for both. With
        ``like``, the steps of a process with the same states along the same ``z``, its unrolling is used again.

        If ``z`` itself was drawn by :meth:`rsample`, from this sequence or one with the same states, the states of that
        walk are used again. Their gradients reach what ``z`` was made of, and not ``z``: what is to be differentiated
        by ``z`` is :meth:`log_prob`.
        """
        context = self._flat_context()
        state, live = self._unrolled(z) if like is None else like[:2]
        return Steps(state, live, self.process.conditional(state, context))

    def states(self, z: Tensor, *, last: bool = False) -> State:
        """Return the states before each step along ``z``, leaves ``batch_shape + [I, ...]``, as :meth:`steps` does.

        For what reads them beside the steps, as a decoder of observations does. I may be smaller than the sequence's
        length: all further steps are dead.

        Args:
            z: ``batch_shape + [I, ...]``.
            last: return the state after the last step too, ``batch_shape + [I + 1, ...]``; of a process without an end.

        Raises:
            ValueError: for the last state of a process that terminates.
        """
        if last and self.process.terminates:
            raise ValueError(f"a {type(self.process).__name__} ends by itself: rows have no last state in common")
        mine, z = self._for(z)
        walk = mine._walk_of(z)
        state = mine._unrolled(z)[0] if walk is None else walk.state
        if last:
            final = walk and walk.last
            if final is None:
                before = pytree.tree_map(lambda leaf: leaf[:, -1], state)
                final = mine.process.advance(before, mine._flatten(z)[:, -1], mine._flat_context())
            state = pytree.tree_map(lambda all, one: torch.cat([all, one.unsqueeze(1)], 1), state, final)
        return pytree.tree_map(lambda leaf: leaf.reshape(mine.batch_shape + leaf.shape[1:]), state)

    def _walk_of(self, z: Tensor) -> _Walk | None:
        """The walk that drew ``z``, if its states are those of this sequence, and nothing has been changed since."""
        found: _Walk | None = _walks.get(z)
        if found is None or found.versions != _versions(found.process, found.context, z):
            return None
        return found if self.process.same_states(found.process, self._flat_context(), found.context) else None

    def _unrolled(self, z: Tensor) -> tuple[State, Tensor]:
        """Return the states along ``z`` and which steps exist, of the walk that drew ``z`` if there was one."""
        if (walk := self._walk_of(z)) is not None:
            return walk.state, walk.live
        flat = self._flatten(z)
        return self.process.unroll(flat[:, : self.process.steps_alive(flat)], self._flat_context())

    def _scored(self, z: Tensor, most: int | None = None) -> Steps:
        """All steps along ``z``, or the first few, as a function of ``z``."""
        flat, context = self._flatten(z), self._flat_context()
        state, live = self.process.unroll(flat[:, : self.process.steps_alive(flat) if most is None else most], context)
        return Steps(state, live, self.process.conditional(state, context))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``sum_i log p(z_i | z_<i, context)``, shape ``batch_shape`` (nats)."""
        return self.step_log_prob(value).sum(-1)

    def step_log_prob(self, z: Tensor) -> Tensor:
        """Return ``log p(z_i | z_<i, context)`` of every step, ``batch_shape + [I]``; 0 after the end."""
        return self.step_score_parts(z).log_prob

    def step_kl(
        self,
        other: Sequence,
        z: Tensor,
        steps: Steps | None = None,
        kl: Callable[[Any, Any], Tensor] = kl_divergence,
    ) -> Tensor:
        """Return ``KL(self(z_i | z_<i) || other(z_i | z_<i))`` of every step along ``z``, ``batch_shape + [I]``.

        Analytic in the step itself and a function of ``z_<i`` only: the terms of eq. (5) in Fox et al. (2018).

        Args:
            other: a sequence over the same values.
            z: ``batch_shape + [I, ...]``.
            steps: of this sequence along ``z``, if they are known.
            kl: the divergence of two conditionals; torch's registered one by default.

        Raises:
            NotImplementedError: if no closed form is registered for the two conditionals.
        """
        mine, z = self._for(z)
        steps = steps or mine._scored(z)
        others = mine._others(other, z, steps)
        return mine._masked(kl(steps.conditional, others.conditional), steps.live, z)

    def step_log_ratio(self, other: Sequence, z: Tensor, steps: Steps | None = None) -> Tensor:
        """Return ``log self(z_i | z_<i) - log other(z_i | z_<i)`` of every step, ``batch_shape + [I]``.

        Conditionals that know their ratio say so by a method ``log_ratio(other, value)``, which the conditional of this
        sequence is asked for: what both have in common need not be computed.
        """
        mine, z = self._for(z)
        steps = steps or mine._scored(z)
        others = mine._others(other, z, steps)
        value = _fill_dead(self.process, mine._flatten(z)[:, : steps.live.shape[1]], steps.live)
        if hasattr(steps.conditional, "log_ratio"):
            ratio = steps.conditional.log_ratio(others.conditional, value)
        else:
            ratio = steps.conditional.log_prob(value) - others.conditional.log_prob(value)
        return mine._masked(ratio, steps.live, z)

    def _others(self, other: Sequence, z: Tensor, steps: Steps) -> Steps:
        """The steps of another sequence along ``z``, given this one's; one unrolling if their states are the same."""
        theirs = other.expand(self.batch_shape)
        same = self.process.same_states(other.process, self._flat_context(), theirs._flat_context())
        return theirs.steps(z, like=steps) if same else theirs._scored(z, steps.live.shape[1])

    def step_score_parts(self, z: Tensor, steps: Steps | None = None) -> ScoreParts:
        """Return log-probability, score term and entropy term of every step, each ``batch_shape + [I]``.

        The score term is the part of ``log q(z_i | z_<i)`` that needs a score-function gradient: all of it for
        discrete steps, nothing for reparametrised ones, the discrete part of mixed ones.
        """
        mine, z = self._for(z)
        steps = steps or mine._scored(z)
        flat = _fill_dead(self.process, mine._flatten(z)[:, : steps.live.shape[1]], steps.live)
        if not self.has_rsample:
            log_prob = mine._masked(steps.conditional.log_prob(flat), steps.live, z)
            return ScoreParts(log_prob, log_prob, 0)  # type: ignore[arg-type]  # Pyro asks for the number 0
        parts = steps.conditional.score_parts(flat)
        return ScoreParts(*(mine._masked(part, steps.live, z) if isinstance(part, Tensor) else part for part in parts))

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Return the score parts of whole sequences, for Pyro's own ELBOs."""
        parts = self.step_score_parts(x)
        return ScoreParts(*(part.sum(-1) if isinstance(part, Tensor) else part for part in parts))

    # -- shapes -----------------------------------------------------------------------------------------------

    @staticmethod
    def _rows(context: Context) -> int:
        return next(len(leaf) for leaf in pytree.tree_leaves(context) if isinstance(leaf, Tensor))

    def _flat_context(self) -> Context:
        """The context with exactly one batch dimension."""
        if len(self.batch_shape) == 1:
            return self.context
        # Not remembered: what a walk without a graph flattens has lost the context's gradient.
        rows, rank = self.batch_shape.numel(), len(self.batch_shape)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.reshape((rows,) + leaf.shape[rank:]), self.context)

    def _flatten(self, z: Tensor) -> Tensor:
        return z.reshape((self.batch_shape.numel(),) + z.shape[z.dim() - len(self.event_shape) :])

    def _masked(self, value: Tensor, live: Tensor, z: Tensor) -> Tensor:
        """Terms of the steps that exist, as many as ``z`` has, 0 for the others."""
        value = torch.where(live, value, 0.0)
        steps = z.shape[z.dim() - len(self.event_shape)]
        if steps > value.shape[1]:
            value = F.pad(value, (0, steps - value.shape[1]))
        return value.reshape(self.batch_shape + (steps,))

    def _for(self, z: Tensor) -> tuple[Sequence, Tensor]:
        """This distribution and ``z``, broadcast to one batch shape."""
        if self._validate_args:
            self._validate_sample(z)
        rank = len(self.event_shape)
        batch = z.shape[: z.dim() - rank]
        mine = self
        if batch != self.batch_shape:
            batch = torch.broadcast_shapes(batch, self.batch_shape)
            mine, z = self.expand(batch), z.expand(batch + z.shape[z.dim() - rank :])
        return mine, z

    def _validate_sample(self, value: Tensor) -> None:
        rank = len(self.event_shape)
        event = value.shape[-rank:] if value.dim() >= rank else ()
        steps = event[0] if event else 0
        fits = 1 <= steps <= self.horizon if self.process.terminates else steps == self.horizon
        try:
            torch.broadcast_shapes(value.shape[: max(value.dim() - rank, 0)], self.batch_shape)
        except RuntimeError:
            fits = False
        if not fits or event[1:] != self.process.event_shape:
            most = "at most " if self.process.terminates else ""
            raise ValueError(
                f"a value of this sequence has shape {tuple(self.batch_shape)} + [{most}{self.horizon}] + "
                f"{tuple(self.process.event_shape)}, got {tuple(value.shape)}"
            )


class Emission(Independent):
    """Observations x_i of the steps of a sequence, independent given them.

    ``log p(x | z) = sum_i log p(x_i | z_<=i)``. An ELBO that knows per-step terms credits each to the steps up to i,
    which alone may influence it: x_i must not depend on later steps. To any other, this is one observed site.

    Args:
        base: the distribution of every observation, batch shape ``batch_shape + [I]``.
        along: name of the site of the sequence ``[I, ...]``.
        mask: which observations exist, bool, broadcast with ``batch_shape + [I]``; all if None. Those that do not
            need values in the support all the same.

    The event shape is ``(I,) + base.event_shape``.
    """

    def __init__(
        self,
        base: TorchDistribution,
        along: str,
        *,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        super().__init__(base if mask is None else base.mask(mask), 1, validate_args=validate_args)
        self.along = along

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Emission | None = None
    ) -> Emission:
        """Return the same distribution for a larger batch, leading dimensions added or broadcast."""
        base = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape[:1])
        return Emission(base, self.along, validate_args=self._validate_args)

    def step_log_prob(self, x: Tensor) -> Tensor:
        """Return ``log p(x_i | z_<=i)`` of every observation, ``batch_shape + [I]``; 0 where there is none."""
        return self.base_dist.log_prob(x)


_compiled: WeakKeyDictionary[Process, Callable[..., tuple[State, Tensor, Tensor, list[State]]]] = WeakKeyDictionary()


def _compiled_steps(process: Process) -> Callable[..., tuple[State, Tensor, Tensor, list[State]]]:
    """Compile the walk once a process."""
    if process not in _compiled:
        _compiled[process] = torch.compile(_take_steps)
    return _compiled[process]
