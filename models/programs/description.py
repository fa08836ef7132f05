"""What a learnt program has become, in words: what each procedure may call, what it reads, and what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .call_trace import CallTrace
from .procedure_tree import ProcedureTree
from .traces import Traces

if TYPE_CHECKING:
    from .control_program import ControlProgram

__all__ = ["bodies", "describe"]

_SHOWN, _WIDTH = 3, 100  # bodies of a procedure, and characters of one


def describe(
    program: ControlProgram,
    demonstrations: Traces | None = None,
    *,
    inputs: Sequence[str] | None = None,
    least: float = 0.1,
) -> str:
    """Return what `ControlProgram.describe` does."""
    tree = program.tree
    names = _input_names(program) if inputs is None else [*inputs]
    if len(names) != len(program.groups):
        raise ValueError(f"the procedures read {len(program.groups)} inputs of an observation, got {len(names)} names")
    names += ["its counter", "its last call", *(["its argument", "what came back"] if tree.arg_size else [])]
    done: dict[str, Counter[str]] = {}
    if demonstrations is not None:
        with torch.no_grad():
            calls = program.prior(demonstrations).greedy()
        done = bodies(CallTrace.batch(tree, calls))
    parts = []
    for h, procedure in enumerate(tree.procedures):
        read = [(name, norm) for name, norm in zip(names, _strengths(program, h), strict=True) if norm >= max(least, 0)]
        read.sort(key=lambda pair: -pair[1])
        lines = [str(procedure), "  reads " + (", ".join(f"{name} {norm:.2f}" for name, norm in read) or "nothing")]
        if demonstrations is not None:
            found = done.get(procedure.name, Counter())
            times = found.total()
            shown = [f"{_cut(body)}  ({100 * n / times:.0f}% of {times})" for body, n in found.most_common(_SHOWN)]
            shown = shown or ["nothing from which it returned"]
            lines += [f"  {'does' if row == 0 else '  or'}  {text}" for row, text in enumerate(shown)]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def bodies(traces: Sequence[CallTrace]) -> dict[str, Counter[str]]:
    """Return, for every procedure, what its runs did from call to return, and how often; repetitions are folded.

    A run that did not return is left out. ``a+`` stands for a more than once in a row, ``(a, b)+`` for the pair.
    """
    found: dict[str, Counter[str]] = {}
    for trace in traces:
        tree, stack = trace.tree, [(trace.tree.root.name, list[str]())]
        for choice, argument in trace.steps:
            if choice == tree.null:
                name, body = stack.pop()
                found.setdefault(name, Counter())[", ".join(_folded(body))] += 1
                continue
            stack[-1][1].append(_called(tree, choice, argument))
            if choice < len(tree.procedures):
                stack.append((tree.choices[choice], []))
    return found


def _folded(items: list[str]) -> list[str]:
    """Replace repetitions by one of them, short ones first."""
    size = 1
    while 2 * size <= len(items):
        folded, place = list[str](), 0
        while place < len(items):
            block, end = items[place : place + size], place + size
            while items[end : end + size] == block:
                end += size
            if end > place + size:
                folded.append(f"{block[0]}+" if size == 1 else f"({', '.join(block)})+")
            else:
                folded.append(items[place])
                end = place + 1
            place = end
        items, size = folded, size + 1
    return items


def _cut(body: str) -> str:
    return body if len(body) <= _WIDTH else body[: _WIDTH - 3] + "..."


def _called(tree: ProcedureTree, choice: int, argument: Sequence[float]) -> str:
    """A choice with the number of each one-hot field of its argument; real ones differ from run to run."""
    texts, place = [], 0
    for field in tree.slots[choice]:
        part = argument[place : place + field.size]
        texts += [f"{field.name} {part.index(max(part))}"] if field.kind == "onehot" else []
        place += field.size
    return tree.choices[choice] + (f"({', '.join(texts)})" if texts else "")


def _strengths(program: ControlProgram, h: int) -> list[float]:
    """By what norm of weights a procedure reads each group of its inputs; -1 where it has no such input.

    Counted are the first layers of its networks, of its choice and of the arguments and return values that it gives,
    and of them the inputs that can be set and the outputs that are used.
    """
    tree, process = program.tree, program.process
    procedure, available, width = tree.procedures[h], tree.available[h], torch.arange(tree.arg_size)
    calls = [tree.index(name) for name in procedure.calls]
    # What comes back of a call: an action's own argument, or what the procedure returns.
    back = [tree.slots[call if call >= len(tree.procedures) else tree.null + call] for call in calls]
    seen = torch.cat(
        [
            torch.ones(process.feature_size, dtype=torch.bool),
            torch.tensor([procedure.counts]),
            available,  # the return stands for no call yet
            width < sum(field.size for field in procedure.argument),
            width < max(sum(field.size for field in fields) for fields in back),
        ]
    )
    squares = torch.zeros(len(seen))
    own = {*calls, tree.null + h}
    used = [placed.slot in own for placed in tree.placed_fields for _ in range(placed.field.parameters)]
    for networks, outputs in ((process.choose, available), (process.argue, torch.tensor(used, dtype=torch.bool))):
        if networks is not None and outputs.any():
            first = networks.weights[0][h].detach().cpu()
            if len(networks.weights) == 1:
                first = first[:, outputs]
            squares += first.square().sum(1)
    groups = process.group_widths(program.groups)
    parts = zip(squares.split(groups), seen.split(groups), strict=True)
    return [float(square[can].sum().sqrt()) if can.any() else -1.0 for square, can in parts]


def _input_names(program: ControlProgram) -> list[str]:
    """Names of the parts of an encoded observation: those of a `FieldEncoder` count up within their vocabulary."""
    fields = getattr(program.encoder, "fields", None)
    kinds = ["input"] * len(program.groups) if fields is None else [name or "number" for name, _ in fields]
    return [f"{kind} {kinds[:place].count(kind) + 1}" for place, kind in enumerate(kinds)]
