"""Algorithm 1 by hand, the distribution of one step by enumeration, and the native walk against tensor code."""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

import sanitized_walks
from pyrocontrol._native import library
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.models import (
    CallStack,
    CallStackContext,
    CallStackState,
    ControlProgram,
    ProcedureNetworks,
    ProcedureTree,
    Process,
    Sequence,
)
from pyrocontrol.models.programs import call_stack_native

TREES = {"plain": BUBBLE_SORT_TREE, "move": BUBBLE_SORT_MOVE_TREE}
HYBRID = """\
actions: go, push(force: real[1], side: onehot[2])
main(goal: real[2]) counts -> sub, go
sub(target: real[1], kind: onehot[2]) -> go, push returns (error: real[2], seen: onehot[2])
"""


def random_stack(text: str, *, posterior: bool, width: int = 6, size: float = 3.0, **options: object) -> CallStack:
    """A call stack whose weights are large, so that its choices are decided by its inputs."""
    tree = ProcedureTree.parse(text)
    process = CallStack(tree, width, posterior=posterior, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.copy_(size * torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    return process


def context_for(
    process: CallStack, batch: int = 16, times: int = 7, dtype: torch.dtype = torch.float32
) -> CallStackContext:
    tree, width = process.tree, process.tree.arg_size
    features, task = (
        torch.randn(batch, times, process.feature_size, dtype=dtype),
        torch.zeros(batch, width, dtype=dtype),
    )
    task[:, : sum(f.size for f in tree.root.argument)] = 1.0
    if not process.posterior:
        return CallStackContext(features, task)
    actions = torch.randint(len(tree.actions), (batch, times))
    actions[:, -1] = len(tree.actions)
    arguments = torch.zeros(batch, times, width, dtype=dtype)
    for a, action in enumerate(tree.actions):
        place = 0
        for field in action.argument:
            index = place + torch.randint(field.size, (batch, times, 1))
            arguments = torch.where((actions == a).unsqueeze(-1), arguments.scatter(2, index, 1.0), arguments)
            place += field.size
    return CallStackContext(features, task, actions, arguments)


# -- Algorithm 1 ----------------------------------------------------------------------------------------------

EXAMPLE = """\
actions: step, lift(height: real[1])
main(goal: real[2]) counts -> find, lift
find(side: onehot[2]) -> look, step returns (place: real[2])
look -> step returns (seen: onehot[2])
"""


def test_frames_by_hand() -> None:
    tree = ProcedureTree.parse(EXAMPLE)
    main, find, look, step, lift, null = range(6)
    z = torch.tensor(
        [
            [find, 0.0, 1.0],  # main calls find(right)
            [look, 0.0, 0.0],  # find calls look
            [step, 0.0, 0.0],
            [null, 1.0, 0.0],  # look returns seen = 0
            [step, 0.0, 0.0],
            [null, 0.3, -0.7],  # find returns place
            [lift, 2.5, 0.0],
            [find, 1.0, 0.0],  # main calls find again
            [step, 0.0, 0.0],
            [null, 0.1, 0.2],
            [null, 0.0, 0.0],
        ]
    ).unsqueeze(0)
    # (depth, time, h, tau, h-, u, u-) before each step; the argument u and returned value u- are padded with zeros
    goal, zero = [4.0, 5.0], [0.0, 0.0]
    expected: list[tuple[int, int, list[float]]] = [
        (1, 0, [main, 0, null, *goal, *zero]),
        (2, 0, [find, 0, null, 0, 1, *zero]),
        (3, 0, [look, 0, null, *zero, *zero]),
        (3, 1, [look, 1, step, *zero, *zero]),
        (2, 1, [find, 1, look, 0, 1, 1, 0]),  # what look returned
        (2, 2, [find, 2, step, 0, 1, *zero]),  # this one has none to hand back
        (1, 2, [main, 1, find, *goal, 0.3, -0.7]),
        (1, 3, [main, 2, lift, *goal, 2.5, 0.0]),  # an action hands its argument back
        (2, 3, [find, 0, null, 1, 0, *zero]),  # a new frame, nothing of the earlier call in it
        (2, 4, [find, 1, step, 1, 0, *zero]),
        (1, 4, [main, 3, find, *goal, 0.1, 0.2]),
    ]
    process = CallStack(tree, 1)
    context = CallStackContext(torch.zeros(1, 5, 1), torch.tensor([goal]))
    state = process.initial(context)
    states, live = process.unroll(z, context)
    assert live.all()
    for i, (depth, time, frame) in enumerate(expected):
        for depths, times, frames in (
            (state.depth, state.time, state.frame),
            (states.depth[:, i], states.time[:, i], states.frame[:, i]),
        ):
            assert (int(depths), int(times)) == (depth, time), i
            torch.testing.assert_close(frames[0], torch.tensor(frame, dtype=torch.float32), msg=f"step {i}")
        state = process.advance(state, z[:, i], context)
    assert int(state.depth) == 0 and not bool(process.live(state, context))


@pytest.mark.parametrize("move", [False, True])
def test_the_teachers_calls_empty_the_stack_exactly_at_the_end(move: bool) -> None:
    traces = demonstrations(4, 0, max_length=4, move=move, annotate=True)
    program = ControlProgram(TREES["move" if move else "plain"], 22)
    assert traces.calls is not None
    steps = (traces.calls[..., 0] >= 0).sum(1)
    assert len(set(steps.tolist())) > 1
    context = program.prior(traces).context
    looped, looped_live = Process.unroll(program.process, traces.calls, context)
    states, live = program.process.unroll(traces.calls, context)
    assert live.sum(1).tolist() == steps.tolist() == looped_live.sum(1).tolist()
    assert torch.equal(states.frame[live], looped.frame[live])
    for row, last in enumerate((steps - 1).tolist()):
        assert int(states.depth[row, last]) == 1 and int(traces.calls[row, last, 0]) == program.tree.null
        assert int(states.time[row, last]) == int(traces.lengths[row]) - 1
    actions, arguments = program.taken(traces.calls, traces.actions.shape[1])
    assert torch.equal(actions.long(), traces.actions) and torch.equal(arguments, traces.arguments)
    assert (program.prior(traces).log_prob(traces.calls) > -1e8).all()


def frame_state(tree: ProcedureTree, procedure: int, tau: float, *, last: int | None = None) -> CallStackState:
    frame = torch.zeros(1, 3 + 2 * tree.arg_size)
    frame[0, :3] = torch.tensor([procedure, tau, tree.null if last is None else last])
    return CallStackState(torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), frame, None)


def test_only_procedures_that_count_see_their_counter() -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=False)
    context = context_for(process, batch=1)
    for h, procedure in enumerate(process.tree.procedures):
        early, late = (process.conditional(frame_state(process.tree, h, tau, last=6), context) for tau in (1.0, 9.0))
        assert torch.equal(early.log_probs, late.log_probs) != procedure.counts


@pytest.mark.parametrize("posterior", [False, True])
def test_no_procedure_returns_before_its_first_step(posterior: bool) -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=posterior)
    context = context_for(process, batch=1)
    for h in range(1, len(process.tree.procedures)):
        if posterior:  # an action within its reach
            reach = int(process.tree.reachable[h].nonzero()[0])
            context = context._replace(actions=torch.full((1, 7), reach))
        first, second = (process.conditional(frame_state(process.tree, h, tau), context) for tau in (0.0, 1.0))
        assert first.log_probs[0, -1].exp() == 0 and second.log_probs[0, -1].exp() > 0
        torch.testing.assert_close(first.log_probs.exp().sum(), torch.tensor(1.0))


def test_the_prior_chooses_only_what_is_declared() -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=False, size=0.1)
    context = context_for(process, batch=1)
    for h in range(len(process.tree.procedures)):
        probs = process.conditional(frame_state(process.tree, h, 1.0), context).log_probs[0].exp()
        assert torch.equal(probs > 0, process.tree.available[h])


# -- one step -------------------------------------------------------------------------------------------------


def hybrid_pair() -> tuple[CallStack, CallStack, CallStackContext, CallStackContext]:
    prior = random_stack(HYBRID, posterior=False, size=0.7).double()
    posterior = random_stack(HYBRID, posterior=True, size=0.7).double()
    actions, arguments = torch.tensor([[1, 2]]), torch.zeros(1, 2, 4, dtype=torch.float64)
    arguments[0, 0, :3] = torch.tensor([0.8, 0.0, 1.0])
    features, task = torch.randn(1, 2, 6, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    return prior, posterior, CallStackContext(features, task), CallStackContext(features, task, actions, arguments)


def field_parts(raw: Tensor) -> dict[str, Categorical | Normal]:
    """The parameters of every field of HYBRID, read off in the order of the slots: sub, push, sub's return."""

    def real(start: int, size: int) -> Normal:
        return Normal(raw[start : start + size], raw[start + size : start + 2 * size].clamp(-5, 3).exp())

    return {
        "target": real(0, 1),
        "kind": Categorical(logits=raw[2:4]),
        "force": real(4, 1),
        "side": Categorical(logits=raw[6:8]),
        "error": real(8, 2),
        "seen": Categorical(logits=raw[12:14]),
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("procedure", "tau"), [(0, 0.0), (0, 2.0), (1, 0.0), (1, 2.0)])
def test_log_prob_of_a_hybrid_step_by_hand(procedure: int, tau: float) -> None:
    prior, _, context, _ = hybrid_pair()
    tree = prior.tree
    main, sub, go, push, null = range(5)
    step = prior.conditional(frame_state(tree, procedure, tau), context)
    assert step.parameters is not None
    fields, choice = field_parts(step.parameters[0]), step.log_probs[0]
    torch.testing.assert_close(choice.exp().sum(), torch.tensor(1.0))
    two = torch.tensor([0.4, -1.0])
    rows: list[tuple[int, list[float], Tensor]] = [
        (go, [0, 0, 0, 0], torch.tensor(0.0)),
        (sub, [0.4, 0, 1, 0], fields["target"].log_prob(two[0]).sum() + fields["kind"].log_prob(torch.tensor(1))),
        (push, [0.4, 1, 0, 0], fields["force"].log_prob(two[0]).sum() + fields["side"].log_prob(torch.tensor(0))),
        (
            null,
            [0.4, -1, 0, 1],
            (fields["error"].log_prob(two).sum() + fields["seen"].log_prob(torch.tensor(1)))
            if procedure == sub
            else torch.tensor(0.0),
        ),
    ]
    for number, argument, cost in rows:
        z = torch.tensor([[float(number), *argument]])
        torch.testing.assert_close(step.log_prob(z)[0], choice[number] + cost)
        parts = step.score_parts(z)
        torch.testing.assert_close(parts.log_prob, parts.score_function + parts.entropy_term)
    drawn = torch.cat([step.rsample() for _ in range(50)])
    assert step.rsample().requires_grad
    for number, *argument in drawn.tolist():
        used = {go: 0, sub: 3, push: 3, null: 4 if procedure == sub else 0}[int(number)]
        assert argument[used:] == [0.0] * (4 - used)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("procedure", "tau"), [(0, 0.0), (0, 2.0), (1, 0.0), (1, 2.0)])
def test_kl_of_a_hybrid_step_is_a_sum_over_choices(procedure: int, tau: float) -> None:
    prior, posterior, p_context, q_context = hybrid_pair()
    main, sub, go, push, null = range(5)
    state = frame_state(prior.tree, procedure, tau)
    p, q = prior.conditional(state, p_context), posterior.conditional(state, q_context)
    assert p.parameters is not None and q.parameters is not None
    ours, theirs = field_parts(q.parameters[0]), field_parts(p.parameters[0])
    between = {name: kl_divergence(ours[name], theirs[name]).sum() for name in ours}
    observed = -theirs["force"].log_prob(torch.tensor([0.8])).sum() - theirs["side"].log_prob(torch.tensor(1))
    cost = {
        main: 0.0,
        go: 0.0,
        sub: between["target"] + between["kind"],
        push: observed,
        null: between["error"] + between["seen"] if procedure == sub else 0.0,
    }
    expected = torch.tensor(0.0)
    for k in range(5):
        probability = q.log_probs[0, k].exp()
        if probability > 0:
            expected = expected + probability * (q.log_probs[0, k] - p.log_probs[0, k] + cost[k])
    torch.testing.assert_close(kl_divergence(q, p)[0], expected)


def test_the_posterior_takes_the_observed_argument_with_probability_one() -> None:
    _, posterior, _, context = hybrid_pair()
    step = posterior.conditional(frame_state(posterior.tree, 1, 0.0), context)
    for z in (step.sample(), step.mode, step.rsample()):
        assert z[0].tolist() == pytest.approx([3.0, 0.8, 0.0, 1.0, 0.0])
        torch.testing.assert_close(step.log_prob(z), torch.zeros(1, dtype=torch.float64))


def test_a_posterior_walk_takes_the_observed_arguments() -> None:
    for text in (BUBBLE_SORT_MOVE_TREE, HYBRID):
        process = random_stack(text, posterior=True)
        context = context_for(process)
        z = Sequence(process, context, process.tree.max_steps(6)).sample()
        state, live = process.unroll(z, context)
        h, null = len(process.tree.procedures), process.tree.null
        acts = live & (z[..., 0] >= h) & (z[..., 0] < null)
        rows = acts.nonzero(as_tuple=True)
        times = state.time[rows]
        assert context.actions is not None and context.arguments is not None
        assert torch.equal(z[rows][:, 0].long() - h, context.actions[rows[0], times])
        assert torch.equal(z[rows][:, 1:], context.arguments[rows[0], times])


def test_networks_are_one_perceptron_a_procedure() -> None:
    for hidden, activation in (((), "relu"), ((5,), "relu"), ((5, 7), "relu"), ((5, 7), "tanh")):
        networks = ProcedureNetworks(3, 4, hidden, 6, activation)
        x, procedure = torch.randn(10, 2, 4), torch.randint(3, (10, 2))
        y = networks(x, procedure)
        for row in range(10):
            h = int(procedure[row, 1])
            value = x[row, 1]
            for layer, (weight, bias) in enumerate(zip(networks.weights, networks.biases, strict=True)):
                value = value @ weight[h] + bias[h]
                value = value if layer == len(hidden) else getattr(value, activation)()
            torch.testing.assert_close(y[row, 1], value)
    with pytest.raises(ValueError, match="activation must be 'relu' or 'tanh', got 'gelu'"):
        ProcedureNetworks(3, 4, (5,), 6, "gelu")


# -- the native walk ------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


@compiled
@pytest.mark.parametrize("posterior", [False, True])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_native_walks_are_those_of_tensor_code(tree: str, posterior: bool, seed: int) -> None:
    torch.manual_seed(seed)
    hidden, activation = [((), "relu"), ((8, 6), "relu"), ((8,), "tanh")][seed]
    process = random_stack(
        TREES[tree], posterior=posterior, hidden=hidden, argument_hidden=hidden[:1], activation=activation
    )
    context = context_for(process)
    sequence = Sequence(process, context, process.tree.max_steps(6))
    assert call_stack_native.walk(process, context, 5, True) is not None
    native = sequence.greedy()
    process.native = False
    tensor = sequence.greedy()
    # A tie between two choices may be decided either way: allow for it where it shows in the scores.
    if not torch.equal(native, tensor):
        torch.testing.assert_close(sequence.log_prob(native), sequence.log_prob(tensor))
    assert len(native.unique(dim=0)) > 4


@compiled
@pytest.mark.parametrize("posterior", [False, True])
@pytest.mark.parametrize("tree", TREES)
def test_native_choices_are_as_frequent_as_probable(tree: str, posterior: bool) -> None:
    """Every choice and argument at its conditional probability, over all steps of many walks."""
    torch.manual_seed(0)
    process = random_stack(TREES[tree], posterior=posterior, size=0.8, hidden=(8, 6), argument_hidden=(5,))
    if not posterior:
        with torch.no_grad():
            process.choose.biases[-1][:, process.tree.null] += 3.0
    context = context_for(process, batch=4)
    sequence = Sequence(process, context, 2000).expand((300, 4))
    z = sequence.sample()
    steps = sequence.steps(z)
    flat = z.flatten(0, 1)[:, : steps.live.shape[1]]
    choice, live = flat[..., 0].long(), steps.live
    probs = steps.conditional.log_probs.exp().detach()
    counts = torch.nn.functional.one_hot(choice, probs.shape[-1]).float()
    procedure = steps.state.frame[..., 0].long()
    scores = []
    for h in range(len(process.tree.procedures)):
        rows = live & (procedure == h)
        expected, variance = probs[rows].sum(0), (probs * (1 - probs))[rows].sum(0)
        enough = variance > 5
        scores.append((counts[rows].sum(0) - expected)[enough] / variance[enough].sqrt())
    if tree == "move":
        # Arguments: the score function has mean zero, E[z - p] = 0, field by field.
        assert steps.conditional.parameters is not None
        for field, slot, _, start, place in process.tree.placed_fields:
            size = field.size
            rows = live & (choice == slot)
            if posterior and len(process.tree.procedures) <= slot < process.tree.null:
                continue  # observed
            p = steps.conditional.parameters[..., start : start + size].softmax(-1).detach()[rows]
            found = flat[..., 1 + place : 1 + place + size][rows]
            assert (found.sum(-1) == 1).all()
            scores.append((found - p).sum(0) / (p * (1 - p)).sum(0).sqrt())
    every = torch.cat(scores)
    assert len(every) >= 8 and every.abs().max() < 4.5


@compiled
def test_the_same_seed_gives_the_same_sample() -> None:
    process = random_stack(BUBBLE_SORT_MOVE_TREE, posterior=True, size=0.5)
    sequence = Sequence(process, context_for(process), 200)
    torch.manual_seed(3)
    first, second = sequence.sample(), sequence.sample()
    torch.manual_seed(3)
    assert torch.equal(first, sequence.sample())
    assert torch.equal(second, sequence.sample())
    assert first.shape != second.shape or not torch.equal(first, second)


@compiled
def test_native_walks_read_strided_contexts() -> None:
    process = random_stack(BUBBLE_SORT_MOVE_TREE, posterior=True)
    context = context_for(process)
    turned = CallStackContext(*(None if x is None else x.flip(0) for x in context))
    views = turned._replace(features=torch.empty(7, 16, 6).transpose(0, 1).copy_(turned.features))
    a, b = (Sequence(process, c, 100).greedy() for c in (turned, views))
    assert torch.equal(a, b)


def test_without_a_library_tensor_code_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_stack_native, "library", lambda *_: None)
    process = random_stack(BUBBLE_SORT_TREE, posterior=True)
    sequence = Sequence(process, context_for(process, batch=2), 100)
    assert (sequence.log_prob(sequence.sample()) > -1e8).all()


def test_what_the_native_walk_cannot_do_is_left_to_tensor_code() -> None:
    for text, dtype in ((BUBBLE_SORT_TREE, torch.float64), (HYBRID, torch.float32)):
        for posterior in (False, True):
            process = random_stack(text, posterior=posterior).to(dtype)
            context = context_for(process, dtype=dtype)
            assert call_stack_native.walk(process, context, 50, True) is None
            assert Sequence(process, context, 50).greedy().dtype == dtype
    # A real argument of an action is observed by the posterior, drawn by the prior.
    text = "actions: push(force: real[1])\nmain -> push"
    for posterior in (False, True):
        process = random_stack(text, posterior=posterior)
        z = Sequence(process, context_for(process, batch=3), 200).greedy()
        assert z.isfinite().all()
        if not posterior:
            assert call_stack_native.walk(process, context_for(process), 50, True) is None
            pushes = z[z[..., 0] == 1, 1]
            assert len(pushes.unique()) > 1  # real numbers, no one-hots


@compiled
def test_contexts_that_do_not_fit_are_never_read_natively() -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=True)
    context = context_for(process)
    for wrong in (
        context._replace(features=context.features[..., :-1]),
        context._replace(task=context.task[:, :0]),
        context._replace(actions=None),
        context._replace(features=context.features.double()),
    ):
        assert call_stack_native.walk(process, wrong, 50, True) is None
    with pytest.raises(ValueError, match="actions are whole numbers, got torch.float32"):
        Sequence(process, context._replace(actions=context.actions.float()), 50).sample()


@compiled
def test_networks_and_tables_that_do_not_fit_the_tree_are_never_read_natively() -> None:
    def fits(process: CallStack) -> bool:
        return call_stack_native.walk(process, context_for(process), 50, True) is not None

    for posterior in (False, True):
        process = random_stack(BUBBLE_SORT_MOVE_TREE, posterior=posterior, hidden=(8,))
        assert process.argue is not None and fits(process)
        tensors = [*process.choose.parameters(), *process.argue.parameters(), process._counts]
        tensors.append(process.consistent if posterior else process.available)
        for tensor in tensors:
            for dim in range(tensor.dim()):
                whole = tensor.data
                tensor.data = whole.narrow(dim, 0, whole.shape[dim] - 1)
                assert not fits(process), (tensor.shape, dim)
                tensor.data = whole
        assert fits(process)


@compiled
def test_a_call_deeper_than_the_tree_ends_the_native_walk() -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=False)
    process.available = torch.zeros_like(process.available)
    process.available[:, 0] = True  # every procedure calls the root
    with pytest.raises(ValueError, match=f"sequence 0, step {process.tree.depth - 1}: no choice is possible"):
        call_stack_native.walk(process, context_for(process), 1000, False)


@compiled
def test_a_native_walk_without_a_choice_says_where() -> None:
    process = random_stack(BUBBLE_SORT_TREE, posterior=True)
    context = context_for(process)
    assert context.actions is not None
    spoilt = context.features.clone()
    spoilt[5, 2] = float("nan")
    with pytest.raises(ValueError, match=r"sequence 5, step \d+: no choice is possible"):
        Sequence(process, context._replace(features=spoilt), 100).sample()


@pytest.mark.skipif(not sanitized_walks.available(), reason="needs gcc with sanitizers")
def test_native_walks_are_clean_under_sanitizers(tmp_path: Path) -> None:
    # More of them: python tests/helpers/sanitized_walks.py --count 300
    counts = sanitized_walks.campaign(20)
    assert counts["trees"] == 20 and counts["reports"] == 0
    assert counts["walked"] > 50 and counts["stuck"] > 10 and counts["refused"] > 1 and counts["left"] > 10

    wrong = tmp_path / "call_stack_walk.c"
    text = call_stack_native._SOURCE.read_text()
    wrong.write_text(text.replace("depth == w->depth", "depth > w->depth"))
    assert wrong.read_text() != text
    assert sanitized_walks.campaign(20, source=wrong)["reports"] == 1


@compiled
@pytest.mark.parametrize("posterior", [False, True])
@pytest.mark.parametrize("missing", [None, *range(9)])
def test_the_lanes_of_a_warp_walk_as_one_thread(
    missing: int | None, posterior: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order they take between barriers; where a barrier is missing, one of the orders tells."""
    before, *after = call_stack_native._SOURCE.read_text().split(" SYNC();")
    assert len(after) == 9
    barriers = ["" if number == missing else " SYNC();" for number in range(9)]
    text = before + "".join(barrier + part for barrier, part in zip(barriers, after, strict=True))
    warp = tmp_path / "warp.c"
    warp.write_text((Path(sanitized_walks.__file__).parent / "warp.c").read_text().replace("\nWALK\n", text))
    native = library(warp, "pyrocontrol_walk")
    assert native is not None
    # Layers and fields wider than a warp, and several fields of a procedure.
    text = "actions: push(side: onehot[2], place: onehot[40])\nmain(goal: onehot[3]) -> sub, push\n"
    text += "sub(kind: onehot[35]) counts -> push returns (seen: onehot[2], found: onehot[2])"
    process = random_stack(text, posterior=posterior, hidden=(40, 8), argument_hidden=(40,), activation="tanh")
    context = context_for(process, batch=5)
    walks = [call_stack_native.walk(process, context, 60, False, seed=3)]
    monkeypatch.setattr(call_stack_native, "library", lambda *_: native)
    for backward in (0, 1):
        native.pyrocontrol_order(backward)
        try:
            walks.append(call_stack_native.walk(process, context, 60, False, seed=3))
        except ValueError:  # without a barrier even the choices are none
            assert missing is not None
            walks.append(None)
    one, *orders = walks
    assert one is not None and (one[1] > 4).any()
    same = [other is not None and all(map(torch.equal, one, other)) for other in orders]
    assert all(same) == (missing is None)


def test_the_walk_compiles_for_a_gpu() -> None:
    nvrtc = pytest.importorskip("nvidia.cu13", reason="needs nvidia-cuda-nvrtc")
    compiler = ctypes.CDLL(str(next(Path(nvrtc.__path__[0]).glob("lib/libnvrtc.so.*"))))
    program, size, text = ctypes.c_void_p(), ctypes.c_size_t(), call_stack_native._SOURCE.read_bytes()
    compiler.nvrtcCreateProgram(ctypes.byref(program), text, b"walk.cu", 0, None, None)
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90", b"-Werror=all-warnings")
    status = compiler.nvrtcCompileProgram(program, 2, options)
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    assert not status, log.value.decode()
    compiler.nvrtcGetCUBINSize(program, ctypes.byref(size))
    binary = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetCUBIN(program, binary)
    assert call_stack_native._FUNCTION.encode() in binary.raw  # not mangled, as the caller asks for it


@compiled
def test_the_walk_is_launched_with_a_warp_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch on a GPU, in whose place a CPU reads the same words."""
    native, launches = library(call_stack_native._SOURCE, call_stack_native._FUNCTION), []
    assert native is not None

    def launch(grid: tuple[int, int, int], block: tuple[int, int, int], arguments: list[Tensor]) -> None:
        launches.append((grid, block))
        native.pyrocontrol_walk(ctypes.c_void_p(arguments[0].data_ptr()))

    monkeypatch.setattr(call_stack_native, "kernel", lambda *_: launch)
    on_gpu = call_stack_native._compiled(torch.device("cuda"))
    process = random_stack(BUBBLE_SORT_TREE, posterior=True)
    context = context_for(process, batch=5)
    expected = call_stack_native.walk(process, context, 60, False, seed=3)
    monkeypatch.setattr(call_stack_native, "_compiled", lambda device: on_gpu)
    found = call_stack_native.walk(process, context, 60, False, seed=3)
    assert expected is not None and found is not None and all(map(torch.equal, expected, found))
    assert launches == [((2, 1, 1), (128, 1, 1))]
    empty = CallStackContext(*(None if x is None else x[:0] for x in context))
    call_stack_native.walk(process, empty, 60, False)
    assert len(launches) == 1  # a grid has a block at least


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("posterior", [False, True])
def test_a_gpu_walks_as_a_cpu(posterior: bool) -> None:
    process = random_stack(BUBBLE_SORT_MOVE_TREE, posterior=posterior)
    context = context_for(process, batch=64)
    expected = call_stack_native.walk(process, context, 200, False, seed=3)
    moved = CallStackContext(*(None if x is None else x.cuda() for x in context))
    found = call_stack_native.walk(process.cuda(), moved, 200, False, seed=3)
    assert expected is not None and found is not None
    same = (expected[0] == found[0].cpu()).flatten(1).all(1)
    assert same.float().mean() > 0.9  # rounding decides between few choices


def test_a_return_bias_makes_procedures_begin_as_short_ones() -> None:
    traces = demonstrations(4, 0, max_length=3)
    steps = []
    for bias in (0.0, 3.0):
        torch.manual_seed(0)
        program = ControlProgram(BUBBLE_SORT_TREE, obs_size=22, return_bias=bias)
        prior = program.prior(traces)
        steps.append(prior.steps(prior.sample()).live.sum(1).float().mean())
    assert steps[1] < 0.5 * steps[0]


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_many_rows_go_through_the_network_of_their_own_procedure_alone(hidden: tuple[int, ...], float64: None) -> None:
    networks = ProcedureNetworks(4, 6, hidden, 3)
    x, procedure = torch.randn(600, 6, requires_grad=True), torch.randint(3, (600,))  # of one procedure there is none

    def found(rows: int) -> list[Tensor]:
        outputs = torch.cat([networks(*part) for part in zip(x.split(rows), procedure.split(rows), strict=True)])
        return [outputs, *torch.autograd.grad(outputs.square().sum(), [x, *networks.parameters()])]

    for sorted_, batched in zip(found(600), found(100), strict=True):
        torch.testing.assert_close(sorted_, batched)
