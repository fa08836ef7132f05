"""The declared structure of a control program: which procedure may call what, with which arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..._saved import writable

if TYPE_CHECKING:
    from .traces import Traces

__all__ = ["Action", "Field", "PlacedField", "Procedure", "ProcedureTree"]

_KINDS = ("onehot", "real")
_LEVELS = ("first", "second", "third", "fourth", "fifth")
_RESERVED = ("actions", "counts", "return", "returns")  # words of the text form


@dataclass(frozen=True)
class Field:
    """One named part of an argument or return value: a one-hot choice or a real vector of ``size`` numbers."""

    name: str
    kind: str
    size: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a field")
        if self.kind not in _KINDS:
            raise ValueError(f"field {self.name!r}: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.size < 1 or (self.kind == "onehot" and self.size < 2):
            raise ValueError(f"field {self.name!r}: {self.kind}[{self.size}] holds no choice")

    @property
    def parameters(self) -> int:
        """How many distribution parameters the field takes: logits, or a location and a log-scale each."""
        return self.size if self.kind == "onehot" else 2 * self.size

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}[{self.size}]"


class PlacedField(NamedTuple):
    """A field that a step may fill.

    Attributes:
        field: its name, kind and size.
        slot: which choice it belongs to: the choice's number for an argument, ``null + h`` for what h returns.
        of_action: whether it is the argument of an action, which a posterior observes.
        parameter: where its distribution parameters begin.
        place: where it begins in the vector of the argument.
    """

    field: Field
    slot: int
    of_action: bool
    parameter: int
    place: int


@dataclass(frozen=True)
class Procedure:
    """A procedure h: what it may call, its argument, its return value, and whether it sees its counter tau."""

    name: str
    calls: tuple[str, ...]
    argument: tuple[Field, ...] = ()
    returns: tuple[Field, ...] = ()
    counts: bool = False

    def __str__(self) -> str:
        text = self.name + _fields_text(self.argument) + (" counts" if self.counts else "")
        text += " -> " + ", ".join(self.calls)
        return text + (" returns " + _fields_text(self.returns) if self.returns else "")


@dataclass(frozen=True)
class Action:
    """An elementary action and its argument."""

    name: str
    argument: tuple[Field, ...] = ()

    def __str__(self) -> str:
        return self.name + _fields_text(self.argument)


def _fields_text(fields: Iterable[Field]) -> str:
    inside = ", ".join(map(str, fields))
    return f"({inside})" if inside else ""


def _width(fields: Iterable[Field]) -> int:
    return sum(field.size for field in fields)


class ProcedureTree:
    """An acyclic call graph over procedures and actions, with the kinds of their arguments and return values.

    The first procedure is the root. A PHP step chooses among ``K = H + A + 1`` choices, in this order: the ``H``
    procedures, the ``A`` actions, and the return (termination), written as null. Arguments and return values are
    vectors of a common width ``W``, the widest of them, padded with zeros on the right.

    The graph must be acyclic and every procedure must reach an action. Then a posterior that calls only what can
    lead to the next observed action never meets a dead end: a procedure is only called when the action is in its
    reachable set, so one of its children leads there too, each call goes one level down, and after its first
    step it may return. Construction proves the premises and refuses a graph that breaks them.

    Args:
        procedures: the procedures, the root first.
        actions: the actions, in the order in which traces number them. Some may be out of every procedure's
            reach; a trace that holds one is refused by :meth:`check`.
        max_depth: the deepest call stack allowed, in frames; defaults to what the graph needs.

    Raises:
        ValueError: naming the procedure, for a duplicate or unknown name, a cycle, a procedure that the root does
            not reach or that reaches no action, or a stack deeper than declared.

    Example:
        >>> tree = ProcedureTree.parse('''
        ...     actions: left, right
        ...     patrol(laps: real[1]) counts -> lap
        ...     lap -> left, right
        ... ''')
        >>> tree.depth, tree.choices
        (2, ('patrol', 'lap', 'left', 'right', 'return'))
        >>> ProcedureTree.parse(str(tree)) == tree
        True
    """

    def __init__(self, procedures: Sequence[Procedure], actions: Sequence[Action], *, max_depth: int | None = None):
        self.procedures = tuple(procedures)
        self.actions = tuple(actions)
        self._index = self._names()
        self.depth = self._check_graph()
        if max_depth is not None and self.depth > max_depth:
            raise ValueError(f"the procedures need a stack of {self.depth} frames, deeper than max_depth={max_depth}")

    # -- text -------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str, *, max_depth: int | None = None) -> ProcedureTree:
        """Read the text form: one line of actions, then one line a procedure, the root first.

        ``actions: NAME[(FIELDS)], ...`` and ``NAME[(FIELDS)] [counts] -> NAME, ... [returns (FIELDS)]``, where
        FIELDS are ``name: onehot[k]`` or ``name: real[k]``. Text after ``#`` is a comment.

        Raises:
            ValueError: naming the line that cannot be read.
        """
        procedures: list[Procedure] = []
        actions: list[Action] = []
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.split("#")[0].strip()
            if not line:
                continue
            try:
                if line.startswith("actions:"):
                    actions += [Action(*_parse_head(part)) for part in _split(line[len("actions:") :])]
                else:
                    procedures.append(_parse_procedure(line))
            except ValueError as error:
                raise ValueError(f"line {number}, {raw.strip()!r}: {error}") from None
        return cls(procedures, actions, max_depth=max_depth)

    @classmethod
    def layered(
        cls, actions: Sequence[str], widths: Sequence[int], *, argument: str = "", counts: bool = True
    ) -> ProcedureTree:
        """Return a call graph that knows the actions and the number of levels, and nothing else of a task.

        The root calls any procedure of the first level. A procedure may take any action and call any of the next
        level.

        Args:
            actions: names of the actions, with their fields if they have any, in order.
            widths: how many procedures there are on each level below the root.
            argument: fields of the root.
            counts: whether those below the root see their counters, as the root does. Exact sums over call stacks
                take far less time if they do not.

        Raises:
            ValueError: if there is no level, or a level or the actions are none.

        Example:
            >>> print(ProcedureTree.layered(["left", "right"], [2, 1]))
            actions: left, right
            main counts -> first1, first2
            first1 counts -> second1, left, right
            first2 counts -> second1, left, right
            second1 counts -> left, right
        """
        if not 1 <= len(widths) <= len(_LEVELS) or min(widths) < 1:
            raise ValueError(
                f"a layered tree has 1 to {len(_LEVELS)} levels of 1 procedure or more, got {list(widths)}"
            )
        acts = [Action(*_parse_head(action)) for action in actions]
        levels = [[f"{name}{n + 1}" for n in range(width)] for name, width in zip(_LEVELS, widths, strict=False)]
        procedures = [Procedure("main", tuple(levels[0]), _parse_fields(argument), counts=True)]
        for level, below in zip(levels, [*levels[1:], []], strict=True):
            calls = (*below, *(act.name for act in acts))
            procedures += [Procedure(name, calls, counts=counts) for name in level]
        return cls(procedures, acts)

    def __str__(self) -> str:
        head = "actions: " + ", ".join(map(str, self.actions))
        return "\n".join([head, *map(str, self.procedures)])

    def __repr__(self) -> str:
        return f"ProcedureTree.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProcedureTree) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    # -- sizes and numbers --------------------------------------------------------------------------------------

    @property
    def root(self) -> Procedure:
        """The procedure that the program starts with."""
        return self.procedures[0]

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """Names of the ``K`` choices, in order."""
        return (*(p.name for p in self.procedures), *(a.name for a in self.actions), "return")

    @property
    def null(self) -> int:
        """The choice that terminates a procedure."""
        return len(self.choices) - 1

    @cached_property
    def arg_size(self) -> int:
        """Width ``W`` of the vectors that hold arguments and return values."""
        return max((_width(fields) for fields in self.slots), default=0)

    @cached_property
    def action_arg_size(self) -> int:
        """Width ``V`` of the observed arguments of actions."""
        return max((_width(action.argument) for action in self.actions), default=0)

    @cached_property
    def slots(self) -> tuple[tuple[Field, ...], ...]:
        """Fields of every slot that a step may fill: an argument a choice, then a return value a procedure."""
        return (
            *(p.argument for p in self.procedures),
            *(a.argument for a in self.actions),
            *(p.returns for p in self.procedures),
        )

    @cached_property
    def placed_fields(self) -> tuple[PlacedField, ...]:
        """Every field that a step may fill; the root's argument is not one of them, as nothing calls the root."""
        found, parameter = [], 0
        for slot, fields in enumerate(self.slots):
            if slot == 0:
                continue
            place = 0
            for field in fields:
                of_action = len(self.procedures) <= slot < self.null
                found.append(PlacedField(field, slot, of_action, parameter, place))
                parameter, place = parameter + field.parameters, place + field.size
        return tuple(found)

    @cached_property
    def has_latent_reals(self) -> bool:
        """Whether a call passes, or a return hands back, a real vector."""
        return any(placed.field.kind == "real" and not placed.of_action for placed in self.placed_fields)

    def max_steps(self, actions: int) -> int:
        """Return the most PHP steps of a call trace that takes ``actions`` actions and then returns to the end.

        A procedure that is called takes an action, or calls one that does, before it returns. So between two
        actions at most ``depth - 1`` frames are left and then as many entered; a chain of procedures attains this.
        """
        return actions * (2 * self.depth - 1) + 1

    def least_steps(self, actions: Tensor) -> Tensor:
        """Return a number of PHP steps that every call trace with these actions needs.

        Args:
            actions: long ``[B, T]``, ended and padded by null, as in :class:`Traces`.

        Returns:
            Long ``[B]``: the actions, a call and a return for every frame on the way to the deepest one, and the
            root's return.
        """
        h, a = len(self.procedures), len(self.actions)
        frames = torch.full((h,), h + 1)  # the fewest frames from the root's to that of each procedure
        frames[0] = 1
        for procedure in self._order:
            children = self.available[procedure, :h]
            frames[children] = frames[children].clamp(max=int(frames[procedure]) + 1)
        takes = self.available[:, h : h + a]
        nearest = torch.where(takes, frames.unsqueeze(1), h + 1).min(0).values
        nearest = torch.cat([nearest, nearest.new_ones(1)]).to(actions.device)
        return (actions < a).sum(1) + 2 * (nearest[actions].max(1).values - 1) + 1

    def index(self, name: str) -> int:
        """Return the number of a procedure or action among the choices."""
        if name not in self._index:
            raise ValueError(f"no procedure or action is called {name!r}")
        return self._index[name]

    # -- masks --------------------------------------------------------------------------------------------------

    @cached_property
    def available(self) -> Tensor:
        """Bool ``[H, K]``: what each procedure may choose (the return included)."""
        table = torch.zeros(len(self.procedures), len(self.choices), dtype=torch.bool)
        for h, procedure in enumerate(self.procedures):
            table[h, [self._index[name] for name in procedure.calls]] = True
        table[:, self.null] = True
        return table

    @cached_property
    def reachable(self) -> Tensor:
        """Bool ``[H, A]``: which actions a procedure, or anything it calls, can take."""
        h, a = len(self.procedures), len(self.actions)
        reach = self.available[:, h : h + a].clone()
        for procedure in reversed(self._order):
            for child in self.available[procedure, :h].nonzero()[:, 0].tolist():
                reach[procedure] |= reach[child]
        return reach

    @cached_property
    def consistent(self) -> Tensor:
        """Bool ``[H, A + 1, K]``: what a procedure may choose so that the next action can still be the given one.

        The last row of the middle dimension is null, the end of the trace: there everything returns. Before the
        end, the root may not.
        """
        h, a = len(self.procedures), len(self.actions)
        leads = torch.cat([self.reachable.T, torch.eye(a, dtype=torch.bool)], 1)  # [A, H + A]
        table = torch.zeros(h, a + 1, len(self.choices), dtype=torch.bool)
        table[:, :a, : h + a] = self.available[:, None, : h + a] & leads
        table[1:, :a, self.null] = True
        table[:, a, self.null] = True
        return table

    # -- checks -------------------------------------------------------------------------------------------------

    def check(self, traces: Traces) -> None:
        """Refuse traces that no call stack of this tree can produce.

        Raises:
            ValueError: naming trace and step, for another number of actions, an action that the root cannot
                reach, or a task or arguments of the wrong width or kind.
        """
        if traces.num_actions != len(self.actions):
            raise ValueError(f"the traces have {traces.num_actions} actions, the tree has {len(self.actions)}")
        if traces.task.shape[1] != _width(self.root.argument):
            raise ValueError(
                f"the root {self.root.name!r} takes an argument of width {_width(self.root.argument)}, "
                f"the traces' task has width {traces.task.shape[1]}"
            )
        reached = torch.cat([self.reachable[0], torch.ones(1, dtype=torch.bool)])
        bad = ~reached.to(traces.actions.device)[traces.actions]
        if bad.any():
            trace, step = bad.nonzero()[0].tolist()
            name = self.actions[int(traces.actions[trace, step])].name
            raise ValueError(f"trace {trace}, step {step}: no procedure can reach the action {name!r}")
        for field, part in _parts(self.root.argument):
            wrong = ~_holds(field, traces.task[:, part])
            if wrong.any():
                trace = int(wrong.nonzero()[0])
                raise ValueError(
                    f"trace {trace}: the argument of the root {self.root.name!r} must hold {field}, "
                    f"got {traces.task[trace, part].tolist()}"
                )
        self._check_arguments(traces)

    def _check_arguments(self, traces: Traces) -> None:
        if traces.arguments.shape[-1] != self.action_arg_size:
            raise ValueError(
                f"the actions take arguments of width {self.action_arg_size}, "
                f"the traces hold width {traces.arguments.shape[-1]}"
            )
        slots = torch.where(traces.actions < len(self.actions), len(self.procedures) + traces.actions, -1)
        if fault := self.fault(slots, traces.arguments):
            (trace, step), why = fault
            raise ValueError(f"trace {trace}, step {step}: {why}")

    def fault(self, slots: Tensor, values: Tensor) -> tuple[list[int], str] | None:
        """Return the place of an argument or return value that is not one, and why; None if there is none.

        Args:
            slots: long ``[...]``, what is filled, a number of :attr:`slots`; -1 for nothing.
            values: ``[..., W]``, zero beyond the fields of the slot.
        """
        for slot, fields in enumerate(self.slots):
            name = self.procedures[slot - self.null].name if slot >= self.null else self.choices[slot]
            what = f"the {'return value' if slot >= self.null else 'argument'} of {name!r} must hold"
            width = _width(fields)
            parts = [(str(field), part, _holds(field, values[..., part])) for field, part in _parts(fields)]
            rest = slice(width, None)
            parts.append((f"zeros beyond its {width} numbers", rest, (values[..., rest] == 0).all(-1)))
            for field, part, right in parts:
                if (bad := (slots == slot) & ~right).any():
                    place = bad.nonzero()[0].tolist()
                    return place, f"{what} {field}, got {values[(*place, part)].tolist()}"
        return None

    def _names(self) -> dict[str, int]:
        if not self.procedures:
            raise ValueError("a tree needs at least one procedure")
        if not self.actions:
            raise ValueError("a tree needs at least one action")
        index: dict[str, int] = {}
        named: tuple[Procedure | Action, ...] = (*self.procedures, *self.actions)
        for number, item in enumerate(named):
            if not re.fullmatch(r"\w+", item.name) or item.name in _RESERVED:
                raise ValueError(f"{item.name!r} cannot be a name")
            if item.name in index:
                raise ValueError(f"duplicate name {item.name!r}")
            index[item.name] = number
        for procedure in self.procedures:
            for name in procedure.calls:
                if name not in index:
                    raise ValueError(f"procedure {procedure.name!r} calls {name!r}, which is not declared")
            if len(set(procedure.calls)) < len(procedure.calls):
                raise ValueError(f"procedure {procedure.name!r} lists a call twice")
        return index

    def _check_graph(self) -> int:
        """Check the graph; return the deepest stack. ``_order`` is left with callers before callees."""
        children = {p.name: [c for c in p.calls if self._index[c] < len(self.procedures)] for p in self.procedures}
        finished: list[str] = []
        depth: dict[str, int] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                cycle = " -> ".join((*path[path.index(name) :], name))
                raise ValueError(f"the procedures call each other in a cycle: {cycle}")
            if name in depth:
                return
            for child in children[name]:
                visit(child, (*path, name))
            depth[name] = 1 + max((depth[child] for child in children[name]), default=0)
            finished.append(name)

        visit(self.root.name, ())
        for procedure in self.procedures:
            if procedure.name not in depth:
                raise ValueError(f"the root {self.root.name!r} never reaches procedure {procedure.name!r}")
        self._order = [self._index[name] for name in reversed(finished)]
        for h, procedure in enumerate(self.procedures):
            if not self.reachable[h].any():
                raise ValueError(f"procedure {procedure.name!r} reaches no action: a call to it could never return")
        return depth[self.root.name]


def _parts(fields: Iterable[Field]) -> list[tuple[Field, slice]]:
    """Each field with its place in the vector."""
    parts, start = [], 0
    for field in fields:
        parts.append((field, slice(start, start + field.size)))
        start += field.size
    return parts


def _holds(field: Field, values: Tensor) -> Tensor:
    """Which rows ``[..., size]`` are values of the field."""
    if field.kind == "onehot":
        return ((values == 0) | (values == 1)).all(-1) & (values.sum(-1) == 1)
    return values.isfinite().all(-1)


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _parse_fields(text: str) -> tuple[Field, ...]:
    fields: list[Field] = []
    for part in _split(text):
        match = re.fullmatch(r"(\w+)\s*:\s*(\w+)\[(\d+)\]", part)
        if not match:
            raise ValueError(f"a field is written 'name: onehot[k]' or 'name: real[k]', got {part!r}")
        if any(field.name == match[1] for field in fields):
            raise ValueError(f"two fields are called {match[1]!r}")
        fields.append(Field(match[1], match[2], int(match[3])))
    return tuple(fields)


def _parse_head(text: str) -> tuple[str, tuple[Field, ...]]:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", text.strip())
    if not match:
        raise ValueError(f"expected a name with optional (fields), got {text.strip()!r}")
    return match[1], _parse_fields(match[2] or "")


def _parse_procedure(line: str) -> Procedure:
    if "->" not in line:
        raise ValueError("a procedure is written 'name -> child, child'")
    head, body = line.split("->", 1)
    counts = bool(re.search(r"\bcounts\s*$", head))
    name, argument = _parse_head(re.sub(r"\bcounts\s*$", "", head))
    body, *returns = re.split(r"\breturns\b", body)
    if len(returns) > 1:
        raise ValueError("a procedure has one list of returns")
    fields = _parse_fields(returns[0].strip().removeprefix("(").removesuffix(")")) if returns else ()
    calls = tuple(_split(body))
    if not calls:
        raise ValueError("a procedure must be able to call something")
    return Procedure(name, calls, argument, fields, counts)


writable("procedure tree", ProcedureTree, str, ProcedureTree.parse)
