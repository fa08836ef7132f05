"""The program as a model of traces, what it refuses, and its execution in environments."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pyro
import pytest
import torch
from gymnasium.spaces import Box
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from pyrocontrol.envs import BubbleSortEnv, BubbleSortMoveEnv, Demonstrations
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations, teacher
from pyrocontrol.guides import CallStackGuide
from pyrocontrol.inference import StepwiseKL_ELBO
from pyrocontrol.models import ControlProgram, FieldEncoder, ProcedureTree

TREES = {False: BUBBLE_SORT_TREE, True: BUBBLE_SORT_MOVE_TREE}


def traces(count: int = 4, *, move: bool = False, annotate: bool = True, longest: int = 3) -> Demonstrations:
    return demonstrations(count, 0, max_length=longest, move=move, annotate=annotate)


def changed(data: Demonstrations, **tensors: Any) -> Demonstrations:
    """The same traces with some of their tensors changed, checked again as new ones are."""
    names = ("observations", "actions", "lengths", "action_space", "task", "arguments", "calls")
    return Demonstrations(**{name: tensors.get(name, getattr(data, name)) for name in names})


# -- checks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [False, True])
def test_good_traces_pass(move: bool) -> None:
    data = traces(move=move)
    program = ControlProgram(TREES[move], 22)
    program.check(data)
    program.check(changed(data, calls=None))
    assert data.calls is not None
    calls = data.calls.clone()
    calls[1] = torch.tensor([-1.0] + [0.0] * (calls.shape[-1] - 1))  # one without annotation
    program.check(changed(data, calls=calls))


def test_what_does_not_fit_the_program_is_refused() -> None:
    data = traces()
    with pytest.raises(ValueError, match="observations of width 21, the traces have width 22"):
        ControlProgram(BUBBLE_SORT_TREE, 21).check(data)
    with pytest.raises(ValueError, match="the traces have 2 actions, the tree has 5"):
        ControlProgram(BUBBLE_SORT_TREE, 22).check(traces(move=True))
    without_swap = BUBBLE_SORT_TREE.replace("bstep -> swap, rshift", "bstep -> rshift")
    swapping = demonstrations(8, 0, max_length=3)
    with pytest.raises(ValueError, match=r"trace \d+, step \d+: no procedure can reach the action 'swap'"):
        ControlProgram(without_swap, 22).check(swapping)
    with pytest.raises(ValueError, match="arg_size=2, but the widest .* has 1"):
        ControlProgram(BUBBLE_SORT_TREE, 22, arg_size=2)
    with pytest.raises(ValueError, match="line 1"):
        ControlProgram("nonsense", 22)


def test_traces_that_do_not_end_with_a_choice_to_stop_are_refused() -> None:
    data, program = traces(annotate=False), ControlProgram(BUBBLE_SORT_TREE, 22)
    cut = torch.tensor([False, False, True, False])
    for truncated in (cut, torch.zeros_like(cut)):  # a fragment was not terminated either
        last = int(data.lengths[2]) - 1
        with pytest.raises(ValueError, match=f"trace 2, step {last}: the trace was cut off, not terminated"):
            program.check(data.replace(terminated=~cut, truncated=truncated))
    program.check(data.replace(terminated=torch.ones_like(cut), truncated=cut))
    vectors = data.replace(actions=torch.zeros(*data.actions.shape, 1), action_space=Box(-1, 1, (1,)))
    with pytest.raises(ValueError, match="the actions must be Discrete, numbered and with a null, these are Box"):
        program.check(vectors)


def test_a_horizon_too_short_is_refused_before_and_at_run_time() -> None:
    data = traces(annotate=False)
    length = int(data.lengths.max()) - 1
    for horizon in (3, length):
        with pytest.raises(ValueError, match=rf"trace \d+, step \d+: the horizon of {horizon} PHP steps is too short"):
            ControlProgram(BUBBLE_SORT_TREE, 22, horizon=horizon).check(data)
    # Enough for some explanation of the trace, not for the one that is drawn.
    least = int(ProcedureTree.parse(BUBBLE_SORT_TREE).least_steps(data.actions).max())
    program = ControlProgram(BUBBLE_SORT_TREE, 22, horizon=least)
    program.check(data)
    with pytest.raises(ValueError, match=rf"horizon exhausted: sequence \d of the batch has not ended after {least}"):
        CallStackGuide(program).posterior(data).sample()
    # An annotation says how many are needed.
    with pytest.raises(ValueError, match="PHP steps is too short"):
        program.check(traces())


def test_annotations_that_do_not_fit_are_refused() -> None:
    data = traces(2)
    program = ControlProgram(BUBBLE_SORT_TREE, 22)
    bubble, resetptr, bstep, lshift, rshift, left1, _, _, right2, swap, null = range(1, 12)
    assert data.calls is not None
    own = data.calls[0]
    last = int((own[:, 0] >= 0).sum()) - 1
    assert own[:2, 0].tolist() == [bubble, right2]

    def refused(message: str, **edits: float) -> None:
        calls = data.calls.clone()  # type: ignore[union-attr]
        for place, value in edits.items():
            calls[0, int(place[1:]), 0] = value
        with pytest.raises(ValueError, match=message):
            program.check(changed(data, calls=calls))

    refused(r"trace 0, call 0: an annotated choice outside 0..11", s0=12)
    refused(r"trace 0, call 0: the running procedure has no such choice as annotated", s0=swap)
    refused(r"trace 0, call 1: the running procedure .* returns before it has done anything", s1=null)
    refused(rf"trace 0, call {last}: the annotated calls stop before the root returns", **{f"s{last}": -1})
    longer = torch.cat([data.calls, torch.tensor([[[-1.0, 0.0]]]).expand(2, 1, 2)], 1)
    longer[0, last + 1, 0] = left1
    with pytest.raises(ValueError, match=rf"trace 0, call {last + 1}: an annotated call after the root has returned"):
        program.check(changed(data, calls=longer))
    with pytest.raises(ValueError, match="annotated calls of this tree have width 2, the traces' have 3"):
        program.check(changed(data, calls=torch.cat([data.calls, data.calls[..., 1:]], -1)))
    # A swap more than the trace has.
    first = int((own[:, 0] == bstep).nonzero()[0]) + 1
    if own[first, 0] != swap:
        more = torch.cat([own[:first], torch.tensor([[float(swap), 0.0]]), own[first:]])
        calls = torch.full((2, len(more), 2), -1.0)
        calls[..., 1], calls[0] = 0.0, more
        with pytest.raises(ValueError, match="trace 0, step 1: the annotated calls do not take the trace's action"):
            program.check(changed(data, calls=calls))


def test_annotated_arguments_must_be_the_traces() -> None:
    data = traces(2, move=True)
    assert data.calls is not None
    calls = data.calls.clone()
    move = int((calls[0, :, 0] == 5).nonzero()[0])
    calls[0, move, 1:] = calls[0, move, 1:].flip(-1)
    with pytest.raises(ValueError, match=r"trace 0, step 0: the annotated calls do not take the action's argument"):
        ControlProgram(BUBBLE_SORT_MOVE_TREE, 22).check(changed(data, calls=calls))


TURNS = """\
actions: a, b(k: onehot[2])
main -> look
look(side: onehot[2], far: real[1]) -> a, b returns (found: onehot[2])
"""


def test_annotated_arguments_and_return_values_are_values_of_their_fields() -> None:
    program = ControlProgram(TURNS, 1)
    main, look, a, b, null = range(5)
    own = [[look, 0, 1, -7], [b, 1, 0, 0], [null, 1, 0, 0], [null, 0, 0, 0]]
    arguments, calls = torch.tensor([[[1.0, 0], [0, 0]]]), torch.tensor([own], dtype=torch.float32)
    actions, lengths = torch.tensor([[b - a, 2]]), torch.tensor([2])
    traces = Demonstrations(torch.zeros(1, 2, 1), actions, lengths, 2, arguments=arguments, calls=calls)
    program.check(traces)
    for call, row, message in (
        (0, (0, 0, 1), r"argument of 'look' must hold side: onehot\[2\], got \[0.0, 0.0\]"),
        (0, (-9, -9, 1), r"argument of 'look' must hold side: onehot\[2\], got \[-9.0, -9.0\]"),
        (1, (1, 0, 3), r"argument of 'b' must hold zeros beyond its 2 numbers, got \[3.0\]"),
        (2, (0.5, 0.5, 0), r"return value of 'look' must hold found: onehot\[2\], got \[0.5, 0.5\]"),
        (3, (1, 0, 0), r"return value of 'main' must hold zeros beyond its 0 numbers, got \[1.0, 0.0, 0.0\]"),
    ):
        calls = traces.calls.clone()  # type: ignore[union-attr]
        calls[0, call, 1:] = torch.tensor(row, dtype=torch.float32)
        with pytest.raises(ValueError, match=rf"trace 0, call {call}: the {message}"):
            program.check(traces.replace(calls=calls))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": -1.0}, "sparsity must be at least 0, not -1.0"),
        ({"sparsity": float("nan")}, "sparsity must be finite, not nan"),
        ({"sparsity": 1.0, "num_traces": 0}, "num_traces must be at least 1, not 0"),
        ({"horizon": -5}, "horizon must be at least 1, not -5"),
        ({"return_bias": float("inf")}, "return_bias must be finite, not inf"),
        ({"hidden": (4, 0)}, "hidden must be at least 1, not 0"),
        ({"argument_hidden": (0,)}, "argument_hidden must be at least 1, not 0"),
        ({"unpenalized": "last"}, r"sequence of names, such as \('last',\), not 'last'"),
    ],
)
def test_a_program_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ControlProgram(BUBBLE_SORT_TREE, 22, **options)


def test_a_signature_tells_what_decides_the_result() -> None:
    def signature(**options: Any) -> str:
        return ControlProgram(BUBBLE_SORT_TREE, 22, **options).signature()

    one, other = ({"unpenalized": names} for names in (("last", "counter"), ("counter", "last", "last")))
    assert signature(**one) == signature(**other)
    assert len({signature(), signature(horizon=500), signature(return_bias=2.0), signature(**one)}) == 4


# -- the model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [False, True])
def test_taken_reads_the_actions_off_the_calls(move: bool) -> None:
    data, program = traces(move=move), ControlProgram(TREES[move], 22)
    assert data.calls is not None
    times = data.actions.shape[1]
    actions, arguments = program.taken(data.calls, times)
    assert torch.equal(actions.long(), data.actions) and torch.equal(arguments, data.arguments)
    wide = data.calls.expand(3, 2, *data.calls.shape)
    assert torch.equal(program.taken(wide, times)[0], actions.expand(3, 2, *actions.shape))
    assert torch.equal(program.taken(data.calls, 2)[0].long(), data.actions[:, :2])  # cut off
    longer, _ = program.taken(data.calls, times + 3)
    assert (longer[:, times:] == program.tree.null - len(program.tree.procedures)).all()


def test_annotated_traces_are_observed_and_others_latent() -> None:
    data = traces()
    assert data.calls is not None
    calls = data.calls.clone()
    calls[[0, 2]] = torch.tensor([-1.0, 0.0])
    program = ControlProgram(BUBBLE_SORT_TREE, 22)
    guide = CallStackGuide(program)
    for given, latent in ((data.calls, 0), (None, 4), (calls, 2)):
        mixed = changed(data, calls=given)
        guide_trace = poutine.trace(guide).get_trace(mixed)
        model_trace = poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(mixed)
        sites = {name for name, site in model_trace.nodes.items() if site["type"] == "sample"}
        assert ("calls" in sites) == (latent > 0) == ("calls" in guide_trace.nodes)
        assert ("annotated_calls" in sites) == (latent < 4)
        model_trace.compute_log_prob()
        if latent:
            assert model_trace.nodes["calls"]["value"].shape[0] == latent
            assert (model_trace.nodes["actions"]["log_prob"] == 0).all()
        if latent < 4:
            site = model_trace.nodes["annotated_calls"]
            assert site["is_observed"] and site["log_prob"].shape == (4 - latent,)
            rows = torch.arange(4) if latent == 0 else torch.tensor([1, 3])
            torch.testing.assert_close(site["log_prob"], program.prior(data[rows]).log_prob(data[rows].calls))


def test_negative_annotated_arguments_are_scored_as_they_are() -> None:
    """Padding is marked by a choice of -1; a real argument may well be negative."""
    program = ControlProgram("actions: a\nmain -> sub\nsub(x: real[1]) -> a", 1)
    calls = torch.tensor([[[1.0, -2.0], [2.0, 0.0], [3.0, 0.0], [3.0, 0.0], [-1.0, 0.0]]])
    data = Demonstrations(torch.zeros(1, 3, 1), torch.tensor([[0, 1, 1]]), torch.tensor([2]), 1, calls=calls)
    program.check(data)
    trace = poutine.trace(program.model).get_trace(data)
    trace.compute_log_prob()
    state = program.process.initial(program.prior(data).context)
    expected = program.process.conditional(state, program.prior(data).context).log_prob(calls[:, 0])
    context = program.prior(data).context
    for i in range(1, 4):
        state = program.process.advance(state, calls[:, i - 1], context)
        expected = expected + program.process.conditional(state, context).log_prob(calls[:, i])
    torch.testing.assert_close(trace.nodes["annotated_calls"]["log_prob"], expected)


@pytest.mark.parametrize("elbo", [StepwiseKL_ELBO, Trace_ELBO])
def test_svi_trains_on_annotated_mixed_and_plain_traces(elbo: type[Any]) -> None:
    data = traces(4)
    assert data.calls is not None
    calls = data.calls.clone()
    calls[:2] = torch.tensor([-1.0, 0.0])
    for given, guided in ((data.calls, False), (calls, True), (None, True)):
        pyro.clear_param_store()
        batch = changed(data, calls=given)
        program = ControlProgram(BUBBLE_SORT_TREE, 22)
        guide = CallStackGuide(program, encoder_size=4)
        svi = SVI(program.model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
        before = [[p.clone() for p in module.parameters()] for module in (program, guide)]
        losses = [svi.step(batch) for _ in range(8)]
        assert np.isfinite(losses).all()
        moved = [
            any(not torch.equal(a, b) for a, b in zip(old, module.parameters(), strict=True))
            for old, module in zip(before, (program, guide), strict=True)
        ]
        assert moved == [True, guided]
        if not guided:
            assert losses[-1] < losses[0]  # plain maximum likelihood


def test_an_encoder_may_stand_before_the_procedures() -> None:
    class Squeeze(nn.Module):
        size, groups = 3, (3,)

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(22, 3)

        def forward(self, observations: Tensor) -> Tensor:
            return self.map(observations).tanh()

    data = traces(annotate=False)
    program = ControlProgram(BUBBLE_SORT_TREE, 22, encoder=Squeeze())
    z = CallStackGuide(program).posterior(data).sample()
    gradient = torch.autograd.grad(program.prior(data).log_prob(z).sum(), program.encoder.map.weight)[0]  # type: ignore[union-attr]
    assert gradient.abs().sum() > 0
    env = BubbleSortEnv(max_length=3)
    assert program.execute(env, seed=0, max_steps=20).calls.steps


def test_signatures_tell_programs_apart() -> None:
    plain = ControlProgram(BUBBLE_SORT_TREE, 22)
    assert plain.signature() == ControlProgram(BUBBLE_SORT_TREE, 22).signature()
    for other in (
        ControlProgram(BUBBLE_SORT_MOVE_TREE, 22),
        ControlProgram(BUBBLE_SORT_TREE, 21),
        ControlProgram(BUBBLE_SORT_TREE, 22, hidden=(8,)),
    ):
        assert plain.signature() != other.signature()


# -- execution ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "move"])
def sorter(request: pytest.FixtureRequest) -> tuple[bool, ControlProgram]:
    """A program that sorts lists of up to three digits 0..1, from the teacher's calls on every one of them."""
    move = request.param
    torch.manual_seed(0)
    lists = [list(x) for length in (2, 3) for x in product(range(2), repeat=length)]
    data = Demonstrations.from_episodes([teacher(x, move=move) for x in lists], 2 if move else 5)
    program = ControlProgram(TREES[move], 22)
    optimiser = torch.optim.Adam(program.parameters(), 0.03)
    for _ in range(150):
        loss = -program.prior(data).log_prob(data.calls).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return move, program


def test_a_learnt_program_sorts(sorter: tuple[bool, ControlProgram]) -> None:
    move, program = sorter
    env = BubbleSortMoveEnv() if move else BubbleSortEnv()
    for values in ([1, 1, 0], [1, 0], [0, 1, 0]):
        run = program.execute(env, options={"list": values})
        expected = teacher(values, move=move)
        assert run.finished and run.total_reward == 1.0
        assert run.info["list"].tolist() == sorted(values)
        assert run.actions == run.calls.actions == expected.actions.tolist()
        assert expected.calls is not None
        np.testing.assert_array_equal(
            np.array([[choice, *u] for choice, u in run.calls.steps], np.float32), expected.calls
        )
    seeded = [program.execute(env, seed=3, max_steps=30).info["list"].tolist() for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_sampled_execution(sorter: tuple[bool, ControlProgram]) -> None:
    move, program = sorter
    env = BubbleSortMoveEnv() if move else BubbleSortEnv()
    runs = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        run = program.execute(env, options={"list": [1, 0]}, greedy=False, max_steps=200)
        assert run.actions == run.calls.actions
        runs.append(run.calls.steps)
    assert runs[0] == runs[1]


def test_steps_may_run_out(sorter: tuple[bool, ControlProgram]) -> None:
    move, program = sorter
    env = BubbleSortMoveEnv() if move else BubbleSortEnv()
    run = program.execute(env, options={"list": [1, 0, 1]}, max_steps=5)
    assert not run.finished and len(run.calls.steps) == 5 and run.total_reward == 0.0
    with pytest.raises(ValueError, match="max_steps must be at least 1, not 0"):
        program.execute(env, max_steps=0)


class Script(gymnasium.Env[np.ndarray, np.int64]):
    """Shows given observations one after the other, and ends when they are used up."""

    def __init__(self, observations: list[Any], actions: int = 2, last_truncates: bool = False) -> None:
        self.script, self.truncates = observations, last_truncates
        self.action_space = gymnasium.spaces.Discrete(actions)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, np.shape(observations[0]), np.float32)
        self.taken: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.taken = []
        return self.script[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.int64(action))
        self.taken.append(int(action))
        over = len(self.taken) == len(self.script) - 1
        place = min(len(self.taken), len(self.script) - 1)
        return self.script[place], 0.5, over and not self.truncates, over and self.truncates, {"n": place}


def walker(actions_before_return: float = 1e4) -> ControlProgram:
    """Walks right where the observation is positive and left where it is not; returns at an observation above 5."""
    program = ControlProgram("actions: left, right\nmain -> step\nstep -> left, right", 1, hidden=())
    weight, bias = program.process.choose.weights[0], program.process.choose.biases[0]
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
        main, step, left, right, null = range(5)
        weight[1, 0, right], bias[1, left] = 10.0, 0.1
        bias[1, null] = -1e3
        weight[1, 2 + left, null] = weight[1, 2 + right, null] = actions_before_return  # h-: it took an action
        weight[0, 0, null], bias[0, null] = 100.0, -500.0
    return program


def observe(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def test_a_program_in_an_environment_that_knows_nothing_of_it() -> None:
    env = Script(observe(1.0, -1.0, 1.0, 9.0, 0.0))
    run = walker().execute(env)
    assert env.taken == run.actions == [1, 0, 1]
    assert run.finished and run.total_reward == 1.5 and run.info == {"n": 3}
    assert run.calls.tree_text() == "main\n  step\n    right\n  step\n    left\n  step\n    right"
    # One action more than the tree has is the null.
    env = Script(observe(1.0, -1.0, 1.0, 9.0, 0.0), actions=3)
    run = walker().execute(env)
    assert env.taken == [1, 0, 1, 2] and run.actions == [1, 0, 1] and run.finished and run.total_reward == 2.0


@pytest.mark.parametrize("truncates", [False, True])
def test_an_environment_may_end_early(truncates: bool) -> None:
    env = Script(observe(1.0, -1.0, 1.0), last_truncates=truncates)
    run = walker().execute(env)
    assert env.taken == run.actions == [1, 0] and not run.finished
    assert run.total_reward == 1.0 and run.info == {"n": 2}
    assert run.calls.intervals()[-1].end == 2


def test_execution_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="observations of width 1, got 2"):
        walker().execute(Script([np.zeros(2, np.float32)] * 3))
    for bad in (float("nan"), float("inf")):
        env = Script(observe(1.0, bad, 1.0))
        with pytest.raises(ValueError, match="row 0 is not finite"):
            walker().execute(env)
        assert env.taken == [1]
    program = ControlProgram(BUBBLE_SORT_TREE, 22)
    with pytest.raises(ValueError, match="the root takes an argument of width 1, the task has width 2"):
        program.execute(BubbleSortEnv(), task=torch.zeros(2))
    with pytest.raises(ValueError, match="the root takes an argument of width 1, the task has width 0"):
        program.execute(Script([np.zeros(22, np.float32)] * 3, actions=5))
    with pytest.raises(ValueError, match="the tree has 5 actions, the environment's action space is Discrete"):
        program.execute(Script([np.zeros(22, np.float32)] * 3, actions=2))
    with pytest.raises(ValueError, match="needs encode_action"):
        ControlProgram(BUBBLE_SORT_MOVE_TREE, 22).execute(Script([np.zeros(22, np.float32)] * 3, actions=5))


def test_an_action_gets_its_own_argument_however_wide_others_are() -> None:
    text = BUBBLE_SORT_MOVE_TREE.replace("bstep -> swap, shift", "bstep -> swap, shift returns (x: onehot[6])")
    program = ControlProgram(text, 22)
    assert program.tree.arg_size == 6
    assert program.execute(BubbleSortMoveEnv(), seed=0, max_steps=30).actions


def test_encoders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear needs an attribute groups"):
        ControlProgram(BUBBLE_SORT_TREE, 22, encoder=nn.Linear(22, 3))
    fields = [("digit", 10), (None, 1), ("digit", 10), (None, 2)]
    with pytest.raises(ValueError, match="does not take observations of width 22"):
        ControlProgram(BUBBLE_SORT_TREE, 22, encoder=FieldEncoder(fields))
    encoder = FieldEncoder(fields[:3] + [(None, 1)])
    encoder.groups = (1, 1)
    with pytest.raises(ValueError, match=r"output has width 4, its groups \(1, 1\) have 2"):
        ControlProgram(BUBBLE_SORT_TREE, 22, encoder=encoder)
    with pytest.raises(ValueError, match="vocabulary 'digit' have widths 10 and 9"):
        FieldEncoder([("digit", 10), ("digit", 9)])


def test_sparsity_is_weighed_against_the_training_set() -> None:
    with pytest.raises(ValueError, match="give num_traces"):
        ControlProgram(BUBBLE_SORT_TREE, 22, sparsity=0.3)
    program = ControlProgram(BUBBLE_SORT_TREE, 22, sparsity=0.3, num_traces=10)
    plain = ControlProgram(BUBBLE_SORT_TREE, 22)
    plain.load_state_dict(program.state_dict())
    data = traces(4, annotate=True)
    ratio = StepwiseKL_ELBO().loss(plain.model, lambda x: None, data)
    pyro.clear_param_store()
    norms = sum(
        (w.square().sum() + 1e-6).sqrt()
        for h in range(6)
        for w in program.process.choose.weights[0][h].split([1] * 22 + [1, 12, 1, 1])
    )
    loss = StepwiseKL_ELBO().loss(program.model, lambda x: None, data)
    assert loss == pytest.approx(ratio + 0.3 * 4 / 10 * float(norms.detach()), rel=1e-5)


@pytest.mark.parametrize("elbo", [RenyiELBO, TraceGraph_ELBO])
def test_other_elbos_take_the_pair(elbo: type[Any]) -> None:
    program = ControlProgram(BUBBLE_SORT_TREE, 22)
    loss = elbo(num_particles=2).loss(program.model, CallStackGuide(program), traces(2, annotate=False))
    assert 0 < loss < 1e4


def test_execution_in_double_precision() -> None:
    run = walker().double().execute(Script(observe(1.0, -1.0, 9.0, 0.0)))
    assert run.actions == [1, 0] and run.finished
    program = ControlProgram(BUBBLE_SORT_TREE, 22).double()
    assert program.execute(BubbleSortEnv(), task=torch.tensor([3.0]), seed=0, max_steps=10).calls.steps


def test_unpenalized_inputs_are_free() -> None:
    program = ControlProgram(BUBBLE_SORT_TREE, 22, sparsity=1.0, num_traces=10, unpenalized=("last",))
    norms = program.process.group_norms(program.groups)  # 22 observed numbers, counter, last, argument, returned
    torch.testing.assert_close(program.penalty(), norms.sum() - norms[:, 23].sum())
    assert "unpenalized" in program.signature()
    with pytest.raises(
        ValueError, match="unpenalized inputs are some of counter, last, argument, returned, got digits"
    ):
        ControlProgram(BUBBLE_SORT_TREE, 22, unpenalized=("digits",))
