r"""The span recursion: exact sums over all call stacks that take the actions of a trace.

A call's inside does not depend on its caller. So for every procedure h with a value u of its argument, and every span
of times, there is one number: the probability :math:`\beta_{h,u}[s, r, e]` that h, called at time s, takes exactly the
actions :math:`x_s \ldots x_{e-1}` and returns r at time e. Inside the call, a frame f = (tau, h-, u-) at time s has
:math:`\gamma[f, s, r, e]`, the probability that the call comes to its end in this way from here:

.. math::
    \gamma[f, s, r, e] = 1_{s = e}\, p(\text{return}, r | f, o_s)
        + p(x_s | f, o_s)\, \gamma[f', s + 1, r, e]
        + \sum_{c, v} p(c, v | f, o_s) \sum_{s', r'} \beta_{c,v}[s, r', s']\, \gamma[f'_{c, r'}, s', r, e],

and beta is gamma of the fresh frame. Nothing returns before its first step, so every move advances time and the sums
are finite: procedures are taken callees first, times last first. The root's only end is that of the trace, and
:math:`\log p(x) = \log \sum_r \beta_\text{root}[0, r, T]`. The derivatives of log p(x) by the log-probabilities of
choices are the posterior's expected numbers of these choices.

All is in logarithms and in double precision, so that no length under- or overflows. Of T actions, a procedure that
calls nothing takes O(T W) sums, one that does not count O(T W^2), and one that counts its steps and calls others
O(T W^3), where W is how far it can go on (the longest run of actions within its reach); the root takes O(T^2) or
O(T^3).

Shapes: N actions of a trace before its null, H procedures, U values of an argument, R of a return value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Several
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...models.programs.call_stack import CallStack, CallStackContext, ProcedureStep, placed_in
from ...models.programs.procedure_tree import Field, ProcedureTree
from .call_spans_kernel import NEVER, KernelUnit, spans

__all__ = ["CallSpans", "Choices", "Grammar", "Unit"]

_MOST_VALUES = 1000  # of an argument, or of a return value
_LARGE = 200_000  # rows, above which a layout is not kept for the next call
_IMPOSSIBLE = -1e8  # masked choices have finite log-probabilities below it


class Unit(NamedTuple):
    """A procedure with a value of its argument.

    Attributes:
        procedure: its number h.
        value: the number of the argument's value.
    """

    procedure: int
    value: int


class Choices(NamedTuple):
    """What a procedure may choose, and the frames in which it does so.

    Attributes:
        acts: whether it takes actions itself.
        callees: for every choice of a call, (unit, first of the frames that follow it, one a value returned).
        frames: of the frames that have taken a step, from number 1 on: the last call and what it returned; None is the
            last action, with its argument.
        returns: values that it may return, ``[R, W]``.
    """

    acts: bool
    callees: tuple[tuple[int, int], ...]
    frames: tuple[tuple[int, Tensor] | None, ...]
    returns: Tensor

    @property
    def columns(self) -> int:
        """How many choices there are: to act, every call, every return."""
        return 1 + len(self.callees) + len(self.returns)


class Grammar:
    """The units of a tree, callees first, and the choices of every procedure.

    Args:
        tree: the call graph.

    Raises:
        ValueError: naming the field, for latent arguments or return values that are real vectors: they have no finite
            number of values to sum over.
    """

    def __init__(self, tree: ProcedureTree):
        self.tree = tree
        count = len(tree.procedures)
        arguments = [torch.zeros(1, tree.arg_size)]  # the root's is given
        arguments += [_values(tree, p.name, "argument", p.argument) for p in tree.procedures[1:]]
        self.arguments = tuple(arguments)
        returned = [_values(tree, p.name, "return value", p.returns) for p in tree.procedures]
        self.units = tuple(Unit(h, value) for h in reversed(tree._order) for value in range(len(self.arguments[h])))
        number = {unit: i for i, unit in enumerate(self.units)}
        self.choices: tuple[Choices, ...] = tuple(self._choices(h, number, returned) for h in range(count))

    def within(self, h: int, actions: NDArray[np.int64]) -> bytes:
        """Return which actions ``[N]`` are within reach of procedure h, a byte 0 or 1 each."""
        return self.tree.reachable[h].numpy()[actions].astype(np.uint8).tobytes()

    def _choices(self, h: int, number: dict[Unit, int], returned: list[Tensor]) -> Choices:
        count, actions = len(self.tree.procedures), len(self.tree.actions)
        acts = bool(self.tree.available[h, count : count + actions].any())
        frames: list[tuple[int, Tensor] | None] = [None] if acts else []
        callees = []
        for child in self.tree.available[h, :count].nonzero()[:, 0].tolist():
            first = len(frames) + 1
            frames += [(child, value) for value in returned[child]]
            callees += [(number[Unit(child, v)], first) for v in range(len(self.arguments[child]))]
        return Choices(acts, tuple(callees), tuple(frames), returned[h])


@lru_cache(maxsize=64)
def grammar_of(tree: ProcedureTree) -> Grammar:
    """Return the grammar of a tree, kept for the next call."""
    return Grammar(tree)


def _values(tree: ProcedureTree, procedure: str, what: str, fields: Several[Field]) -> Tensor:
    """All values ``[n, W]`` of one-hot fields; the zero vector for none.

    Raises:
        ValueError: for a real vector, or too many values.
    """
    for field in fields:
        if field.kind != "onehot":
            raise ValueError(
                f"procedure {procedure!r}: its {what} {field.name!r} is a real vector, over which no exact sum is "
                f"possible: make it onehot[k], or use StepwiseKL_ELBO"
            )
    if (count := math.prod(field.size for field in fields)) > _MOST_VALUES:
        raise ValueError(
            f"procedure {procedure!r}: its {what} has {count} values, more than the {_MOST_VALUES} that are summed "
            "over: use StepwiseKL_ELBO"
        )
    rows = [
        torch.cat(parts) if parts else torch.zeros(0)
        for parts in itertools.product(*(torch.eye(field.size) for field in fields))
    ]
    return torch.stack([F.pad(row, (0, tree.arg_size - len(row))) for row in rows])


@lru_cache(maxsize=4096)
def _table_bytes(grammar: Grammar, actions: bytes, inputs: int) -> int:
    """Return how many bytes a trace takes: see :meth:`CallSpans.table_bytes`."""
    taken, total = np.frombuffer(actions, np.int64), 0
    for h, value in grammar.units:
        counts, choices = grammar.tree.procedures[h].counts, grammar.choices[h]
        high, taus = _extent(grammar.within(h, taken), counts)
        width = 1 if h == 0 else high - np.arange(len(high)) + 1
        frames = taus * len(choices.frames) if choices.callees else 0
        cells = len(choices.returns) * width * (2 * frames + 2 + (taus + 1 if counts else 1) * len(choices.callees))
        rows = (1 + taus * len(choices.frames)) * (2 * choices.columns + (inputs if value == 0 else 0))
        total += 8 * int(np.sum(cells) + np.sum(rows))
    return total


class _Layout(NamedTuple):
    """Where the choices of one procedure's frames are along one trace, and in which frames the networks are asked.

    Attributes:
        high: ``[N + 1]``, the last time at which a call made at s may end.
        taus: ``[N + 1]``, how many values the counter of a frame that took a step may have at s.
        row: ``[N + 1]``, the row of the first of these; rows 0 to N are the fresh frames'.
        which: ``[rows]``, the frame that is asked for each row; their number for a row that cannot be.
        time, counter, frame: ``[asked]``, of every frame that is asked; frame 0 is the fresh one.
    """

    high: NDArray[np.int64]
    taus: NDArray[np.int64]
    row: NDArray[np.int64]
    which: NDArray[np.int64]
    time: NDArray[np.int64]
    counter: NDArray[np.int64]
    frame: NDArray[np.int64]

    def rows_at(self, time: int) -> NDArray[np.int64]:
        """The frames that are asked for the rows of a time."""
        last = self.row[time + 1] if time + 1 < len(self.row) else len(self.which)
        found = np.append(self.which[time], self.which[self.row[time] : last])
        return found[found < len(self.time)]


class _Extent(NamedTuple):
    """How far a procedure can go along a trace: see :class:`_Layout`."""

    high: NDArray[np.int64]
    taus: NDArray[np.int64]


@lru_cache(maxsize=4096)
def _extent(within: bytes, counts: bool) -> _Extent:
    """Return the extent of a procedure, given which actions (bytes 0 or 1) are within its reach."""
    reach = np.frombuffer(within, np.uint8)
    time = np.arange(len(reach) + 1)
    blocked = np.flatnonzero(reach == 0)
    place = np.searchsorted(blocked, time)
    high = np.append(blocked, len(reach))[place]  # the first action out of reach at or after s
    start = np.concatenate([[0], blocked + 1])[place]  # one beyond the last one before s
    return _Extent(high, time - start if counts else np.minimum(time - start, 1))


def _layout(grammar: Grammar, h: int, actions: bytes, moments: bytes) -> _Layout:
    """Return the layout of procedure h.

    Args:
        grammar: of the tree.
        h: the procedure.
        actions: of the trace, long ``[N]``.
        moments: long ``[N + 1]``, numbers of its times, alike where the networks read the same in like frames.
    """
    within = grammar.within(h, np.frombuffer(actions, np.int64))
    taus = _extent(within, grammar.tree.procedures[h].counts).taus
    large = int(taus.sum()) * len(grammar.choices[h].frames) > _LARGE
    return (_layout_of.__wrapped__ if large else _layout_of)(grammar, h, actions, moments)


@lru_cache(maxsize=1024)
def _layout_of(grammar: Grammar, h: int, actions: bytes, moments: bytes) -> _Layout:
    tree, choices = grammar.tree, grammar.choices[h]
    taken, frames = np.frombuffer(actions, np.int64), len(choices.frames)
    high, taus = _extent(grammar.within(h, taken), tree.procedures[h].counts)
    time, size = np.arange(len(high)), taus * frames
    row = len(high) + np.cumsum(size) - size
    place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    fresh = np.zeros(len(high), np.int64)
    time = np.concatenate([time, np.repeat(time, size)])
    counter = np.concatenate([fresh, place // max(frames, 1) + 1])
    frame = np.concatenate([fresh, place % max(frames, 1) + 1])
    # Rows that can be: fresh frames that have something to do, and others after a step that took the last action.
    reach, count = tree.reachable.numpy(), len(tree.procedures)
    own = tree.available[h, count : count + len(tree.actions)].numpy()
    led = np.stack([reach[h], *(own if entry is None else reach[entry[0]] for entry in choices.frames)])
    possible = np.pad(led, ((0, 0), (0, 1)))[
        frame, np.append(taken, len(tree.actions))[np.where(frame, time - 1, time)]
    ]
    possible &= (h > 0) | (frame > 0) | (time == 0)
    number = (np.frombuffer(moments, np.int64)[time] * (frames + 1) + frame) * (len(high) + 1) + counter
    kept = np.flatnonzero(possible)
    _, first, alike = np.unique(number[kept], return_index=True, return_inverse=True)
    which, one = np.full(len(time), len(first)), kept[first]
    which[kept] = alike
    return _Layout(high, taus, row, which, time[one], counter[one], frame[one])


def _alike(*parts: NDArray[Any]) -> NDArray[np.int64]:
    """Number rows ``[N, *]``, alike where they are the same bit by bit."""
    rows = np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts], 1)
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))
    return np.unique(whole[:, 0], return_inverse=True)[1]


class CallSpans:
    """The log-probabilities of all choices along some traces, and where they stand.

    Args:
        process: the call stack, a prior or a posterior.
        context: its context: features, tasks, and, for a posterior, actions.
        actions: long ``[B, T]``, the observed actions, null from a trace's end on.
        arguments: ``[B, T, W]``, their arguments.
        most_memory: bytes that the tables of a trace may take.
        merged: ask the networks once for all times of a trace that show the same, where the context has the
            observations. Expected numbers are then sums over these times.

    Attributes:
        weights: for every procedure h ``[U, asked, columns]``, log-probabilities of its choices (see :class:`Choices`)
            in every frame in which its networks are asked, those of all traces one after the other.
        offsets: for every procedure ``[B]``, where a trace's frames begin.
        rows: for every procedure the trace and the time of each frame, long ``[asked]``.
        lengths: how many actions each trace has.

    Raises:
        ValueError: for a real-valued latent field, actions beyond the root's reach (naming trace and step), or tables
            larger than ``most_memory``.
    """

    def __init__(
        self,
        process: CallStack,
        context: CallStackContext,
        actions: Tensor,
        arguments: Tensor,
        *,
        most_memory: float = 4e9,
        merged: bool = False,
    ):
        self.process, self.tree, self.grammar = process, process.tree, grammar_of(process.tree)
        self.most_memory = most_memory
        numbers = actions.cpu().numpy()
        null = len(self.tree.actions)
        self.lengths = (numbers != null).sum(1)
        reach = self.tree.reachable.numpy()
        self._verify_reached(numbers, reach[0])
        self._taken = [numbers[b, :n] for b, n in enumerate(self.lengths)]
        self._verify_memory(most_memory)
        shown = context.observations if merged else None
        self.layouts = [self._layouts(b, shown, numbers, arguments) for b in range(len(numbers))]
        self.weights: list[Tensor] = []
        self.offsets: list[NDArray[np.int64]] = []
        self.rows: list[tuple[Tensor, Tensor]] = []
        for h in range(len(self.tree.procedures)):
            self._weigh(h, context, actions, arguments)

    def _layouts(self, b: int, shown: Tensor | None, numbers: NDArray[np.int64], arguments: Tensor) -> list[_Layout]:
        """The layouts of all procedures along trace b."""
        n, taken = int(self.lengths[b]), self._taken[b].tobytes()
        called = acted = np.arange(n + 1)
        if shown is not None:
            # What the networks read after a call; after an action they read that too.
            now, given = numbers[b, : n + 1], arguments[b, : n + 1].detach().cpu().numpy()
            called = _alike(shown[b, : n + 1].detach().cpu().numpy(), now, given)
            acted = _alike(called, np.roll(now, 1), np.roll(given, 1, 0))
        moments = {True: acted.tobytes(), False: called.tobytes()}
        choices = self.grammar.choices
        return [_layout(self.grammar, h, taken, moments[choices[h].acts]) for h in range(len(choices))]

    def _verify_reached(self, actions: NDArray[np.int64], reached: NDArray[np.bool_]) -> None:
        bad = np.argwhere(~np.append(reached, True)[actions])
        if len(bad):
            trace, step = bad[0]
            raise ValueError(
                f"trace {trace}, step {step}: no procedure can reach the action "
                f"{self.tree.actions[actions[trace, step]].name!r}: the trace has probability zero"
            )

    def _verify_memory(self, most: float) -> None:
        for b in range(len(self.lengths)):
            if (size := self.table_bytes(b)) > most:
                raise ValueError(
                    f"trace {b}: exact sums over its {self.lengths[b]} actions take tables of {size / 1e9:.1f} GB, "
                    f"more than {most / 1e9:.1f} GB; procedures that count their steps and call others take the most. "
                    "Shorten the traces, leave out 'counts', or use StepwiseKL_ELBO"
                )

    def table_bytes(self, trace: int) -> int:
        """Return how many bytes a trace takes: the tables, the posterior's included, and the choices."""
        return _table_bytes(self.grammar, self._taken[trace].tobytes(), self.process.choose.weights[0].shape[1])

    # -- the weights --------------------------------------------------------------------------------------------

    def _weigh(self, h: int, context: CallStackContext, actions: Tensor, arguments: Tensor) -> None:
        """Ask the networks of procedure h for the log-probabilities of all its choices."""
        layouts = [layouts[h] for layouts in self.layouts]
        sizes = [len(layout.time) for layout in layouts]
        self.offsets.append(np.concatenate([[0], np.cumsum(sizes)[:-1]]))
        time, counter, frame = (
            torch.from_numpy(np.concatenate([getattr(layout, name) for layout in layouts])).to(context.features.device)
            for name in ("time", "counter", "frame")
        )
        trace = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(time.device)
        self.rows.append((trace, time))
        found = self._columns(h, context, actions, arguments, trace, time, counter, frame)
        self.weights.append(torch.where(found < _IMPOSSIBLE, NEVER, found))

    def _columns(
        self,
        h: int,
        context: CallStackContext,
        actions: Tensor,
        arguments: Tensor,
        trace: Tensor,
        time: Tensor,
        counter: Tensor,
        frame: Tensor,
    ) -> Tensor:
        """Return the log-probabilities ``[U, rows, columns]`` of the choices in some frames."""
        tree, grammar, choices, process = self.tree, self.grammar, self.grammar.choices[h], self.process
        device, dtype = context.features.device, context.features.dtype
        count, rows, width = len(tree.procedures), len(time), tree.arg_size
        # The call or the action of the last step, and what it handed back.
        blank = torch.zeros(width)
        entered = [(tree.null, blank), *((tree.null, blank) if entry is None else entry for entry in choices.frames)]
        last = torch.tensor([entry[0] for entry in entered], device=device)[frame]
        handed = torch.stack([entry[1] for entry in entered]).to(device, dtype)[frame]
        if choices.acts:
            acted, before = frame == 1, (time - 1).clamp(min=0)
            last = torch.where(acted, count + actions[trace, before], last)
            handed = torch.where(acted.unsqueeze(-1), arguments[trace, before], handed)
        given = context.task[trace].unsqueeze(0) if h == 0 else grammar.arguments[h].to(device, dtype).unsqueeze(1)
        head = torch.stack([torch.full_like(counter, h), counter, last], -1).to(dtype)
        values = len(given)
        frames = torch.cat(
            [head.expand(values, -1, -1), given.expand(values, rows, -1), handed.expand(values, -1, -1)], -1
        )
        every = time.expand(values, -1), trace.expand(values, -1)
        offered, log_probs, parameters = process.choices_of(h, frames, *every, context)
        place = torch.full((len(tree.choices) + 1,), -1, device=device)
        place[offered] = torch.arange(len(offered), device=device)
        now = actions[trace, time]
        chosen = torch.where(now < len(tree.actions), place[count + now], -1)
        acts = log_probs.gather(-1, chosen.clamp(min=0).expand(values, -1).unsqueeze(-1)).squeeze(-1)
        columns = [torch.where(chosen < 0, NEVER, acts)]
        columns += [log_probs[..., place[grammar.units[unit].procedure]] for unit, _ in choices.callees]
        columns += [log_probs[..., place[tree.null]]] * len(choices.returns)
        if parameters is not None:
            step = ProcedureStep(tree, log_probs, torch.full_like(every[0], h), parameters)
            observed = process.posterior and context.arguments is not None
            for placed in tree.placed_fields:
                if placed.of_action and not observed:
                    here = now == placed.slot - count
                    u = torch.where(here.unsqueeze(-1), placed_in(arguments[trace, time], placed), 0.0)
                    cost = torch.where(here, step._field_log_prob(placed, u.expand(values, -1, -1)), 0.0)
                    columns[0] = columns[0] + cost
                for k, (unit, _) in enumerate(choices.callees):
                    child, value = grammar.units[unit]
                    if child == placed.slot:
                        u = placed_in(grammar.arguments[child][value], placed).to(device, dtype)
                        columns[1 + k] = columns[1 + k] + step._field_log_prob(placed, u)
                if placed.slot == tree.null + h:
                    for r, returned in enumerate(choices.returns):
                        k = 1 + len(choices.callees) + r
                        u = placed_in(returned, placed).to(device, dtype)
                        columns[k] = columns[k] + step._field_log_prob(placed, u)
        return torch.stack(columns, -1)

    # -- the sums -----------------------------------------------------------------------------------------------

    def log_prob(self) -> Tensor:
        """Return ``log p(x)`` of every trace, ``[B]`` in nats, with its gradient."""
        return _Summed.apply(self, *self.weights)

    def counts(self) -> list[Tensor]:
        """Return the posterior's expected number of every choice, laid out as the weights."""
        return self._sum(counts=True)[1]

    def draw(self, number: int) -> list[list[NDArray[np.int64]]]:
        """Return ``number`` call traces of each trace, drawn from the posterior: see :func:`spans`."""
        return self._sum(draws=number)[2]

    def likeliest(self) -> tuple[Tensor, list[NDArray[np.int64]]]:
        """Return the log-probability ``[B]`` of each trace's likeliest call trace, and that call trace."""
        values, _, drawn = self._sum(draws=1, likeliest=True)
        return values, [one for (one,) in drawn]

    def _sum(
        self, *, counts: bool = False, draws: int = 0, likeliest: bool = False
    ) -> tuple[Tensor, list[Tensor], list[list[NDArray[np.int64]]]]:
        """Run the recursion on every trace, on the CPU; what it returns is in double precision.

        Raises:
            ValueError: where call traces are to be drawn and there are none; see :meth:`verify_possible`.
        """
        weights = [w.detach().to("cpu", torch.float64).contiguous().numpy() for w in self.weights]
        counted = [np.zeros_like(w) for w in weights]
        values, drawn = [], []
        seeds = (
            torch.randint(2**62, self.lengths.shape).tolist() if draws and not likeliest else [0] * len(self.lengths)
        )
        for b, n in enumerate(self.lengths):
            units, views = [], []
            for h, value in self.grammar.units:
                choices, layout = self.grammar.choices[h], self.layouts[b][h]
                asked = slice(self.offsets[h][b], self.offsets[h][b] + len(layout.time))
                callees = np.array(choices.callees, np.int64).reshape(-1, 2)
                units.append(
                    KernelUnit(
                        len(choices.frames),
                        len(choices.returns),
                        self.tree.procedures[h].counts,
                        choices.acts,
                        np.ascontiguousarray(callees[:, 0]),
                        np.ascontiguousarray(callees[:, 1]),
                        layout.high,
                        layout.taus,
                        layout.row,
                        layout.which,
                        np.append(weights[h][value, asked], np.full((1, choices.columns), NEVER), 0),
                    )
                )
                views.append(counted[h][value, asked])
            log_prob, found, traces = math.nan, None, list[NDArray[np.int64]]()
            if not any(np.isnan(unit.weight).any() for unit in units):
                log_prob, found, traces = spans(
                    int(n),
                    units,
                    self.tree.depth,
                    self.tree.max_steps(int(n)),
                    counts=counts,
                    likeliest=likeliest,
                    draws=draws,
                    seed=seeds[b],
                )
            for number, view in enumerate(views):
                view[:] = math.nan if found is None else found[number][:-1]
            values.append(log_prob)
            drawn.append(traces)
        if draws:
            self.verify_possible(torch.tensor(values))
        device = self.weights[0].device
        return (
            torch.tensor(values, dtype=torch.float64, device=device),
            [torch.from_numpy(one).to(device) for one in counted] if counts else [],
            drawn,
        )

    def verify_possible(self, log_prob: Tensor) -> None:
        """Refuse traces that no call stack explains.

        Raises:
            ValueError: naming the trace and the step, if its probability is zero, or the networks gave NaN.
        """
        for b in (~log_prob.isfinite()).nonzero()[:, 0].tolist():
            if math.isnan(log_prob[b]):
                raise ValueError(f"trace {b}: the networks gave NaN")
            for t in range(int(self.lengths[b])):
                here = [
                    weights[:, offset[b] + layout.rows_at(t), 0]
                    for weights, offset, layout in zip(self.weights, self.offsets, self.layouts[b], strict=True)
                ]
                if all((one <= NEVER).all() for one in here):
                    raise ValueError(f"trace {b}, step {t}: no procedure can take this action, its probability is zero")
            raise ValueError(f"trace {b}: no call stack can take its actions, its probability is zero")


class _Summed(torch.autograd.Function):
    """log p(x) by the recursion, whose derivatives by the weights are expected numbers of choices."""

    @staticmethod
    def forward(ctx: Any, spans: CallSpans, *weights: Tensor) -> Tensor:
        needed, dtype = any(ctx.needs_input_grad), weights[0].dtype
        values, counts, _ = spans._sum(counts=needed)
        ctx.traces = [trace for trace, _ in spans.rows]
        ctx.save_for_backward(*(count.to(dtype) for count in counts))
        return values.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # expected numbers would be taken for constants
            raise RuntimeError("the exact likelihood of call stacks has no second derivatives (create_graph=True)")
        (gradient,) = gradients
        counts = ctx.saved_tensors
        return None, *(count * gradient[trace].unsqueeze(-1) for count, trace in zip(counts, ctx.traces, strict=True))
