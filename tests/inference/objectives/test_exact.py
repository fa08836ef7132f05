"""The exact likelihood and posterior of call stacks, against sums over all stacks and against sampling."""

from __future__ import annotations

import os
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from small_programs import Case, random_case
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.inference import CallStackPosterior
from pyrocontrol.inference.objectives import call_spans_kernel, exact

TREES = int(os.environ.get("SMALL_PROGRAMS", "24"))


def posterior(case: Case) -> CallStackPosterior:
    """The posterior of a case, which is as much of a program, and of traces, as is asked of them."""
    return CallStackPosterior(case, case)  # type: ignore[arg-type]


def gradients(value: Tensor, module: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(value, [*module.parameters()], allow_unused=True)
    given = [torch.zeros_like(p) if g is None else g for g, p in zip(found, module.parameters(), strict=True)]
    return torch.cat([g.flatten() for g in given])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(TREES))
def test_it_is_the_sum_over_all_stacks(seed: int) -> None:
    case = random_case(seed, longest=2 + seed % 2, traces=1)
    exact, found = case.enumerated().log_likelihood, case.spans().log_prob()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    theirs, mine = gradients(exact.sum(), case.process), gradients(found.sum(), case.process)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(TREES))
def test_without_a_compiler_it_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed, longest=5)
    spans = case.spans()
    values, counts, _ = spans._sum(counts=True)
    best, likeliest = spans.likeliest()
    monkeypatch.setattr(call_spans_kernel, "library", lambda *_: None)
    again, recounted, _ = spans._sum(counts=True)
    torch.testing.assert_close(again, values, rtol=0, atol=1e-10)
    for one, other in zip(counts, recounted, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10)
    same_best, same = spans.likeliest()
    torch.testing.assert_close(same_best, best, rtol=0, atol=1e-10)
    assert all((one == other).all() for one, other in zip(likeliest, same, strict=True))


class Squared(torch.nn.Module):
    """An encoder that gives x and -x the same features, and not the same gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.shift = (2,), torch.nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift).square()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("move", [False, True])
def test_times_that_show_the_same_are_asked_once(move: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = demonstrations(6, 0, max_length=4, move=move)
    tree = BUBBLE_SORT_MOVE_TREE if move else BUBBLE_SORT_TREE
    torch.manual_seed(0)
    signs = torch.randint(2, (*traces.actions.shape, 2)) * 2.0 - 1  # four observations, which come again and again
    shown = traces.observations.abs().sum(-1, keepdim=True) > 0
    traces = traces.replace(observations=torch.where(shown, signs, 0.0), observation_space=None)
    program = pc.models.ControlProgram(tree, obs_size=2, encoder=Squared()).double()
    loss = pc.inference.ExactLikelihood()
    merged = loss.differentiable_loss(program, None, traces)
    mine, whole, asked = gradients(merged, program), exact._spans, []

    def apart(*given: Any, merged: bool = False) -> Any:
        asked.append((whole(*given, merged=True), found := whole(*given)))
        return found

    monkeypatch.setattr(exact, "_spans", apart)
    separate = loss.differentiable_loss(program, None, traces)
    torch.testing.assert_close(merged, separate, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine, gradients(separate, program), rtol=1e-9, atol=1e-9)
    few, many = (sum(len(time) for _, time in spans.rows) for spans in asked[0])
    assert few < 0.8 * many


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(0, TREES, 3))
def test_expected_calls_are_those_of_all_stacks(seed: int) -> None:
    case = random_case(seed, longest=3, traces=1)
    listed, tree = case.enumerated(), case.tree
    expected = torch.zeros(case.actions.shape[1], len(tree.procedures))
    for state, marginal in zip(listed.states[0], listed.marginals[0], strict=True):
        fresh = (state.depth > 0) & (state.frame[:, 1] == 0)
        expected.index_put_((state.time[fresh], state.frame[fresh, 0].long()), marginal[fresh], accumulate=True)
    found = posterior(case)
    torch.testing.assert_close(found.expected_calls[0], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.expected_calls.sum(1), found.expected_returns.sum(1), rtol=0, atol=1e-10)
    # The root runs from the first action to the last.
    torch.testing.assert_close(found.on_stack[..., 0], (case.actions < len(tree.actions)).double(), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_call_traces_are_drawn_as_often_as_they_are_likely() -> None:
    case = random_case(2, longest=3, traces=2)
    found, prior = posterior(case), case.prior()
    draws = 4000
    drawn = found.sample(draws)
    program = pc.models.ControlProgram(case.tree, obs_size=2)
    assert (program.taken(drawn, case.actions.shape[1])[0] == case.actions).all()
    for b in range(2):
        one = drawn[:, b].flatten(1)
        different, inverse = one.unique(dim=0, return_inverse=True)
        first = torch.stack([drawn[(inverse == k).nonzero()[0, 0]] for k in range(len(different))])
        exact = (prior.log_prob(first)[:, b] - found.log_likelihood[b]).exp()
        often = inverse.bincount() / draws
        assert ((often - exact).abs() < 4.5 * (exact * (1 - exact) / draws).sqrt() + 1e-9).all()
        assert exact.sum() <= 1 + 1e-9
        entropy = -(prior.log_prob(drawn)[:, b] - found.log_likelihood[b])
        assert abs(entropy.mean() - found.entropy[b]) < 4.5 * entropy.std() / draws**0.5 + 1e-9


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(0, TREES, 3))
def test_the_likeliest_call_trace_is_that_of_all_draws(seed: int) -> None:
    case = random_case(seed, longest=4)
    found, prior = posterior(case), case.prior()
    values, drawn = found._spans.likeliest()
    best = found._calls(drawn)
    torch.testing.assert_close(prior.log_prob(best), values, rtol=1e-10, atol=1e-10)
    assert (prior.log_prob(found.sample(200)) <= values + 1e-9).all()
    assert [str(one.tree_text()) for one in found.likeliest()]


def test_a_guide_is_compared_with_the_posterior() -> None:
    traces = demonstrations(6, 0, max_length=3)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    guide = pc.guides.CallStackGuide(program)
    found = pc.inference.CallStackPosterior(program, traces)
    # What a guide says of x is certain: it can only explain x.
    torch.testing.assert_close(found._guided(guide).log_prob(), torch.zeros(6).double(), rtol=0, atol=1e-4)
    elbo = pc.inference.StepwiseKL_ELBO()
    sampled = torch.tensor([-elbo.loss(program.model, guide, traces) for _ in range(400)])
    assert abs(sampled.mean() - found.elbo(guide).sum()) < 4.5 * sampled.std() / 20
    assert (found.kl(guide) > 0).all()
    assert (found.inclusive_kl(guide) > 0).all()
    torch.testing.assert_close(found.log_likelihood - found.kl(guide), found.elbo(guide))
    # Importance sampling from the guide has log p(x) too, where few stacks explain x.
    short = demonstrations(3, 0, max_length=2)
    z = guide.posterior(short).sample((2000,))
    weights = (program.prior(short).log_prob(z) - guide.posterior(short).log_prob(z)).detach()
    ratio = (weights - pc.inference.CallStackPosterior(program, short).log_likelihood).exp()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 2000**0.5 + 1e-6).all()


def test_no_length_underflows() -> None:
    traces = demonstrations(2, 0, min_length=8, max_length=8)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    for parameter in program.process.choose.parameters():
        parameter.data.mul_(30.0)  # sure of many wrong things
    found = pc.inference.CallStackPosterior(program, traces)
    assert (found.log_likelihood < -2000).all()
    assert found.log_likelihood.isfinite().all()
    torch.testing.assert_close(found.on_stack[..., 0].sum(1), (traces.lengths - 1).double(), rtol=1e-4, atol=0)


# -- as a loss ------------------------------------------------------------------------------------------------


def test_the_loss_has_all_that_the_model_observes() -> None:
    traces = demonstrations(6, 0, max_length=3, annotate=True)
    calls = traces.calls.clone()
    calls[3:] = torch.tensor([-1.0, 0.0])
    traces = traces.replace(calls=calls)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22, sparsity=2.0, num_traces=12)
    expected = 0.5 * 2.0 * program.process.group_norms(program.groups).sum()
    expected = expected - pc.inference.CallStackPosterior(program, traces[torch.arange(3, 6)]).log_likelihood.sum()
    expected = expected - program.prior(traces[torch.arange(3)]).log_prob(traces.calls[:3].clamp(min=0)).sum()
    loss = pc.inference.ExactLikelihood()(program)
    torch.testing.assert_close(loss(traces), expected.float())
    assert set(map(id, loss.parameters())) == set(map(id, program.parameters()))


@pytest.mark.parametrize("tree", [BUBBLE_SORT_TREE, BUBBLE_SORT_MOVE_TREE])
def test_it_learns_by_fit_and_by_svi(tree: str) -> None:
    traces = demonstrations(8, 0, max_length=3, move=tree == BUBBLE_SORT_MOVE_TREE)
    program = pc.models.ControlProgram(tree, obs_size=22)
    before = pc.inference.CallStackPosterior(program, traces).log_likelihood.sum()
    loss = pc.inference.ExactLikelihood()(program)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    pc.inference.fit((loss, optimizer), traces, steps=20, batch_size=4, progress=False)
    between = pc.inference.CallStackPosterior(program, traces).log_likelihood.sum()
    assert between > before + 10
    guide = pc.guides.CallStackGuide(program)
    svi = pyro.infer.SVI(program.model, guide, pyro.optim.Adam({"lr": 1e-2}), pc.inference.ExactLikelihood())
    pc.inference.fit(svi, traces, steps=20, batch_size=4, progress=False)
    assert pc.inference.CallStackPosterior(program, traces).log_likelihood.sum() > between


def test_temperature_is_between_the_sum_and_the_likeliest() -> None:
    traces = demonstrations(4, 0, max_length=3)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    found = pc.inference.CallStackPosterior(program, traces)
    likeliest = found._spans.likeliest()[0].sum()
    exact = pc.inference.ExactLikelihood
    losses = [-exact(temperature=t).loss(program.model, None, traces) for t in (0.01, 0.5, 1.0, 2.0)]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(float(likeliest), rel=1e-2)
    assert losses[2] == pytest.approx(float(found.log_likelihood.sum()), rel=1e-5)


# -- errors ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_summed_is_refused() -> None:
    traces = demonstrations(2, 0, max_length=3)
    hybrid = pc.models.ControlProgram(
        "actions: a, b, c, d, e\nroot(n: real[1]) -> part\npart(x: real[2]) -> a, b, c, d, e", obs_size=22
    )
    with pytest.raises(ValueError, match="procedure 'part': its argument 'x' is a real vector"):
        pc.inference.CallStackPosterior(hybrid, traces)
    with pytest.raises(ValueError, match="procedure 'part': its argument 'x' is a real vector"):
        pc.inference.ExactLikelihood()(hybrid)(traces)
    less = pc.models.ControlProgram("actions: a, b, c, d, e\nroot(n: real[1]) -> a, b, c, d", obs_size=22)
    with pytest.raises(ValueError, match=r"trace \d, step \d+: no procedure can reach the action 'e'"):
        pc.inference.ExactLikelihood()(less)(traces)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    with pytest.raises(ValueError, match=r"trace \d: exact sums over its \d+ actions take tables of"):
        pc.inference.ExactLikelihood(most_memory=1e3)(program)(traces)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        pc.inference.ExactLikelihood(temperature=0)

    def more(batch: Any) -> None:
        program.model(batch)
        pyro.sample("more", pyro.distributions.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'more' is latent as well"):
        pc.inference.ExactLikelihood().loss(more, None, traces)


def test_a_mask_and_a_scale_count() -> None:
    traces = demonstrations(4, 0, max_length=3)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    exact = pc.inference.CallStackPosterior(program, traces).log_likelihood
    mask = torch.tensor([True, False, True, False])
    loss = pc.inference.ExactLikelihood().loss(poutine.mask(program.model, mask=mask), None, traces)
    assert loss == pytest.approx(-float(exact[mask].sum()), rel=1e-5)
    loss = pc.inference.ExactLikelihood().loss(poutine.scale(program.model, scale=0.5), None, traces)
    assert loss == pytest.approx(-float(0.5 * exact.sum()), rel=1e-5)


@pytest.mark.parametrize("native", [True, False])
def test_nan_is_not_taken_for_impossible(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(call_spans_kernel, "library", lambda *_: None)
    traces = demonstrations(4, 0, max_length=2)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    program.process.choose.biases[-1].data[4] = torch.nan  # of lshift alone
    loss = pc.inference.ExactLikelihood()(program)
    assert loss(traces).isnan()
    with pytest.raises(ValueError, match="trace 0: the networks gave NaN"):
        pc.inference.CallStackPosterior(program, traces)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    with pytest.raises(FloatingPointError):
        pc.inference.fit((loss, optimizer), traces, steps=1, batch_size=2, progress=False)


def test_what_is_not_summed_is_said() -> None:
    traces = demonstrations(2, 0, max_length=3)
    short = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22, horizon=200)
    with pytest.raises(ValueError, match="exact sums have no horizon"):
        pc.inference.CallStackPosterior(short, demonstrations(1, 0, min_length=5, max_length=5))
    wide = "actions: a, b, c, d, e\nroot(n: real[1]) -> part\npart(x: onehot[40], y: onehot[40]) -> a, b, c, d, e"
    with pytest.raises(ValueError, match="procedure 'part': its argument has 1600 values, more than the 1000"):
        pc.inference.ExactLikelihood()(pc.models.ControlProgram(wide, obs_size=22))(traces)
    program = pc.models.ControlProgram(BUBBLE_SORT_TREE, obs_size=22)
    found = pc.inference.CallStackPosterior(program, traces)
    other = pc.models.ControlProgram(BUBBLE_SORT_MOVE_TREE, obs_size=22)
    with pytest.raises(ValueError, match="over the program's own tree"):
        found.kl(pc.guides.CallStackGuide(other))
    with pytest.raises(ValueError, match="number must be at least 1"):
        found.sample(0)
    loss = pc.inference.ExactLikelihood()(program)(traces)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        torch.autograd.grad(loss, program.process.choose.biases[-1], create_graph=True)


def test_the_posterior_is_in_double_precision() -> None:
    # One stack alone explains these actions, so there is nothing to be uncertain of.
    program = pc.models.ControlProgram("actions: a\nroot -> a", obs_size=3)
    seen = [torch.randn(1001, 3).numpy()]
    traces = pc.envs.from_arrays(seen, [[0] * 1000], action_space=1)
    found = pc.inference.CallStackPosterior(program, traces)
    assert found.on_stack.dtype == torch.float64
    assert abs(float(found.entropy)) < 1e-9
    double = program.double()
    assert pc.inference.CallStackPosterior(double, traces).log_likelihood.isfinite().all()
    mixed = pc.inference.CallStackPosterior(pc.models.ControlProgram(BUBBLE_SORT_TREE, 22), demonstrations(8, 0))
    assert mixed.on_stack.max() <= 1
