"""Random small control programs and traces, and exact sums over their call stacks by listing all states."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrocontrol.inference import EnumeratedStates, enumerate_states
from pyrocontrol.inference.objectives.call_spans import CallSpans, grammar_of
from pyrocontrol.models import Action, CallStack, CallStackContext, Field, Procedure, ProcedureTree, Sequence


class Case(NamedTuple):
    """A call stack and one trace or more."""

    process: CallStack
    context: CallStackContext
    actions: Tensor
    arguments: Tensor

    @property
    def tree(self) -> ProcedureTree:
        """The call graph."""
        return self.process.tree

    @property
    def lengths(self) -> Tensor:
        """Steps of the traces, null counted."""
        return (self.actions < len(self.tree.actions)).sum(1) + 1

    def check(self, traces: Case) -> None:
        """Whatever it is, it may be explained."""

    def prior(self, traces: Any = None) -> Sequence:
        """The call stacks before any action is seen."""
        return Sequence(self.process, self.context, self.tree.max_steps(self.actions.shape[1] - 1))

    def spans(self) -> CallSpans:
        """The recursion on these traces."""
        return CallSpans(self.process, self.context, self.actions, self.arguments)

    def enumerated(self) -> EnumeratedStates:
        """The sum over all stacks, listed."""
        tree, process = self.process.tree, self.process
        steps = tree.max_steps(self.actions.shape[1] - 1)
        seen = Observed(process, self.context, self.actions, self.arguments)
        return enumerate_states(Sequence(seen, seen.together, steps), seen.evidence)


class Observed(CallStack):
    """A call stack that shares another's networks, with the traces in its context."""

    def __init__(self, process: CallStack, context: CallStackContext, actions: Tensor, arguments: Tensor):
        super().__init__(process.tree, process.feature_size)
        self.choose, self.argue, self.posterior = process.choose, process.argue, process.posterior
        self.together = context, actions, arguments
        grammar, tree = grammar_of(self.tree), self.tree
        count = len(tree.procedures)
        found = [(h, u) for h in range(1, count) for u in grammar.arguments[h]]
        found += [(count + a, torch.zeros(tree.arg_size)) for a in range(len(tree.actions))]
        self.returned = [grammar.choices[h].returns for h in range(count)]
        widths = {tuple(u.tolist()) for returns in self.returned for u in returns}
        found += [(tree.null, torch.tensor(u)) for u in sorted(widths)]
        self.values = torch.stack([torch.cat([torch.tensor([float(choice)]), u]) for choice, u in found]).double()
        self.possible = torch.zeros(count, len(self.values), dtype=torch.bool)
        for h in range(count):
            for v, value in enumerate(self.values):
                own = value[0] != tree.null or any(torch.equal(u.double(), value[1:]) for u in self.returned[h])
                self.possible[h, v] = own

    def initial(self, context: Any) -> Any:
        return super().initial(context[0])

    def live(self, state: Any, context: Any) -> Tensor:
        return super().live(state, context[0])

    def advance(self, state: Any, z: Tensor, context: Any) -> Any:
        return super().advance(state, self.filled(state, z, context), context[0])

    def conditional(self, state: Any, context: Any) -> Any:
        return Listed(self, state, context)

    def filled(self, state: Any, z: Tensor, context: Any) -> Tensor:
        """Values with the observed arguments of actions."""
        rows = torch.arange(len(z))
        acts = (z[:, 0] >= len(self.tree.procedures)) & (z[:, 0] < self.tree.null)
        u = torch.where(acts.unsqueeze(-1), context[2][rows, state.time], z[:, 1:])
        return torch.cat([z[:, :1], u], -1)

    def evidence(self, state: Any, z: Tensor, context: Any, step: int) -> Tensor:
        """Zero for what agrees with the trace."""
        tree, rows = self.tree, torch.arange(len(z))
        choice, now = z[:, 0].long(), context[1][rows, state.time]
        acts = (choice >= len(tree.procedures)) & (choice < tree.null)
        good = ~acts | (choice - len(tree.procedures) == now)
        last = (choice == tree.null) & (state.depth == 1)
        good &= ~last | (now == len(tree.actions))
        good &= (choice >= len(tree.procedures)) | (now < len(tree.actions))
        return torch.where(good, 0.0, -torch.inf)


class Listed:
    """The steps of some states, with their values listed."""

    def __init__(self, process: Observed, state: Any, context: Any):
        self.process, self.state, self.context = process, state, context
        self.step = CallStack.conditional(process, state, context[0])

    def enumerate_support(self, expand: bool) -> Tensor:
        assert expand
        return self.process.values.unsqueeze(1).expand(-1, len(self.state.depth), -1)

    def log_prob(self, values: Tensor) -> Tensor:
        rows = [
            torch.where(
                self.process.possible[self.state.frame[:, 0].long(), v],
                self.step.log_prob(self.process.filled(self.state, value, self.context)),
                -torch.inf,
            )
            for v, value in enumerate(values)
        ]
        return torch.stack(rows)


def random_tree(draw: random.Random, levels: int, *, fields: bool = True) -> ProcedureTree:
    """A tree of so many levels, with counters, one-hot arguments and return values where they fall."""

    def some(chance: float, name: str) -> tuple[Field, ...]:
        if not fields or draw.random() > chance:
            return ()
        return tuple(Field(f"{name}{i}", "onehot", 2) for i in range(draw.choice([1, 1, 2])))

    actions = [
        Action(f"a{i}", draw.choice([(), (), (Field("x", draw.choice(["onehot", "real"]), 2),)]) if fields else ())
        for i in range(draw.randint(1, 3))
    ]
    count = levels + draw.randint(0, 1)
    procedures = []
    for h in range(count):
        calls = [f"p{h + 1}"] if h + 1 < levels else []
        if h == 0 and count > levels:
            calls.append(f"p{levels}")  # one more leaf
        if h < levels - 2 and draw.random() < 0.4:
            calls.append(f"p{levels - 1}")
        own = draw.sample([a.name for a in actions], draw.randint(0 if calls else 1, len(actions)))
        argument = (Field("n", "real", 1),) if h == 0 else some(0.4, "u")
        procedures.append(
            Procedure(f"p{h}", tuple(dict.fromkeys(calls + own)), argument, some(0.3, "r"), draw.random() < 0.5)
        )
    return ProcedureTree(procedures, actions)


def random_case(
    seed: int, *, levels: int | None = None, longest: int = 4, traces: int = 2, fields: bool = True
) -> Case:
    """A random tree with random weights, and traces that it can take; all in double precision."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    tree = random_tree(draw, levels or draw.randint(2, 5), fields=fields)
    process = CallStack(tree, 2, hidden=(4,), argument_hidden=(3,)).double()
    for parameter in process.parameters():
        parameter.data.normal_()
    features = torch.randn(traces, longest + 1, 2, dtype=torch.float64)
    task = F.pad(torch.randn(traces, 1, dtype=torch.float64), (0, tree.arg_size - 1))
    reached = tree.reachable[0].nonzero()[:, 0].tolist()
    actions = torch.full((traces, longest + 1), len(tree.actions))
    arguments = torch.zeros(traces, longest + 1, tree.arg_size, dtype=torch.float64)
    for b in range(traces):
        for t in range(draw.randint(1, longest) if b else longest):
            actions[b, t] = a = draw.choice(reached)
            for field in tree.actions[a].argument:
                arguments[b, t, :2] = torch.randn(2) if field.kind == "real" else torch.eye(2)[draw.randint(0, 1)]
    return Case(process, CallStackContext(features, task), actions, arguments)
