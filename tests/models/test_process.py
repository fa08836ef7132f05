"""One set of laws that every process obeys, and what sequences do inside Pyro."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.utils import _pytree as pytree

from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE
from pyrocontrol.inference import StepwiseKL_ELBO
from pyrocontrol.models import (
    CallStack,
    CallStackContext,
    DiscreteMemory,
    Emission,
    GaussianMemory,
    Memory,
    MemoryContext,
    ProcedureTree,
    Process,
    Sequence,
    at_step,
)

REAL_TREE = """\
actions: left, right, push(force: real[1])
main(goal: real[2]) counts -> reach, push
reach(target: real[2]) counts -> left, right, probe returns (error: real[1])
probe(side: onehot[2]) -> left, right, push returns (seen: onehot[2])
"""
BATCH = 3


class Features(NamedTuple):
    """Context of the small processes: numbers a row, and the step at which a terminating one must stop."""

    x: Tensor
    limit: Tensor


class Chain(Process):
    """A Markov chain on three states, which the context biases."""

    support = constraints.integer_interval(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 3))
        self.weight = nn.Parameter(torch.randn(2, 3))

    def initial(self, context: Features) -> Tensor:
        return context.x.new_zeros(len(context.x), dtype=torch.long)

    def conditional(self, state: Tensor, context: Features) -> dist.Categorical:
        bias = context.x @ self.weight
        return dist.Categorical(logits=self.table[state] + (bias.unsqueeze(1) if state.dim() == 2 else bias))

    def advance(self, state: Tensor, z: Tensor, context: Features) -> Tensor:
        return z


class Drift(Process):
    """A reparametrised Gaussian chain whose state is a NamedTuple's worth of two tensors."""

    has_rsample = True
    event_shape = torch.Size((2,))
    support = constraints.real_vector

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.randn(2, 2) / 2)
        self.log_scale = nn.Parameter(torch.randn(2) / 4)

    def initial(self, context: Features) -> dict[str, Tensor]:
        return {"place": context.x, "clock": context.x.new_zeros(len(context.x))}

    def conditional(self, state: dict[str, Tensor], context: Features) -> dist.TorchDistribution:
        place, clock = state["place"], state["clock"].unsqueeze(-1)
        return dist.Normal(place @ self.rate + clock / 10, self.log_scale.exp().expand_as(place)).to_event(1)

    def advance(self, state: dict[str, Tensor], z: Tensor, context: Features) -> dict[str, Tensor]:
        return {"place": z.tanh(), "clock": state["clock"] + 1}


class Dice(Process):
    """Rolls until face 0, which becomes certain at the context's limit."""

    terminates = True
    support = constraints.integer_interval(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(3) / 2)

    def initial(self, context: Features) -> Tensor:
        return context.x.new_zeros(len(context.x), 2)  # rolls, and whether face 0 fell

    def conditional(self, state: Tensor, context: Features) -> dist.Categorical:
        limit = context.limit.unsqueeze(1) if state.dim() == 3 else context.limit
        sure = (state[..., 0] >= limit - 1).unsqueeze(-1)
        bias = context.x if state.dim() == 2 else context.x.unsqueeze(1)
        logits = self.logits + nn.functional.pad(bias, (0, 1))
        return dist.Categorical(logits=torch.where(sure, logits.new_tensor([0.0, -1e9, -1e9]), logits))

    def advance(self, state: Tensor, z: Tensor, context: Features) -> Tensor:
        return torch.stack([state[:, 0] + 1, (z == 0).to(state.dtype)], -1)

    def live(self, state: Tensor, context: Features) -> Tensor:
        return state[:, 1] == 0


class Decay(Process):
    """A reparametrised process of positive values, which ends at the context's limit."""

    terminates, has_rsample, end_is_discrete, padding = True, True, True, 0.25
    support = constraints.positive

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(2) / 4)

    def initial(self, context: Features) -> tuple[Tensor, Tensor]:
        return 1 + context.x[:, 0].abs(), torch.zeros_like(context.limit)  # the value, and how many steps there were

    def conditional(self, state: tuple[Tensor, Tensor], context: Features) -> dist.LogNormal:
        value, _ = state
        return dist.LogNormal(value.log() - 0.5 - self.rate[0], 0.1 + self.rate[1].expand_as(value))

    def advance(self, state: tuple[Tensor, Tensor], z: Tensor, context: Features) -> tuple[Tensor, Tensor]:
        return z, state[1] + 1

    def live(self, state: tuple[Tensor, Tensor], context: Features) -> Tensor:
        return state[1] < context.limit


def lives(sequence: Sequence, z: Tensor) -> Tensor:
    """Which steps of a flat batch exist, as many as ``z`` has."""
    live = sequence.steps(z).live
    return nn.functional.pad(live, (0, z.shape[1] - live.shape[1]))


class Case(NamedTuple):
    """A process, another with the same states, a context of three rows, and a horizon."""

    process: Process
    other: Process
    context: Any
    horizon: int

    def sequence(self, process: Process | None = None, **options: Any) -> Sequence:
        return Sequence(process or self.process, self.context, self.horizon, **options)


def features(dtype: torch.dtype) -> Features:
    return Features(torch.randn(BATCH, 2, dtype=dtype), torch.tensor([4, 2, 6]))


def small(kind: type[Process], horizon: int) -> Callable[[torch.dtype], Case]:
    def make(dtype: torch.dtype) -> Case:
        return Case(kind().to(dtype), kind().to(dtype), features(dtype), horizon)

    return make


def stack_context(tree: ProcedureTree, times: int, width: int, dtype: torch.dtype) -> CallStackContext:
    """Random features, task, and actions of lengths 1, 2, ... within the tree's reach."""
    reach = tree.reachable[0].nonzero()[:, 0]
    actions = reach[torch.randint(len(reach), (BATCH, times))]
    actions[torch.arange(times) >= (1 + torch.arange(BATCH) * (times - 2) // 2).unsqueeze(1)] = len(tree.actions)
    arguments = torch.zeros(BATCH, times, tree.arg_size, dtype=dtype)
    for a, action in enumerate(tree.actions):
        place = 0
        for field in action.argument:
            rows = (actions == a).nonzero(as_tuple=True)
            arguments[(*rows, torch.full_like(rows[0], place))] = 1.0  # a one-hot, or the real number 1
            place += field.size
    task = torch.zeros(BATCH, tree.arg_size, dtype=dtype)
    task[:, : sum(f.size for f in tree.root.argument)] = 0.5
    return CallStackContext(torch.randn(BATCH, times, width, dtype=dtype), task, actions, arguments)


def stack(text: str, posterior: bool) -> Callable[[torch.dtype], Case]:
    def make(dtype: torch.dtype) -> Case:
        tree = ProcedureTree.parse(text)
        context = stack_context(tree, 5, 4, dtype)
        pair = [CallStack(tree, 4, hidden=(5,), posterior=posterior) for _ in range(2)]
        for process in pair:
            with torch.no_grad():
                for parameter in process.parameters():
                    parameter.mul_(1.5)
                process.choose.biases[-1][:, tree.null] += 2.0  # so that the prior soon returns
        if not posterior:
            context = context._replace(actions=None, arguments=None)
        return Case(pair[0].to(dtype), pair[1].to(dtype), context, tree.max_steps(4) if posterior else 400)

    return make


def memory(kind: type[Memory]) -> Callable[[torch.dtype], Case]:
    def make(dtype: torch.dtype) -> Case:
        context = MemoryContext(torch.randn(BATCH, 8, 2, dtype=dtype), torch.tensor([4, 1, 6]))
        return Case(kind(2, 3, (5,)).to(dtype), kind(2, 3, (5,), keep=1.0).to(dtype), context, 8)

    return make


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "chain": small(Chain, 5),
    "drift": small(Drift, 5),
    "dice": small(Dice, 9),
    "decay": small(Decay, 60),
    "discrete memory": memory(DiscreteMemory),
    "gaussian memory": memory(GaussianMemory),
    # Call stacks without arguments, with those of actions, and with real ones that are latent.
    "posterior": stack(BUBBLE_SORT_TREE, True),
    "prior move": stack(BUBBLE_SORT_MOVE_TREE, False),
    "prior real": stack(REAL_TREE, False),
    "posterior real": stack(REAL_TREE, True),
}
every = pytest.mark.parametrize("name", CASES)
# One of each kind: of a set length or not, without a gradient through its steps, with one, or with one in part.
each_kind = pytest.mark.parametrize("name", ["chain", "drift", "dice", "decay", "posterior real"])
ending = pytest.mark.parametrize("name", [name for name in CASES if name not in ("chain", "drift")])


def make(name: str, dtype: torch.dtype = torch.float64) -> Case:
    return CASES[name](dtype)


def by_hand(case: Case, z: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """Log-probabilities `[B, I]`, KLs `[B, I]` and states, one step after the other."""
    process, context = case.process, case.context
    state = process.initial(context)
    live = torch.ones(len(z), dtype=torch.bool)
    log_probs, kls, states = [], [], []
    for i in range(z.shape[1]):
        if process.terminates:
            live = live & process.live(state, context)
        p, q = process.conditional(state, context), case.other.conditional(state, context)
        states.append((state, live))
        log_probs.append(torch.where(live, p.log_prob(z[:, i]), 0.0))
        kls.append(torch.where(live, kl_divergence(p, q), 0.0))
        ahead = process.advance(state, z[:, i], context)
        state = pytree.tree_map(
            lambda n, o, live=live: torch.where(live.reshape((-1,) + (1,) * (n.dim() - 1)), n, o), ahead, state
        )
    return torch.stack(log_probs, 1), torch.stack(kls, 1), states


# -- laws -----------------------------------------------------------------------------------------------------


@every
def test_unroll_is_the_walk(name: str) -> None:
    case = make(name)
    z = case.sequence().sample()
    states, live = case.process.unroll(z, case.context)
    looped, looped_live = Process.unroll(case.process, z, case.context)
    assert torch.equal(live, looped_live)
    if isinstance(case.process, CallStack):  # the frames beneath the top one are left out
        assert states.below is None
        looped = looped._replace(below=None)
        assert torch.equal(states.depth, looped.depth * live)
    for ours, theirs in zip(pytree.tree_leaves(states), pytree.tree_leaves(looped), strict=True):
        if ours is not None:
            assert torch.equal(ours[live].to(theirs.dtype), theirs[live])


@every
def test_scores_are_the_sum_of_conditionals(name: str) -> None:
    case = make(name)
    sequence, z = case.sequence(), case.sequence().sample()
    log_probs, kls, _ = by_hand(case, z)
    steps = z.shape[1]
    assert sequence.step_log_prob(z).shape == (BATCH, steps)
    parts = sequence.step_score_parts(z)
    assert case.process.has_rsample or (torch.equal(parts.score_function, parts.log_prob) and not parts.entropy_term)
    torch.testing.assert_close(sequence.step_log_prob(z), log_probs)
    torch.testing.assert_close(sequence.log_prob(z), log_probs.sum(1))
    torch.testing.assert_close(sequence.step_kl(case.sequence(case.other), z), kls)
    if getattr(case.context, "arguments", None) is None or case.process.tree.action_arg_size == 0:
        # (A posterior pays for the observed arguments even to itself.)
        torch.testing.assert_close(sequence.step_kl(sequence, z), torch.zeros_like(kls))
    assert (kls >= -1e-12).all() and kls.sum() > 0


@each_kind
def test_scores_do_not_depend_on_what_was_scored_before(name: str) -> None:
    case = make(name)
    sequence, other = case.sequence(), case.sequence(case.other)
    first, second = case.sequence().sample(), case.sequence().sample()
    for z in (first, second, first):
        torch.testing.assert_close(sequence.log_prob(z), case.sequence().log_prob(z))
        torch.testing.assert_close(sequence.step_kl(other, z), case.sequence().step_kl(case.sequence(case.other), z))
    with torch.no_grad():
        sequence.log_prob(first)
    assert sequence.log_prob(first).requires_grad
    for _ in range(2):  # a graph that was freed is not used again
        sequence.log_prob(first).sum().backward()
        sequence.step_kl(other, first).sum().backward()
    stale = sequence.log_prob(first)
    with torch.no_grad():
        for parameter in case.process.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    torch.testing.assert_close(sequence.step_kl(other, first), case.sequence().step_kl(other, first))
    torch.testing.assert_close(sequence.log_prob(first), case.sequence().log_prob(first))
    assert not torch.allclose(stale, sequence.log_prob(first))


def test_a_process_with_other_states_is_unrolled_on_its_own() -> None:
    class Turned(Chain):
        def advance(self, state: Tensor, z: Tensor, context: Features) -> Tensor:
            return (z + 1) % 3

    case, other = make("chain"), Turned().double()
    z = case.sequence().sample()
    p, q = (one.conditional(one.unroll(z, case.context)[0], case.context) for one in (case.process, other))
    torch.testing.assert_close(case.sequence().step_kl(case.sequence(other), z), kl_divergence(p, q))


def test_scoring_and_kl_share_one_evaluation() -> None:
    calls = []

    class Counted(Chain):
        def conditional(self, state: Tensor, context: Features) -> dist.Categorical:
            calls.append(self)
            return super().conditional(state, context)

    case = small(Counted, 5)(torch.float32)
    z = case.sequence().sample()
    calls.clear()
    sequence, other = case.sequence(), case.sequence(case.other)
    steps = sequence.steps(z)
    parts, kl = sequence.step_score_parts(z, steps), sequence.step_kl(other, z, steps)
    assert calls == [case.process, case.other]
    torch.testing.assert_close(parts.log_prob, case.sequence().step_log_prob(z))
    torch.testing.assert_close(kl, case.sequence().step_kl(other, z))


@ending
def test_dead_steps_are_zero_whatever_stands_there(name: str) -> None:
    case = make(name)
    sequence, z = case.sequence(), case.sequence().sample()
    z = z.to(torch.float64)
    live = lives(sequence, z)
    assert not live.all(), "the case must have rows that end early"
    clean = [sequence.step_log_prob(z), sequence.step_kl(case.sequence(case.other), z)]
    parameters = list(case.process.parameters())
    wanted = [torch.autograd.grad(value.sum(), parameters, allow_unused=True) for value in clean]
    for junk in (float("nan"), float("inf"), -1.0, 1e6):
        spoilt = z.masked_fill(~live.reshape(live.shape + (1,) * (z.dim() - 2)), junk).requires_grad_()
        values = [sequence.step_log_prob(spoilt), sequence.step_kl(case.sequence(case.other), spoilt)]
        for value, expected, slopes in zip(values, clean, wanted, strict=True):
            assert (value[~live] == 0).all()
            torch.testing.assert_close(value, expected)
            # Dead steps alone give no gradient at all, live ones the gradient without junk.
            dead = torch.autograd.grad(value[~live].sum(), parameters, retain_graph=True, allow_unused=True)
            assert all(g is None or (g == 0).all() for g in dead)
            found = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
            for a, b in zip(found, slopes, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)


@ending
def test_padding_and_shorter_values(name: str) -> None:
    """Rows of a terminating process may be padded up to the horizon."""
    case = make(name)
    sequence, z = case.sequence(), case.sequence().sample()
    assert z.shape[1] == case.horizon
    live = lives(sequence, z)
    assert (z[~live] == case.process.padding).all()
    longest = int(live.sum(1).max())
    assert longest < case.horizon
    shorter = z[:, :longest]
    torch.testing.assert_close(sequence.log_prob(shorter), sequence.log_prob(z))
    assert sequence.step_log_prob(shorter).shape[1] == longest and sequence.step_log_prob(z).shape[1] == case.horizon


@every
def test_batch_shapes(name: str) -> None:
    case = make(name)
    flat = case.sequence()
    z = flat.sample((4,))
    assert z.shape[:2] == (4, BATCH)
    wide = flat.expand((4, BATCH))
    assert wide.batch_shape == (4, BATCH) and wide.event_shape == flat.event_shape
    rows = torch.stack([flat.log_prob(row) for row in z])
    torch.testing.assert_close(wide.log_prob(z), rows)
    torch.testing.assert_close(flat.log_prob(z), rows)  # broadcast
    other = case.sequence(case.other)
    kls = torch.stack([flat.step_kl(other, row) for row in z])
    torch.testing.assert_close(wide.step_kl(other.expand((4, BATCH)), z), kls)
    torch.testing.assert_close(flat.step_kl(other, z), kls)
    assert wide.sample((2,)).shape[:3] == (2, 4, BATCH)
    assert wide.greedy().shape[:2] == (4, BATCH)
    # a context with two batch dimensions, one with none
    context = pytree.tree_map_only(Tensor, lambda x: x.expand((4, *x.shape)), case.context)
    declared = Sequence(case.process, context, case.horizon, batch_shape=(4, BATCH))
    torch.testing.assert_close(declared.log_prob(z), rows)
    context = pytree.tree_map_only(Tensor, lambda x: x[1], case.context)
    alone = Sequence(case.process, context, case.horizon, batch_shape=())
    torch.testing.assert_close(alone.log_prob(z[0, 1]), rows[0, 1])
    torch.testing.assert_close(alone.log_prob(z[:, 1]), rows[:, 1])
    assert alone.sample().dim() == len(alone.event_shape)
    assert alone.sample((2,)).shape[0] == 2


def test_contexts_without_columns_flatten() -> None:
    """A program without arguments has a task of width 0."""
    tree = ProcedureTree.parse("actions: a, b\nmain -> a, b")
    context = CallStackContext(torch.randn(2, 3, 4), torch.zeros(2, 0), torch.tensor([[0, 1, 2], [1, 2, 2]]))
    sequence = Sequence(CallStack(tree, 4, posterior=True), context, 9)
    assert sequence.expand((5, 2)).sample().shape == (5, 2, 9, 1)


@each_kind
def test_inside_pyro(name: str) -> None:
    case = make(name)
    mask = torch.tensor([True, False, True])

    def model(z: Tensor | None = None) -> Tensor:
        with pyro.plate("rows", BATCH, dim=-1):
            return pyro.sample("z", case.sequence(), obs=z)

    z = case.sequence().sample()
    expected = case.sequence().log_prob(z)
    for handler, factor in (
        (poutine.scale(scale=2.5), 2.5),
        (poutine.mask(mask=mask), mask.double()),
        (poutine.scale(scale=1.0), 1.0),
    ):
        with handler:
            trace = poutine.trace(model).get_trace(z)
        trace.compute_log_prob()
        torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected * factor)

    def particles() -> Tensor:
        with pyro.plate("particles", 4, dim=-2):
            return model()

    trace = poutine.trace(particles).get_trace()
    trace.compute_log_prob()
    drawn = trace.nodes["z"]["value"]
    assert drawn.shape[:2] == (4, BATCH) and trace.nodes["z"]["log_prob"].shape == (4, BATCH)
    assert not torch.equal(drawn[0], drawn[1])
    trace.compute_score_parts()


@each_kind
@pytest.mark.parametrize("elbo", [Trace_ELBO, StepwiseKL_ELBO])
def test_vectorised_particles(name: str, elbo: type[Trace_ELBO]) -> None:
    case = make(name)

    def model() -> None:
        pyro.module("model", case.process)
        with pyro.plate("rows", BATCH, dim=-1):
            pyro.sample("z", case.sequence())

    def guide() -> None:
        pyro.module("guide", case.other)
        with pyro.plate("rows", BATCH, dim=-1):
            pyro.sample("z", case.sequence(case.other))

    before = [p.clone() for p in case.other.parameters()]
    loss = elbo(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    assert torch.tensor(svi.step()).isfinite()
    after = list(case.other.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@each_kind
def test_wrong_shapes_are_refused(name: str) -> None:
    case = make(name)
    sequence, z = case.sequence(validate_args=True), case.sequence().sample()
    longer = torch.cat([z] * (1 + case.horizon // z.shape[1] + 1), 1)
    wider = [torch.cat([z, z], -1)] if z.dim() == 3 else []
    for bad in (longer, z[:, :0], z[:2], z[0, 0], z.new_zeros(()), *wider):
        with pytest.raises(ValueError, match="a value of this sequence has shape"):
            sequence.log_prob(bad)
    if not case.process.terminates:
        with pytest.raises(ValueError, match="a value of this sequence has shape"):
            sequence.log_prob(z[:, :-1])
    case.sequence(validate_args=False).log_prob(z[:, :2])


@every
def test_greedy_takes_every_mode(name: str) -> None:
    case = make(name)
    z = case.sequence().greedy()
    assert torch.equal(z, case.sequence().greedy())
    states, live = case.process.unroll(z, case.context)
    modes = case.process.conditional(states, case.context).mode
    torch.testing.assert_close(z[live], modes[live].to(z.dtype))


@each_kind
def test_samples_have_a_graph_only_where_reparametrised(name: str) -> None:
    case = make(name)
    sequence = case.sequence()
    assert not sequence.sample().requires_grad
    assert case.process.terminates or sequence.sample().shape[1] == case.horizon
    assert sequence.has_rsample == case.process.has_rsample
    if sequence.has_rsample:
        z = sequence.rsample()
        assert z.requires_grad
        gradients = torch.autograd.grad(z.sum(), list(case.process.parameters()), allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    else:
        with pytest.raises(NotImplementedError, match="no reparametrised steps"):
            sequence.rsample()


@every
def test_gradients_agree_with_differences(name: str) -> None:
    case = make(name)
    z = case.sequence().sample()
    parameters = [*case.process.parameters(), *case.other.parameters()]
    direction = [torch.randn_like(p) for p in parameters]

    def value() -> Tensor:
        sequence = case.sequence()
        kl = sequence.step_kl(case.sequence(case.other), z)
        weights = torch.linspace(0.5, 1.5, kl.shape[1], dtype=torch.float64)
        return (sequence.step_log_prob(z) * weights).sum() + (kl * weights).sum()

    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(step * d)
            ends.append(value())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@every
def test_gradcheck_in_the_context(name: str) -> None:
    case = make(name)
    z = case.sequence().sample()
    inputs = case.context[0][..., :2].clone().requires_grad_()

    def scores(x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.cat([x, case.context[0][..., 2:]], -1)
        pair = [
            Sequence(p, case.context._replace(**{case.context._fields[0]: first}), case.horizon)
            for p in (case.process, case.other)
        ]
        return pair[0].log_prob(z), pair[0].step_kl(pair[1], z).sum(1)

    assert torch.autograd.gradcheck(scores, (inputs,))


@each_kind
def test_moves_to_a_device(name: str) -> None:
    case = make(name)
    z = case.sequence().sample()
    expected = case.sequence().step_log_prob(z)
    for device in ["cuda"] * torch.cuda.is_available() + ["cpu", "meta"]:
        sequence = case.sequence().to(device)
        case.process.to(device)
        with pyro.validation_enabled(False):  # values on the meta device cannot be looked at
            found = sequence.step_log_prob(z.to(device))
        assert found.device.type == device and found.shape == expected.shape
        if device != "meta":
            torch.testing.assert_close(found.cpu(), expected)
            drawn = sequence.sample()
            assert drawn.device.type == device
            sequence.log_prob(drawn)


# -- sampling -------------------------------------------------------------------------------------------------


TINY = """\
actions: a, b
main counts -> one, a
one(flag: onehot[2]) -> a, b returns (flag: onehot[2])
"""


def tiny_stack(native: bool, posterior: bool = True) -> Sequence:
    tree = ProcedureTree.parse(TINY)
    process = CallStack(tree, 2, hidden=(4,), posterior=posterior)
    process.native = native
    actions = torch.tensor([[0, 1, 2]]) if posterior else None
    if not posterior:
        with torch.no_grad():
            process.choose.biases[-1][:, tree.null] += 2.0
    return Sequence(process, CallStackContext(torch.randn(1, 3, 2), torch.zeros(1, 2), actions), 60)


def tiny_memory() -> Sequence:
    # Three states: of two, a draw and its mirror image are as frequent.
    return Sequence(DiscreteMemory(2, 3, (3,), keep=0.5), MemoryContext(torch.randn(1, 4, 2), torch.tensor([3])), 4)


TINY_SEQUENCES: dict[str, Callable[[], Sequence]] = {
    "chain": lambda: Sequence(Chain(), Features(torch.randn(1, 2), torch.tensor([2])), 3),
    "dice": lambda: Sequence(Dice(), Features(torch.randn(1, 2), torch.tensor([3])), 9),
    "discrete memory": lambda: tiny_memory(),
    "posterior, native walk": lambda: tiny_stack(True),
    "posterior, tensor walk": lambda: tiny_stack(False),
    "prior, native walk": lambda: tiny_stack(True, posterior=False),
    "prior, tensor walk": lambda: tiny_stack(False, posterior=False),
}


@pytest.mark.parametrize("name", TINY_SEQUENCES)
def test_samples_are_as_frequent_as_probable(name: str) -> None:
    pyro.set_rng_seed(1)
    sequence = TINY_SEQUENCES[name]()
    draws = 4000
    z = sequence.sample((draws,))[:, 0]
    found, counts = z.flatten(1).unique(dim=0, return_counts=True)
    probability = sequence.log_prob(found.reshape(-1, 1, *z.shape[1:]))[:, 0].exp().detach()
    assert probability.sum() <= 1 + 1e-5
    if name in ("chain", "dice", "discrete memory"):
        assert probability.sum() > 0.99
    common = draws * probability > 5
    assert draws * probability[common].sum() > draws / 2
    score = (counts - draws * probability) / (draws * probability * (1 - probability)).sqrt()
    assert score[common].abs().max() < 4.5


def test_a_walk_that_does_not_end_names_its_row() -> None:
    context = Features(torch.tensor([[9.0, 0.0], [-9.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 5, 1]))
    with torch.no_grad():
        process = Dice()
        process.logits.zero_()
    with pytest.raises(ValueError, match="horizon exhausted: sequence 1 of the batch has not ended after 3 steps"):
        Sequence(process, context, 3).sample()
    assert Sequence(process, context, 3).greedy().shape == (3, 3)  # cut off
    assert Sequence(process, context, 5).sample().shape == (3, 5)


@pytest.mark.parametrize("native", [True, False])
def test_a_call_stack_that_does_not_end_names_its_row(native: bool) -> None:
    sequence = tiny_stack(native)
    actions = torch.tensor([[0, 2, 2], [0, 1, 2]])
    context = CallStackContext(torch.randn(2, 3, 2), torch.zeros(2, 2), actions)
    with torch.no_grad():  # never calls, so that two actions take exactly three steps
        sequence.process.choose.biases[-1][0, sequence.process.tree.index("a")] += 50.0
    for horizon in (2, 3):
        short = Sequence(sequence.process, context, horizon)
        with pytest.raises(ValueError, match="sequence 1 of the batch has not ended"):
            short.sample()


def test_bad_construction_is_refused() -> None:
    context = Features(torch.randn(3, 2), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="horizon of at least one step, got 0"):
        Sequence(Chain(), features(torch.float32), 0)
    with pytest.raises(ValueError, match=r"lead with the batch shape \(3,\), one has shape \(2,\)"):
        Sequence(Chain(), context, 3)


# -- observations of the steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(), (2,)])
def test_an_emission_is_its_observations_one_by_one(event: tuple[int, ...]) -> None:
    loc, x = torch.randn(3, 4, *event), torch.randn(3, 4, *event)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    base = dist.Normal(loc, 1.0).to_event(len(event))
    whole, some = Emission(base, "z"), Emission(base, "z", mask=mask)
    assert whole.batch_shape == (3,) and whole.event_shape == (4, *event) and whole.along == "z"
    steps = torch.stack([dist.Normal(loc[:, i], 1.0).to_event(len(event)).log_prob(x[:, i]) for i in range(4)], 1)
    torch.testing.assert_close(whole.step_log_prob(x), steps)
    torch.testing.assert_close(whole.log_prob(x), steps.sum(1))
    torch.testing.assert_close(some.step_log_prob(x), torch.where(mask, steps, 0.0))
    torch.testing.assert_close(some.log_prob(x), torch.where(mask, steps, 0.0).sum(1))
    for emission in (whole, some):
        larger = emission.expand((5, 3))
        assert isinstance(larger, Emission) and larger.along == "z" and larger.batch_shape == (5, 3)
        torch.testing.assert_close(larger.log_prob(x), emission.log_prob(x).expand(5, 3))
        assert emission.sample((6,)).shape == (6, 3, 4, *event)
        assert emission.support.check(x).shape == (3,)


@pytest.mark.parametrize("elbo", [Trace_ELBO, StepwiseKL_ELBO])
def test_emissions_inside_pyro(elbo: type[Trace_ELBO]) -> None:
    prior, posterior, context = Chain().double(), Chain().double(), features(torch.float64)
    level = torch.randn(3, dtype=torch.float64)
    x, exists = torch.randn(BATCH, 5, dtype=torch.float64), torch.rand(BATCH, 5) < 0.7

    def model(emission: bool) -> None:
        with pyro.plate("rows", BATCH, dim=-1):
            base = dist.Normal(level[pyro.sample("z", Sequence(prior, context, 5)).long()], 1.0)
            fn = Emission(base, "z", mask=exists) if emission else base.mask(exists).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide() -> None:
        with pyro.plate("rows", BATCH, dim=-1):
            pyro.sample("z", Sequence(posterior, context, 5))

    for options in ({}, {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}):
        losses = []
        for emission in (True, False):
            pyro.set_rng_seed(3)
            losses.append(elbo(**options).loss(lambda emission=emission: model(emission), guide))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    predictive = pyro.infer.Predictive(lambda: model(True), num_samples=2)()
    assert predictive["x"].shape == (2, BATCH, 5)


def test_support_is_that_of_all_steps() -> None:
    for name in ("chain", "drift", "posterior real"):
        sequence = make(name).sequence()
        assert sequence.support.event_dim == len(sequence.event_shape)
        assert sequence.support.check(sequence.sample()).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # captures the graph, and runs it without a compiler
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                shutil.which("g++") is None or "PYROCONTROL_SLOW" not in os.environ,
                reason="takes half a minute and a C++ compiler: set PYROCONTROL_SLOW=1",
            ),
        ),
    ],
)
def test_a_compiled_walk_samples_the_same_distribution(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pyro.set_rng_seed(1)
    compiled = []
    compile_with = torch.compile

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(backend)
        return compile_with(function, backend=backend)

    monkeypatch.setattr(torch, "compile", compiler)
    process = Dice()
    process.compile_walk = True
    sequence = Sequence(process, Features(torch.zeros(400, 2), torch.full((400,), 6)), 9)
    with pyro.validation_enabled(False):
        z = sequence.sample()
        sequence.sample()
    assert compiled == [backend]  # once a process
    assert sequence.log_prob(z).isfinite().all() and (z == 0).any(1).all()
    p = torch.softmax(process.logits.detach(), -1)
    first = (z[:, 0].unsqueeze(-1) == torch.arange(3)).float().mean(0)
    assert ((first - p) / (p * (1 - p) / 400).sqrt()).abs().max() < 4.5


# -- what was silently wrong once -------------------------------------------------------------------------------------


class Walk(Process):
    """A Gaussian walk that starts at its context."""

    has_rsample = True

    def initial(self, context: Tensor) -> Tensor:
        return context

    def conditional(self, state: Tensor, context: Tensor) -> dist.Normal:
        return dist.Normal(state, 1.0)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return 0.5 * state + z


def test_one_process_in_two_contexts_has_two_unrollings() -> None:
    walk, z = Walk(), torch.randn(1, 3)
    q, p = Sequence(walk, torch.zeros(1), 3), Sequence(walk, torch.full((1,), 2.0), 3)
    torch.testing.assert_close(q.step_kl(p, z), torch.tensor([[2.0, 0.5, 0.125]]))
    # In equal contexts it has one, whether or not they are the same tensors, unless they carry gradients.
    unrolled = []
    walk.unroll = lambda *given: unrolled.append(1) or Process.unroll(walk, *given)  # type: ignore[method-assign, func-returns-value]
    for context, runs in ((q.context, 1), (torch.zeros(1), 1), (torch.zeros(1, requires_grad=True), 2)):
        unrolled.clear()
        assert not q.step_kl(Sequence(walk, context, 3), z).any()
        assert len(unrolled) == runs


def test_call_stacks_of_two_tasks_have_two_unrollings() -> None:
    tree = ProcedureTree.parse("actions: a, b\nroot(n: real[1]) -> a, b")
    prior, posterior = CallStack(tree, 2), CallStack(tree, 2, posterior=True)
    features, actions = torch.randn(1, 3, 2), torch.tensor([[0, 1, 2]])
    q = Sequence(posterior, CallStackContext(features, torch.tensor([[0.0]]), actions), 6)
    p = Sequence(prior, CallStackContext(features, torch.tensor([[3.0]])), 6)
    z = q.sample()
    kl = kl_divergence(q.steps(z).conditional, p.steps(z).conditional)
    torch.testing.assert_close(q.step_kl(p, z).sum(), kl.sum())


class Stop(Walk):
    """A second step is taken only if the first value is below a half."""

    terminates = True

    def live(self, state: Tensor, context: Tensor) -> Tensor:
        return state < 0.5


def test_an_end_that_a_reparametrised_value_decides_is_refused() -> None:
    with pytest.raises(ValueError, match="a Stop are reparametrised and it ends by itself"):
        Sequence(Stop(), torch.zeros(2), 3)


class Fuel(Process):
    """The mean is the root of the fuel that is left, which is 0 when the clock runs out."""

    terminates, end_is_discrete = True, True

    def __init__(self, has_rsample: bool) -> None:
        super().__init__()
        self.has_rsample = has_rsample

    def initial(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(context)), context[:, 1]

    def conditional(self, state: tuple[Tensor, Tensor], context: Tensor) -> dist.Normal:
        return dist.Normal(state[1].sqrt(), 1.0)

    def advance(self, state: tuple[Tensor, Tensor], z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return state[0] + 1, state[1] - 1

    def live(self, state: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        return state[0] < context[:, 0]


def test_conditionals_after_the_end_have_no_say_in_gradients() -> None:
    context = torch.tensor([[2.0, 2.0], [3.0, 4.0]], requires_grad=True)
    Sequence(Fuel(False), context, 3).log_prob(torch.zeros(2, 3)).sum().backward()
    torch.testing.assert_close(context.grad[:, 1], torch.tensor([-1.0, -1.5]))  # type: ignore[index]
    context.grad = None
    Sequence(Fuel(True), context, 3).rsample().sum().backward()
    assert context.grad is not None and bool(context.grad.isfinite().all())  # type: ignore[attr-defined]


class Rounds(Process):
    """Sequences of coins, each of its own length, as the steps of another."""

    event_shape = torch.Size((8,))
    support = constraints.independent(constraints.boolean, 1)

    def initial(self, context: Tensor) -> Tensor:
        return context

    def conditional(self, state: Tensor, context: Tensor) -> Sequence:
        return Sequence(Countdown(), state, 8, batch_shape=state.shape)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return state + 1


class Countdown(Process):
    """Coin tosses, as many as the context says."""

    terminates = True
    support = constraints.boolean

    def initial(self, context: Tensor) -> Tensor:
        return context

    def conditional(self, state: Tensor, context: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(torch.full(state.shape, 0.5))

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return state - 1

    def live(self, state: Tensor, context: Tensor) -> Tensor:
        return state > 0


def test_samples_that_end_can_be_stacked_and_nested() -> None:
    def model() -> None:
        with pyro.plate("rows", 2):
            count = pyro.sample("count", dist.Categorical(torch.ones(6)))
            pyro.sample("z", Sequence(Countdown(), count + 1, 8, batch_shape=count.shape))

    for parallel in (False, True):
        found = Predictive(model, num_samples=8, parallel=parallel)()
        assert found["z"].shape == (8, 2, 8)
        assert not found["z"][..., 6:].any()
    assert Sequence(Rounds(), torch.ones(3), 4).sample().shape == (3, 4, 8)


def test_a_sequence_needs_no_context() -> None:
    class Toss(Process):
        support = constraints.boolean

        def initial(self, context: Tensor) -> Tensor:
            return torch.zeros(len(context))

        def conditional(self, state: Tensor, context: Tensor) -> dist.Bernoulli:
            return dist.Bernoulli(torch.full(state.shape, 0.5))

        def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
            return z

    sequence = Sequence(Toss(), None, 3)
    assert sequence.sample().shape == (3,) and sequence.expand((4, 2)).sample().shape == (4, 2, 3)
    with pyro.plate("rows", 4):
        assert pyro.sample("z", sequence).shape == (4, 3)

    class Bare(Toss):
        def initial(self, context: Tensor) -> Tensor:
            return torch.zeros(())

    with pytest.raises(ValueError, match=r"the initial state of a Bare must lead with the batch \[4\]"):
        Sequence(Bare(), None, 3).expand((4,)).sample()


def test_what_a_context_holds_for_a_step_is_found_for_one_and_for_all() -> None:
    values = torch.randn(3, 5, 2)
    step = torch.tensor([0, 4, 7])  # the last row is past the end
    assert torch.equal(at_step(values, step), torch.stack([values[0, 0], values[1, 4], values[2, 4]]))
    every = torch.arange(6).expand(3, 6)
    assert torch.equal(at_step(values, every), torch.cat([values, values[:, -1:]], 1))
    assert torch.equal(at_step(values[..., 0], every[:, :3]), values[:, :3, 0])
