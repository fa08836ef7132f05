"""`StepwiseKL_ELBO` against exact enumeration: its value, its gradient, and the wrong variants that must fail."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import kl_divergence

import enumeration
from pyrocontrol.envs import bubble_sort
from pyrocontrol.envs.data.demonstrations import Demonstrations, Episode
from pyrocontrol.guides import CallStackGuide, MemoryGuide
from pyrocontrol.inference import InexactKLError, StepwiseKL_ELBO
from pyrocontrol.inference.objectives import stepwise
from pyrocontrol.models import ControlProgram, Emission, LatentMemoryPolicy, Process, Sequence

pytestmark = pytest.mark.usefixtures("float64")


class Pair(NamedTuple):
    """A model and a guide, small enough to enumerate; a wrong estimator must be off by more than ``TELLING``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    parameters: list[Tensor]
    args: tuple[Any, ...] = ()


TELLING = 1e-3


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def categorical(logits: Tensor) -> Any:
    return dist.Categorical(logits=logits)


# The models


def loop() -> Pair:
    """A plain loop of categorical sites with an observation each."""
    first, following, emission, q = leaf(2), leaf(2, 2), leaf(2), leaf(4, 2, 2)
    data = torch.randn(4)

    def model() -> None:
        z = None
        for t in range(4):
            z = pyro.sample(f"z{t}", categorical(first if z is None else following[z]))
            pyro.sample(f"x{t}", dist.Normal(emission[z], 1.0), obs=data[t])

    def guide() -> None:
        z = torch.tensor(0)
        for t in range(4):
            z = pyro.sample(f"z{t}", categorical(q[t][z]))

    return Pair(model, guide, [first, following, emission, q])


def mixed() -> Pair:
    """Discrete and reparametrised sites in turn, each depending on those before."""
    p, q, emission = [leaf(2) for _ in range(6)], [leaf(2) for _ in range(6)], leaf(2)

    def sites(w: list[Tensor]) -> Tensor:
        a = pyro.sample("a", categorical(w[0]))
        x = pyro.sample("x", dist.Normal(w[1][a], (0.3 * w[2][a]).exp()))
        b = pyro.sample("b", categorical(w[3] * x.unsqueeze(-1)))
        y = pyro.sample("y", dist.Normal(w[4][b] * x, (0.3 * w[5][a]).exp()))
        return x + y.sin() * emission[b]

    def model() -> None:
        pyro.sample("o", dist.Normal(sites(p), 1.0), obs=torch.tensor(0.7))

    return Pair(model, lambda: sites(q), [*p, *q, emission])


def plated(scaled: str = "both", subsample: bool = False, second: bool = True) -> Pair:
    """A global and two local sites in a plate, or one; the first local one scaled and masked."""
    p, q, emission = [leaf(2), leaf(2, 2), leaf(2, 2)], [leaf(2), leaf(2, 2), leaf(2, 2)], leaf(2)
    mask, data = torch.tensor([True, False]), torch.randn(2)
    rows = torch.tensor([0, 2]) if subsample else None

    def sites(w: list[Tensor], weighed: bool, observe: bool) -> None:
        g = pyro.sample("g", categorical(w[0]))
        with pyro.plate("rows", 4 if subsample else 2, subsample=rows, dim=-1):
            with poutine.scale(scale=2.5 if weighed else 1.0):
                with poutine.mask(mask=mask if weighed else torch.tensor(True)):
                    z = pyro.sample("z", categorical(w[1][g]))
            v = pyro.sample("v", categorical(w[2][z])) if second else z
            if observe:
                pyro.sample("x", dist.Normal(emission[z] * (1 + v) + g, 1.0), obs=data)

    return Pair(
        lambda: sites(p, scaled != "neither", True),
        lambda: sites(q, scaled == "both", False),
        [*p, *q, emission],
    )


def two_plates() -> Pair:
    """Sites in one plate, sites in another, and observations in both."""
    p, q, emission = [leaf(2), leaf(2)], [leaf(2, 1, 2), leaf(2, 2)], leaf(2, 2)
    data = torch.randn(2, 2)

    def sites(w: list[Tensor], observe: bool) -> None:
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1)
        with rows:
            u = pyro.sample("u", categorical(w[0]))
        with columns:
            v = pyro.sample("v", categorical(w[1]))
        if observe:
            with rows, columns:
                pyro.sample("x", dist.Normal(emission[u, v], 1.0), obs=data)

    return Pair(lambda: sites(p, True), lambda: sites(q, False), [*p, *q, emission])


def plate_in_guide_only() -> Pair:
    """The model mixes rows that only the guide declares independent: they may not be credited separately."""
    p, q = [leaf(2), leaf(2, 2)], [leaf(2, 2), leaf(2, 2)]

    def model() -> None:
        with pyro.plate("rows", 2, dim=-1):
            a = pyro.sample("a", categorical(p[0]))
        pyro.sample("b", categorical(p[1][a.flip(-1)]).to_event(0))

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-1):
            a = pyro.sample("a", categorical(q[0]))
            pyro.sample("b", categorical(q[1][a]))

    return Pair(model, guide, [*p, *q])


def masked_distributions() -> Pair:
    """Distributions that mask themselves, alike in model and guide and not, to the left and right of to_event."""
    p, q, emission = [leaf(2), leaf(2, 2), leaf(2)], [leaf(2), leaf(2, 2), leaf(2)], leaf(2)
    keep = torch.tensor([True, False])

    def model() -> None:
        a = pyro.sample("a", categorical(p[0]).mask(False))
        b = pyro.sample("b", categorical(p[1][a]).expand([2]).mask(keep).to_event(1))
        c = pyro.sample("c", categorical(p[2]))
        pyro.sample("x", dist.Normal(emission[a] + emission[b].sum() * (1 + c), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        a = pyro.sample("a", categorical(q[0]).mask(False))
        pyro.sample("b", categorical(q[1][a]).expand([2]).mask(keep).to_event(1))
        pyro.sample("c", categorical(q[2]).mask(torch.tensor(True)))

    return Pair(model, guide, [*p, *q, emission])


def fallback() -> Pair:
    """No closed form is registered: a discrete and a reparametrised pair, and a closed form after them."""
    p, q, emission = [leaf(), leaf(2), leaf(2)], [leaf(), leaf(2), leaf(2, 2)], leaf(2)

    def model() -> None:
        a = pyro.sample("a", dist.Geometric(logits=p[0]))
        x = pyro.sample("x", dist.StudentT(5.0, p[1][a.long()], 1.0))
        b = pyro.sample("b", categorical(p[2] * x))
        pyro.sample("o", dist.Normal(emission[b] * x, 1.0), obs=torch.tensor(0.4))

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=q[0]))
        x = pyro.sample("x", dist.Normal(q[1][a.long()], 0.6))
        pyro.sample("b", categorical(q[2][a.long()] * x))

    return Pair(model, guide, [*p, *q, emission])


def auxiliary() -> Pair:
    """The guide mixes over a site that the model does not have."""
    p, q, emission = [leaf(2), leaf(2, 2)], [leaf(2), leaf(2, 2), leaf(2, 2)], leaf(2)

    def model() -> None:
        a = pyro.sample("a", categorical(p[0]))
        b = pyro.sample("b", categorical(p[1][a]))
        pyro.sample("x", dist.Normal(emission[b], 1.0), obs=torch.tensor(0.4))

    def guide() -> None:
        u = pyro.sample("u", categorical(q[0]), infer={"is_auxiliary": True})
        a = pyro.sample("a", categorical(q[1][u]))
        pyro.sample("b", categorical(q[2][a]))

    return Pair(model, guide, [*p, *q, emission])


class ChainState(NamedTuple):
    previous: Tensor
    count: Tensor


class Chain(Process):
    """A Markov chain; one that terminates ends with its first 0, at the latest at ``longest`` steps."""

    def __init__(self, states: int, longest: int | None = None):
        super().__init__()
        self.table = nn.Parameter(torch.randn(states, states))
        self.terminates, self.longest = longest is not None, longest

    def initial(self, context: Tensor) -> ChainState:
        zeros = torch.zeros(len(context), dtype=torch.long)
        return ChainState(zeros, zeros)

    def conditional(self, state: ChainState, context: Tensor) -> Any:
        shift = context.unsqueeze(1) if state.previous.dim() == 2 else context
        logits = self.table[state.previous] + shift
        if self.longest is not None:
            last = (state.count == self.longest - 1).unsqueeze(-1)
            logits = torch.where(last & (torch.arange(logits.shape[-1]) > 0), -math.inf, logits)
        return categorical(logits)

    def advance(self, state: ChainState, z: Tensor, context: Tensor) -> ChainState:
        return ChainState(z.long(), state.count + 1)

    def live(self, state: ChainState, context: Tensor) -> Tensor:
        return (state.count == 0) | (state.previous > 0)


def sequence(longest: int | None = None, analytic: bool = True, scaled: str = "neither") -> Pair:
    """A Sequence site in a plate, ending by itself or not, and sites before and after it."""
    states, horizon = (2, 2) if longest is None else (3, 3)
    prior, posterior = Chain(states, longest), Chain(states, longest)
    p, q, emission = leaf(2, states), leaf(2, states), leaf(2)
    p_first, q_first = leaf(2), leaf(2)
    weight, mask = torch.tensor([1.7, 0.6]), torch.tensor([False, True])
    infer = {"analytic_kl": analytic}

    def sites(process: Chain, first: Tensor, shift: Tensor, weighed: bool, observe: bool) -> None:
        a = pyro.sample("a", categorical(first))
        with pyro.plate("rows", 2, dim=-1):
            with poutine.scale(scale=weight if weighed else torch.ones(())):
                with poutine.mask(mask=mask if weighed else torch.tensor(True)):
                    context = shift.expand(a.shape[:-1] + shift.shape) * (1 + a[..., None, None].squeeze(-2))
                    chain = Sequence(process, context, horizon, batch_shape=context.shape[:-1])
                    s = pyro.sample("s", chain, infer=infer)
            b = pyro.sample("b", categorical(first * (1 + s.sum(-1, keepdim=True))))
            if observe:
                x = torch.tensor([0.5, -0.5])
                pyro.sample("x", dist.Normal(emission[b] * s.sum(-1), 1.0), obs=x)

    return Pair(
        lambda: sites(prior, p_first, p, scaled != "neither", True),
        lambda: sites(posterior, q_first, q, scaled == "both", False),
        [prior.table, posterior.table, p, q, emission, p_first, q_first],
    )


def sequence_in_another_order() -> Pair:
    """The model samples a site before a Sequence, on which it depends; the guide, independently, after it."""
    prior, posterior = Chain(2), Chain(2)
    p, q, shift = leaf(2), leaf(2), leaf(2, 2)

    def model() -> None:
        a = pyro.sample("a", categorical(p))
        s = pyro.sample("s", Sequence(prior, shift[a].unsqueeze(0), 3, batch_shape=(1,)).to_event(0))
        pyro.sample("x", dist.Normal(s.sum() * (1.0 + a), 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        pyro.sample("s", Sequence(posterior, torch.zeros(1, 2), 3, batch_shape=(1,)))
        pyro.sample("a", categorical(q))

    return Pair(model, guide, [p, q, shift, prior.table, posterior.table])


def emission(
    longest: int | None = None,
    analytic: bool = True,
    scaled: bool = False,
    between: bool = False,
    wide: bool = False,
    whole: bool = False,
) -> Pair:
    """A Sequence with an observation of every step, which depends on all steps up to it and on other sites.

    Args:
        longest: steps at which the sequence ends at the latest, None if it does not end by itself.
        analytic: KLs rather than log-ratios.
        scaled: the observations are scaled and masked.
        between: a site stands between the sequence and its observations.
        wide: two observations of every step, in a plate of their own.
        whole: the observations are one to the estimator.
    """
    # Three steps, two after the first, where nothing else tells cases apart.
    states, horizon = (2 if longest is None else 3), (2 if between or wide or not analytic else 3)
    prior, posterior = Chain(states, longest), Chain(states, longest)
    p, q, level, start = leaf(2, states), leaf(2, states), leaf(2), leaf(2)
    p_first, q_first = leaf(2), leaf(2)
    x = torch.randn(2, 2, horizon) if wide else torch.randn(2, horizon)
    keep = torch.tensor([[True, True, True], [True, False, True]])[:, :horizon] if scaled else None
    weight, mask = torch.tensor([1.7, 0.6]), torch.tensor([[True], [False]]) if wide else torch.tensor([False, True])

    def latent(process: Chain, first: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = pyro.sample("a", categorical(first))
        context = shift.expand(a.shape[:-1] + shift.shape) * (1 + a[..., None, None].squeeze(-2))
        infer = {"analytic_kl": analytic}
        s = pyro.sample("s", Sequence(process, context, horizon, batch_shape=context.shape[:-1]), infer=infer)
        b = pyro.sample("b", categorical(first * (1 + s.sum(-1, keepdim=True)))) if between else torch.zeros(())
        return a, s, b

    def model() -> None:
        with pyro.plate("rows", 2, dim=-1):
            a, s, b = latent(prior, p_first, p)
            steps = s.shape[-1]
            loc = level[0] * s.cumsum(-1) + level[1] * a.unsqueeze(-1) + start[0] * b.unsqueeze(-1)
            exists = keep
            if longest is not None:  # the end itself is observed too
                exists = (s == 0).cumsum(-1) - (s == 0).long() == 0
            base = dist.Normal(loc, (0.1 * start[1]).exp())
            with poutine.scale(scale=weight if scaled else torch.ones(())):
                with poutine.mask(mask=mask if scaled else torch.tensor(True)):
                    with pyro.plate("observers", 2, dim=-2) if wide else contextlib.nullcontext():
                        fn = Emission(base, "s", mask=exists)
                        if whole:
                            fn = (base if exists is None else base.mask(exists)).to_event(1)
                        pyro.sample("x", fn, obs=x[..., :steps])

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-1):
            latent(posterior, q_first, q)

    return Pair(model, guide, [prior.table, posterior.table, p, q, level, start, p_first, q_first])


def small_emission() -> Pair:
    """A chain of three steps and an observation of each, few enough for two particles."""
    prior, posterior, shift, level = Chain(2), Chain(2), leaf(2, 2), leaf()
    x = torch.randn(1, 3)

    def chain(process: Chain, shift: Tensor) -> Tensor:
        return pyro.sample("s", Sequence(process, shift.unsqueeze(0), 3))

    def model() -> None:
        with pyro.plate("rows", 1, dim=-1):
            pyro.sample("x", Emission(dist.Normal(level * chain(prior, shift[0]).cumsum(-1), 1.0), "s"), obs=x)

    def guide() -> None:
        with pyro.plate("rows", 1, dim=-1):
            chain(posterior, shift[1])

    return Pair(model, guide, [prior.table, posterior.table, shift, level])


def double(demonstrations: Demonstrations) -> Demonstrations:
    return demonstrations.to(dtype=torch.float64)


def call_stack(digits: tuple[int, ...] = (1, 3), rows: int = 1) -> Pair:
    """The control program that sorts, on the teacher's trace of a list of two: 108 call stacks explain it."""
    episode = bubble_sort.teacher(np.array(digits))._replace(calls=None)
    traces = double(Demonstrations.from_episodes([episode] * rows, 5))
    return program_pair(bubble_sort.BUBBLE_SORT_TREE, traces)


def program_pair(tree: str, traces: Demonstrations) -> Pair:
    program = ControlProgram(tree, obs_size=traces.observations.shape[-1], hidden=(3,), activation="tanh")
    guide = CallStackGuide(program, "lstm", encoder_size=2)
    parameters = [*program.parameters(), *guide.parameters()]
    with torch.no_grad():  # away from the nearly uniform start
        for parameter in parameters:
            parameter.mul_(2)
    return Pair(program.model, guide, parameters, (traces,))


def arguments(actions: int = 2) -> Pair:
    """Call stacks whose calls pass a real and a one-hot argument and return a real one: mixed steps."""
    tree = """
        actions: left, right
        root(task: real[1]) -> walk, left
        walk(speed: real[1], way: onehot[2]) -> left, right returns (tired: real[1])
    """
    observations = np.random.default_rng(0).normal(size=(actions + 1, 2))
    episode = Episode(observations, np.arange(actions), np.array([0.5]))
    return program_pair(tree, double(Demonstrations.from_episodes([episode], 2)))


def action_arguments() -> Pair:
    """Call stacks whose actions have observed arguments, and whose calls pass a one-hot one."""
    tree = """
        actions: move(way: onehot[2], far: real[1]), stop
        root -> walk, stop
        walk(way: onehot[2]) counts -> move
    """
    generator = np.random.default_rng(1)
    episode = Episode(
        generator.normal(size=(3, 2)),
        np.array([0, 1]),
        arguments=np.array([[1.0, 0.0, 0.3], [0.0, 0.0, 0.0]]),
    )
    return program_pair(tree, double(Demonstrations.from_episodes([episode], 2)))


def latent_memory(memory: str) -> Pair:
    """A policy whose memory is latent, on traces of three and two actions."""
    generator = np.random.default_rng(2)
    episodes = [Episode(generator.normal(size=(n + 1, 2)), generator.integers(0, 2, n)) for n in (3, 2)]
    traces = double(Demonstrations.from_episodes(episodes, 2))
    size = 2 if memory == "discrete" else 1
    policy = LatentMemoryPolicy(traces.observation_space, traces.action_space, memory=memory, size=size, hidden=(3,))
    guide = MemoryGuide(policy, encoder_size=2)
    parameters = [*policy.parameters(), *guide.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.5)
    return Pair(policy.model, guide, parameters, (traces,))


PAIRS: dict[str, Callable[[], Pair]] = {
    "loop": loop,
    "mixed": mixed,
    "plates": plated,
    "scale and mask in the model alone": lambda: plated("model"),
    "one site, scaled and masked in the model alone": lambda: plated("model", second=False),
    "no scale or mask": lambda: plated("neither"),
    "subsample": lambda: plated(subsample=True),
    "two plates": two_plates,
    "plate in the guide alone": plate_in_guide_only,
    "masked distributions": masked_distributions,
    "fallback": fallback,
    "auxiliary": auxiliary,
    "sequence": sequence,
    "sequence that ends": lambda: sequence(2),
    "scaled and masked sequence": lambda: sequence(scaled="both"),
    "sequence scaled and masked in the model alone": lambda: sequence(scaled="model"),
    "sequence of log-ratios": lambda: sequence(analytic=False),
    "sequence in another order": sequence_in_another_order,
    "emission": emission,
    "emission of a sequence that ends": lambda: emission(2),
    "scaled and masked emission": lambda: emission(scaled=True),
    "emission beside log-ratios": lambda: emission(analytic=False),
    "emission after another site": lambda: emission(between=True),
    "emission in a plate of its own": lambda: emission(wide=True),
    "scaled and masked emission in a plate of its own": lambda: emission(scaled=True, wide=True),
    "emission taken for one observation": lambda: emission(whole=True),
    "small emission": lambda: small_emission(),
    "discrete memory": lambda: latent_memory("discrete"),
    "gaussian memory": lambda: latent_memory("gaussian"),
    "call stack": call_stack,
    "call stack with arguments": arguments,
    "call stack with one argument": lambda: arguments(1),
    "call stack with action arguments": action_arguments,
}
SMALL = [name for name in PAIRS if name not in ("call stack",)]
# What a score that multiplies every cost may still get wrong: plates, steps, and what is not in all of them.
FULL = ["mixed", "two plates", "plate in the guide alone", "sequence that ends", "gaussian memory"]
FULL += ["scaled and masked emission in a plate of its own"]
# Small enough to enumerate two particles at once, and without quadrature.
VECTORISED = ["loop", "two plates", "auxiliary", "small emission", "one site, scaled and masked in the model alone"]


# Exact expectations


class Enumerated(NamedTuple):
    """A pair, all that its guide can do, and its exact negative ELBO with gradient."""

    pair: Pair
    runs: list[Any]
    loss: Tensor
    gradient: Tensor


def enumerate_pair(pair: Pair) -> Enumerated:
    found = list(enumeration.runs(pair.model, pair.guide, *pair.args))
    loss = -enumeration.exact_elbo(found)
    gradient = enumeration.gradient(loss, pair.parameters)
    assert gradient.abs().max() > TELLING
    return Enumerated(pair, found, loss.detach(), gradient)


@cache
def enumerated(name: str) -> Enumerated:
    """One of `PAIRS`, enumerated once for all tests."""
    pyro.set_rng_seed(0)
    return enumerate_pair(PAIRS[name]())


def moments(elbo: StepwiseKL_ELBO, exact: Enumerated) -> tuple[Tensor, Tensor, float]:
    """The expected loss and gradient, and the trace of the gradient's covariance."""
    model, guide, parameters, args = exact.pair
    weights, losses, gradients = enumeration.estimates(elbo, model, guide, args, parameters, exact.runs)
    mean = weights @ gradients
    return weights @ losses, mean, float(weights @ (gradients - mean).square().sum(-1))


def errors(elbo: StepwiseKL_ELBO, exact: Enumerated) -> tuple[float, float]:
    """How far the expected loss and gradient are from the exact ones (the largest coordinate)."""
    loss, gradient, _ = moments(elbo, exact)
    return float((loss - exact.loss).abs()), float((gradient - exact.gradient).abs().max())


@pytest.mark.parametrize(
    ("name", "score"), [*((name, "sequential") for name in SMALL), *((name, "full") for name in FULL)]
)
def test_expected_value_and_gradient_are_exact(name: str, score: str) -> None:
    value, gradient = errors(StepwiseKL_ELBO(score=score), enumerated(name))
    assert value < 1e-9 and gradient < 1e-9


def test_call_stacks_of_bubble_sort_are_exact() -> None:
    exact = enumerated("call stack")
    assert len(exact.runs) == 108  # counted apart, by dynamic programming over stacks
    value, gradient = errors(StepwiseKL_ELBO(), exact)
    assert value < 1e-9 and gradient < 1e-9


def test_a_batch_of_all_call_stacks_scaled_by_their_probability_is_exact() -> None:
    pair = call_stack((3, 1))
    (one,) = pair.args
    program, guide = pair.guide.program, pair.guide  # type: ignore[attr-defined]
    with torch.no_grad():
        posterior = guide.posterior(one)
        stacks = [choice.value(posterior)[0] for choice in enumeration.choices_of(posterior)]
    assert len(stacks) == 270
    z = nn.utils.rnn.pad_sequence(stacks, batch_first=True)
    (traces,) = call_stack((3, 1), rows=270).args
    log_q, log_p = guide.posterior(traces).log_prob(z), program.prior(traces).log_prob(z)
    loss = (log_q.exp() * (log_q - log_p)).sum()
    forced = enumeration.Force({"calls": enumeration.Choice(lambda fn: z, lambda fn: log_q)})(guide)
    weighed = poutine.scale(scale=log_q.exp().detach())
    exact = enumeration.gradient(loss, pair.parameters)
    for score in ("sequential", "full"):
        estimate = StepwiseKL_ELBO(score=score).differentiable_loss(weighed(pair.model), weighed(forced), traces)
        torch.testing.assert_close(estimate, loss, atol=1e-9, rtol=0)
        torch.testing.assert_close(enumeration.gradient(estimate, pair.parameters), exact, atol=1e-9, rtol=0)


def errors_of_two_particles(name: str) -> tuple[float, float]:
    """What `errors` says, of two vectorised particles."""
    exact = enumerated(name)
    model, guide, parameters, args = exact.pair
    nesting = {"loop": 0, "auxiliary": 0, "two plates": 2}.get(name, 1)
    both = pyro.plate("num_particles_vectorized", 2, dim=-1 - nesting)
    found = [run._replace(choices=enumeration.constant(run)) for run in enumeration.runs(both(model), both(guide))]
    elbo = StepwiseKL_ELBO(num_particles=2, max_plate_nesting=nesting, vectorize_particles=True)
    weights, losses, gradients = enumeration.estimates(elbo, model, guide, args, parameters, found)
    assert float(weights.sum()) == pytest.approx(1)
    return float((weights @ losses - exact.loss).abs()), float((weights @ gradients - exact.gradient).abs().max())


@pytest.mark.parametrize("name", VECTORISED)
def test_vectorised_particles_are_exact(name: str) -> None:
    assert max(errors_of_two_particles(name)) < 1e-9


@pytest.mark.parametrize("name", ["loop", "plates", "small emission"])
def test_a_baseline_that_counts_the_particle_itself_makes_the_gradient_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def less_all(multiplier: Tensor, frames: Any, *, steps: bool) -> Tensor:
        particles = next(frame.dim for frame in frames if frame.name == "num_particles_vectorized")
        return multiplier - multiplier.mean(particles - int(steps), keepdim=True)

    monkeypatch.setattr(stepwise, "_less_the_others", less_all)
    value, gradient = errors_of_two_particles(name)
    assert value < 1e-9 and gradient > TELLING


@pytest.mark.parametrize("name", ["loop", "plates", "emission of a sequence that ends"])
@pytest.mark.parametrize("vectorised", [True, False])
def test_another_unit_of_what_is_observed_adds_noise_unless_particles_are_vectorised(
    name: str, vectorised: bool
) -> None:
    model, guide, parameters, args = enumerated(name).pair

    def in_another_unit(*args: Any) -> None:
        model(*args)
        pyro.factor("unit", torch.tensor(100.0))

    elbo = StepwiseKL_ELBO(num_particles=3, vectorize_particles=vectorised)
    gradients = []
    for each in (model, model, in_another_unit):  # the first run guesses how plates nest
        pyro.set_rng_seed(1)
        loss = elbo.differentiable_loss(each, guide, *args)
        gradients.append(enumeration.gradient(loss, parameters, retain=False))
    assert torch.allclose(gradients[1], gradients[2], atol=1e-9) == vectorised


def test_the_oracle_agrees_with_pyros_enumeration() -> None:
    exact = enumerated("loop")
    guide = pyro.infer.config_enumerate(exact.pair.guide)
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    torch.testing.assert_close(exact.loss, elbo.differentiable_loss(exact.pair.model, guide).detach())


def test_the_oracle_scores_step_by_step_what_sequences_score_at_once() -> None:
    for name in ("call stack", "sequence that ends"):
        for run in enumerated(name).runs[::10]:
            sites = run.guide_trace.iter_stochastic_nodes()
            log_prob = sum(node["fn"].log_prob(node["value"]).sum() for _, node in sites)
            torch.testing.assert_close(log_prob, run.log_weight)


# Wrong variants


class DroppedKL(StepwiseKL_ELBO):
    """Leaves the later KLs out of the multiplier of the score."""

    def _terms(self, model_trace: Any, guide_trace: Any) -> Any:
        costs, scores = super()._terms(model_trace, guide_trace)
        dropped = {"reaches": -1, "apart": {}}
        return {n: c._replace(**dropped) if c.term.kind == "kl" else c for n, c in costs.items()}, scores


class WeighedScore(StepwiseKL_ELBO):
    """Scales and masks the score, whose multiplier is scaled and masked already."""

    def _terms(self, model_trace: Any, guide_trace: Any) -> Any:
        costs, scores = super()._terms(model_trace, guide_trace)
        for n, name in enumerate(latent_names(guide_trace)):
            site, score = guide_trace.nodes[name], scores[n]
            by = [
                x.unsqueeze(-1) if score.steps and isinstance(x, Tensor) and x.dim() else x
                for x in (site["scale"], site["mask"])
            ]
            scores[n] = score._replace(log_prob=scale_and_mask(score.log_prob, *by))
        return costs, scores


class OwnKL(StepwiseKL_ELBO):
    """Keeps a step's own KL in its multiplier."""

    def _terms(self, model_trace: Any, guide_trace: Any) -> Any:
        costs, scores = super()._terms(model_trace, guide_trace)
        for n, name in enumerate(latent_names(guide_trace)):
            cost = costs[name]
            if cost.term.kind == "kl":
                apart = {n: cost.apart[n] + cost.term.value} if scores[n].steps else {}
                costs[name] = cost._replace(reaches=max(n, cost.reaches), apart=apart)
        return costs, scores


class OwnLikelihood(StepwiseKL_ELBO):
    """Credits an observation to its own step alone."""

    def _terms(self, model_trace: Any, guide_trace: Any) -> Any:
        costs, scores = super()._terms(model_trace, guide_trace)
        for name, cost in costs.items():
            if cost.term.kind == "log_likelihood" and cost.apart:
                apart = {n: cost.value.unsqueeze(-1) - cost.term.value for n in cost.apart}
                costs[name] = cost._replace(apart=apart)
        return costs, scores


def latent_names(trace: Any) -> list[str]:
    return [name for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]


@pytest.mark.parametrize("name", ["loop", "mixed", "plates", "sequence", "fallback", "auxiliary", "call stack"])
def test_without_the_score_the_gradient_is_wrong(name: str) -> None:
    value, gradient = errors(StepwiseKL_ELBO(score="none"), enumerated(name))
    assert value < 1e-9 and gradient > TELLING


@pytest.mark.parametrize("name", ["loop", "mixed", "plates", "sequence", "sequence that ends", "call stack"])
def test_without_the_later_kls_the_gradient_is_wrong(name: str) -> None:
    value, gradient = errors(DroppedKL(), enumerated(name))
    assert value < 1e-9 and gradient > TELLING


@pytest.mark.parametrize("name", ["plates", "subsample", "scaled and masked sequence"])
def test_scaling_and_masking_the_score_once_more_makes_the_gradient_wrong(name: str) -> None:
    value, gradient = errors(WeighedScore(), enumerated(name))
    assert value < 1e-9 and gradient > TELLING


@pytest.mark.parametrize(
    "name",
    [
        "emission",
        "emission of a sequence that ends",
        "scaled and masked emission",
        "emission in a plate of its own",
        "small emission",
        "discrete memory",
    ],
)
def test_crediting_an_observation_to_its_own_step_alone_makes_the_gradient_wrong(name: str) -> None:
    value, gradient = errors(OwnLikelihood(), enumerated(name))
    assert value < 1e-9 and gradient > TELLING


def test_crediting_observations_to_later_steps_too_adds_nothing_but_variance() -> None:
    by_step, whole = enumerated("emission"), enumerated("emission taken for one observation")
    torch.testing.assert_close(by_step.gradient, whole.gradient)  # one model, told in two ways
    _, mean, variance = moments(StepwiseKL_ELBO(), by_step)
    _, other, larger = moments(StepwiseKL_ELBO(), whole)
    torch.testing.assert_close(other, mean, atol=1e-9, rtol=0)
    assert larger > 1.1 * variance


# A step's own KL is a function of what comes before the step, so its product with the step's score has expectation
# zero: kept in the multiplier it leaves the gradient unbiased, and no test of an expectation can find it. What it does
# is to make every single gradient another one than that of eq. (6), and noisier. So the estimator is compared, sample
# by sample, with eq. (6) written out as in the paper.


def eq6_of_sequences(q: Sequence, p: Sequence, z: Tensor, parameters: list[Tensor]) -> Tensor:
    """The sum over i of grad D_i + D_i grad log q(z_<i), for one row ``z`` ``[1, I, ...]``."""
    total, log_q = torch.zeros(sum(x.numel() for x in parameters)), torch.zeros((), requires_grad=True)
    mine, theirs = q.process.initial(q.context), p.process.initial(p.context)
    for i in range(z.shape[1]):
        q_i, p_i = q.process.conditional(mine, q.context), p.process.conditional(theirs, p.context)
        divergence = kl_divergence(q_i, p_i).sum()
        total = total + enumeration.gradient(divergence, parameters)
        total = total + float(divergence.detach()) * enumeration.gradient(log_q, parameters)
        log_q = log_q + q_i.log_prob(z[:, i]).sum()
        mine = q.process.advance(mine, z[:, i], q.context)
        theirs = p.process.advance(theirs, z[:, i], p.context)
    return total


def gradient_of_emission(pair: Pair, run: Any) -> Tensor:
    """The gradient of the KLs, less the sum over i of grad l_i + l_i grad log q(z_<=i)."""
    q, p, x = run.guide_trace.nodes["s"], run.model_trace.nodes["s"], run.model_trace.nodes["x"]
    total = eq6_of_sequences(q["fn"], p["fn"], q["value"], pair.parameters)
    likelihoods = x["fn"].base_dist.log_prob(x["value"])[0]
    log_q = q["fn"].step_log_prob(q["value"])[0].cumsum(-1)
    for i, likelihood in enumerate(likelihoods):
        total = total - enumeration.gradient(likelihood, pair.parameters)
        total = total - float(likelihood.detach()) * enumeration.gradient(log_q[i], pair.parameters)
    return total


def eq6_of_loop(pair: Pair, run: Any) -> Tensor:
    """The same for sites; the sampled likelihood of a step depends on z_<=i."""
    total = torch.zeros(sum(x.numel() for x in pair.parameters))
    log_q = torch.zeros((), requires_grad=True)
    for t in range(4):
        q_t, p_t = run.guide_trace.nodes[f"z{t}"], run.model_trace.nodes[f"z{t}"]
        divergence = kl_divergence(q_t["fn"], p_t["fn"])
        total = total + enumeration.gradient(divergence, pair.parameters)
        total = total + float(divergence.detach()) * enumeration.gradient(log_q, pair.parameters)
        log_q = log_q + q_t["fn"].log_prob(q_t["value"])
        x_t = run.model_trace.nodes[f"x{t}"]
        likelihood = x_t["fn"].log_prob(x_t["value"])
        total = total - enumeration.gradient(likelihood, pair.parameters)
        total = total - float(likelihood.detach()) * enumeration.gradient(log_q, pair.parameters)
    return total


def forced_gradient(elbo: StepwiseKL_ELBO, pair: Pair, run: Any) -> Tensor:
    guide = enumeration.Force(run.choices)(pair.guide)
    return enumeration.gradient(elbo.differentiable_loss(pair.model, guide, *pair.args), pair.parameters)


def test_every_gradient_of_a_loop_is_eq6() -> None:
    pair, found, *_ = enumerated("loop")
    for run in found[::3]:
        expected = eq6_of_loop(pair, run)
        torch.testing.assert_close(forced_gradient(StepwiseKL_ELBO(), pair, run), expected, atol=1e-10, rtol=0)
        assert (forced_gradient(OwnKL(), pair, run) - expected).abs().max() > TELLING


def test_every_gradient_of_an_emission_credits_observations_to_the_steps_before_them() -> None:
    pair, found, *_ = enumerated("small emission")
    for run in found:
        expected = gradient_of_emission(pair, run)
        torch.testing.assert_close(forced_gradient(StepwiseKL_ELBO(), pair, run), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("along", "steps", "message"),
    [
        ("t", 3, "'x' goes along 't', but the model has no site of that name before it"),
        ("later", 3, "'x' goes along 'later', but the model has no site of that name before it"),
        ("s", 2, "'x' has 2 steps, 's', along which it goes, has 3"),
    ],
)
def test_an_emission_along_nothing_is_refused(along: str, steps: int, message: str) -> None:
    chain = Chain(2)

    def guide() -> None:
        for name in ("s", "later"):
            pyro.sample(name, Sequence(chain, torch.zeros(1, 2), 3))

    def model() -> None:
        pyro.sample("s", Sequence(chain, torch.zeros(1, 2), 3))
        pyro.sample("x", Emission(dist.Normal(torch.zeros(1, steps), 1.0), along), obs=torch.zeros(1, steps))
        pyro.sample("later", Sequence(chain, torch.zeros(1, 2), 3))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):
        StepwiseKL_ELBO().loss(model, guide)


def test_an_emission_along_an_observed_sequence_is_an_observation() -> None:
    chain, z = Chain(2), torch.tensor([[0, 1, 1]])

    def model() -> None:
        pyro.sample("s", Sequence(chain, torch.zeros(1, 2), 3), obs=z)
        pyro.sample("x", Emission(dist.Normal(z.double(), 1.0), "s"), obs=torch.zeros(1, 3))

    with pyro.validation_enabled(False):
        loss = StepwiseKL_ELBO().loss(model, lambda: None)
        assert loss == pytest.approx(Trace_ELBO().loss(model, lambda: None))


def test_every_gradient_of_a_call_stack_is_eq6() -> None:
    pair, found, *_ = enumerated("call stack")
    (traces,) = pair.args
    program, guide = pair.guide.program, pair.guide  # type: ignore[attr-defined]
    for run in found[::20]:
        z = run.guide_trace.nodes["calls"]["value"].detach()
        expected = eq6_of_sequences(guide.posterior(traces), program.prior(traces), z, pair.parameters)
        torch.testing.assert_close(forced_gradient(StepwiseKL_ELBO(), pair, run), expected, atol=1e-10, rtol=0)
        assert (forced_gradient(OwnKL(), pair, run) - expected).abs().max() > TELLING


@pytest.mark.parametrize("name", ["loop", "call stack"])
def test_the_own_kl_adds_nothing_but_variance(name: str) -> None:
    _, mean, variance = moments(StepwiseKL_ELBO(), enumerated(name))
    _, other, larger = moments(OwnKL(), enumerated(name))
    torch.testing.assert_close(other, mean, atol=1e-9, rtol=0)
    assert larger > 1.02 * variance


# Sampled estimates


def largest_z(samples: list[Tensor], exact: Tensor) -> float:
    """The largest z-score of the mean of samples ``[P]``; a coordinate that never varies must be exact."""
    drawn = torch.stack(samples)
    error = drawn.std(0) / math.sqrt(len(drawn))
    difference = (drawn.mean(0) - exact).abs()
    varies = error > 1e-12
    torch.testing.assert_close(drawn.mean(0)[~varies], exact[~varies], atol=1e-9, rtol=0)
    return float((difference[varies] / error[varies]).max())


def draw(elbo: StepwiseKL_ELBO, pair: Pair, calls: int) -> list[Tensor]:
    """So many estimates of loss and gradient."""
    drawn = []
    for _ in range(calls):
        loss = elbo.differentiable_loss(pair.model, pair.guide, *pair.args)
        gradient = enumeration.gradient(loss, pair.parameters, retain=False)
        drawn.append(torch.cat([loss.detach().reshape(1), gradient]))
    return drawn


def joined(loss: Tensor, gradient: Tensor) -> Tensor:
    return torch.cat([loss.reshape(1), gradient])


@pytest.mark.parametrize(
    ("name", "calls", "particles", "vectorised"),
    [
        ("loop", 60, 5, False),
        ("loop", 100, 200, True),
        ("plates", 100, 200, True),
        ("sequence that ends", 60, 200, True),
        ("emission of a sequence that ends", 60, 200, True),
        ("scaled and masked emission in a plate of its own", 100, 50, True),
        ("sequence in another order", 300, 1, False),
    ],
)
def test_samples_agree_with_enumeration(name: str, calls: int, particles: int, vectorised: bool) -> None:
    exact = enumerated(name)
    elbo = StepwiseKL_ELBO(num_particles=particles, vectorize_particles=vectorised)
    pyro.set_rng_seed(1)
    assert largest_z(draw(elbo, exact.pair, calls), joined(exact.loss, exact.gradient)) < 4.5


def test_sampled_call_stacks_agree_with_enumeration() -> None:
    exact = enumerated("call stack")
    pyro.set_rng_seed(1)
    (traces,) = call_stack(rows=100).args  # a hundred rows of one trace: a hundred particles, their losses added
    samples = draw(StepwiseKL_ELBO(), exact.pair._replace(args=(traces,)), 30)
    assert largest_z([sample / 100 for sample in samples], joined(exact.loss, exact.gradient)) < 4.5


@pytest.mark.parametrize(
    ("name", "nodes", "calls", "particles"), [("mixed", 10, 50, 100), ("call stack with one argument", 8, 30, 100)]
)
def test_mixed_samples_agree_with_fine_quadrature(
    name: str, nodes: int, calls: int, particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = enumerated(name).pair
    monkeypatch.setattr(enumeration, "NODES", nodes)
    fine = enumerate_pair(pair)
    elbo = StepwiseKL_ELBO(num_particles=particles, vectorize_particles=True)
    pyro.set_rng_seed(1)
    samples = draw(elbo, pair, calls)
    assert largest_z(samples, joined(fine.loss, fine.gradient)) < 4.5


# When the KL is exact


class Graph(NamedTuple):
    """Binary sites in the model's and in the guide's order, and who depends on whom; what is illegal, if anything."""

    model: str
    model_edges: tuple[str, ...]
    guide: str
    guide_edges: tuple[str, ...]
    illegal: str = ""


GRAPHS = {
    "the model's order": Graph("abc", ("ab", "bc"), "abc", ("ab", "bc")),
    "independent in another order": Graph("abc", ("ab", "bc"), "cba", ()),
    "backward": Graph("ab", ("ab",), "ba", ("ba",), "b"),
    "backward where the model is independent": Graph("ab", (), "ba", ("ba",)),
    "backward through another site": Graph("abc", ("ac",), "cba", ("cb", "ba"), "c"),
    "backward beside": Graph("abc", ("ac",), "cba", ("cb",)),
    "a late parent on its own": Graph("abc", ("ab", "bc"), "cab", ("ab",)),
    "backward through an auxiliary site": Graph("ab", ("ab",), "bua", ("bu", "ua"), "b"),
    "partly forward": Graph("abc", ("ac", "bc"), "acb", ("ac", "cb"), "c"),
}
LEGAL = [name for name, graph in GRAPHS.items() if not graph.illegal]
ILLEGAL = [name for name, graph in GRAPHS.items() if graph.illegal]


def graph_pair(graph: Graph, sampled: str = "") -> Pair:
    """The graph with random tables; ``sampled`` names sites that take the sampled log-ratio."""
    p = {name: leaf(4, 2) for name in graph.model}
    q = {name: leaf(4, 2) for name in graph.guide}
    emission = leaf(4)

    def sites(order: str, edges: tuple[str, ...], tables: dict[str, Tensor]) -> Tensor:
        values: dict[str, Tensor] = {}
        for name in order:
            above = sum((values[edge[0]] for edge in edges if edge[1] == name), torch.tensor(0))
            infer = {"analytic_kl": name not in sampled, "is_auxiliary": name == "u"}
            values[name] = pyro.sample(name, categorical(tables[name][above]), infer=infer)
        return sum(values.values(), torch.tensor(0))

    def model() -> None:
        total = sites(graph.model, graph.model_edges, p)
        pyro.sample("x", dist.Normal(emission[total], 1.0), obs=torch.tensor(0.5))

    return Pair(
        model,
        lambda: sites(graph.guide, graph.guide_edges, q),
        [*p.values(), *q.values(), emission],
    )


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_order_is_exact(name: str) -> None:
    value, gradient = errors(StepwiseKL_ELBO(), enumerate_pair(graph_pair(GRAPHS[name])))
    assert value < 1e-9 and gradient < 1e-9


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_order_raises_with_and_without_validation(name: str) -> None:
    graph = GRAPHS[name]
    pair = graph_pair(graph)
    for validate in (True, False):
        elbo = StepwiseKL_ELBO()
        with pyro.validation_enabled(validate):
            for call in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss, elbo.step_terms):
                with pytest.raises(InexactKLError, match=f"the KL of '{graph.illegal}' would be biased"):
                    call(pair.model, pair.guide)
            with pytest.raises(InexactKLError):
                StepwiseKL_ELBO(num_particles=2, vectorize_particles=True).loss(pair.model, pair.guide)
            with pytest.raises(InexactKLError):
                elbo(pair.model, pair.guide)()


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_order_is_biased_where_it_is_not_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepwiseKL_ELBO, "_check_order", lambda *_: None)
    value, gradient = errors(StepwiseKL_ELBO(), enumerate_pair(graph_pair(GRAPHS[name])))
    assert value > TELLING and gradient > TELLING


@pytest.mark.parametrize("name", ILLEGAL)
def test_the_sampled_log_ratio_makes_an_illegal_order_exact(name: str) -> None:
    value, gradient = errors(StepwiseKL_ELBO(), enumerate_pair(graph_pair(GRAPHS[name], GRAPHS[name].illegal)))
    assert value < 1e-9 and gradient < 1e-9


def backward(dependence: Callable[[Tensor], Any]) -> Pair:
    """A guide that samples b and then a, which depends on it in some way that tensors do not show."""
    p, q = [leaf(2), leaf(2, 2)], leaf(2)

    def model() -> None:
        pyro.sample("b", categorical(p[1][pyro.sample("a", categorical(p[0]))]))

    def guide() -> None:
        b = pyro.sample("b", categorical(q))
        pyro.sample("a", categorical(torch.zeros(2) + dependence(b)))

    return Pair(model, guide, [*p, q])


def written(b: Tensor) -> Tensor:
    logits = torch.zeros(2)
    logits[0] = b
    return logits


def added(b: Tensor) -> Tensor:
    logits = torch.zeros(2)
    logits += b * torch.arange(2)
    return logits


@pytest.mark.parametrize(
    "dependence",
    [
        lambda b: torch.tensor([1.0, 0.0]) if b > 0 else 0.0,
        lambda b: torch.tensor([b.item(), 0.0]),
        lambda b: torch.tensor([float(b.tolist()), 0.0]),
        lambda b: torch.tensor([int(b), 0]),
        lambda b: torch.as_tensor(np.array([b.numpy(), 0.0])),
        lambda b: torch.eye(2)[range(2)[b]],
        written,
        added,
    ],
    ids=["branch", "item", "tolist", "int", "numpy", "index", "written", "added"],
)
def test_dependence_through_python_values_is_seen(dependence: Callable[[Tensor], Any]) -> None:
    pair = backward(dependence)
    for validate in (True, False):
        with pyro.validation_enabled(validate), pytest.raises(InexactKLError, match="the KL of 'b'"):
            StepwiseKL_ELBO().loss(pair.model, pair.guide)


def test_a_backward_sequence_raises() -> None:
    prior, posterior, shift, q = Chain(2), Chain(2), leaf(2, 2), leaf(2)

    def model() -> None:
        a = pyro.sample("a", categorical(torch.zeros(2)))
        pyro.sample("s", Sequence(prior, shift[a].unsqueeze(0), 3))

    def guide() -> None:
        s = pyro.sample("s", Sequence(posterior, torch.zeros(1, 2), 3))
        pyro.sample("a", categorical(q * s.sum()))

    with pytest.raises(InexactKLError, match="the KL of 's'"):
        StepwiseKL_ELBO().loss(model, guide)


def test_one_elbo_checks_every_pair_that_it_is_given() -> None:
    elbo = StepwiseKL_ELBO()
    legal = graph_pair(Graph("ab", ("ab",), "ba", ()))
    illegal = graph_pair(Graph("ab", ("ab",), "ba", ("ba",)))
    elbo.loss(legal.model, legal.guide)
    with pytest.raises(InexactKLError):
        elbo.loss(illegal.model, illegal.guide)
    elbo.loss(legal.model, legal.guide)


def test_the_check_of_the_order_draws_no_random_numbers() -> None:
    pair = graph_pair(GRAPHS["independent in another order"])
    elbo = StepwiseKL_ELBO()
    pyro.set_rng_seed(1)
    first = elbo.loss(pair.model, pair.guide), torch.rand(())
    pyro.set_rng_seed(1)
    assert (elbo.loss(pair.model, pair.guide), torch.rand(())) == first  # the order is known to be legal by now


@pytest.mark.parametrize(
    ("model_sites", "guide_sites", "message"),
    [
        ("ab", "a", "the guide has no site 'b'"),
        ("a", "ab", "the model has no site 'b'"),
        ("aB", "ab", "the guide samples 'b', which the model observes"),
        ("a", "aB", "the guide observes 'b'"),
    ],
)
def test_sites_that_do_not_match_are_refused(model_sites: str, guide_sites: str, message: str) -> None:
    def sample(names: str) -> None:
        for name in names:
            pyro.sample(name.lower(), dist.Normal(0.0, 1.0), obs=torch.zeros(()) if name.isupper() else None)

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):
        StepwiseKL_ELBO().loss(lambda: sample(model_sites), lambda: sample(guide_sites))


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score must be one of sequential, full, none, got 'best'"):
        StepwiseKL_ELBO(score="best")


# Guides of other kinds


def positive() -> None:
    with pyro.plate("rows", 3):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate), obs=torch.tensor([1.0, 4.0, 2.0]))


def test_a_guide_of_transformed_variables_keeps_their_density() -> None:
    # Its Delta sites carry the density of the transform, which the KL registered for Delta leaves out.
    guide = AutoNormal(positive)
    guide()
    losses = []
    for elbo in (StepwiseKL_ELBO(), Trace_ELBO()):
        pyro.set_rng_seed(5)
        losses.append(elbo.loss(positive, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_a_guide_that_runs_the_model_is_served() -> None:
    guide = AutoNormalMessenger(positive)
    guide()
    assert math.isfinite(StepwiseKL_ELBO().loss_and_grads(positive, guide))


# Gradients at the edge


@pytest.mark.parametrize("kind", ["categorical", "one-hot", "independent"])
def test_impossible_choices_give_finite_gradients(kind: str) -> None:
    mask = torch.tensor([0.0, 0.0, -math.inf])
    p, q = leaf(3), leaf(3)

    def site(logits: Tensor) -> None:
        if kind == "one-hot":
            pyro.sample("z", dist.OneHotCategorical(logits=logits + mask))
        elif kind == "independent":
            pyro.sample("z", dist.Categorical(logits=(logits + mask).expand(2, 3)).to_event(1))
        else:
            pyro.sample("z", categorical(logits + mask))

    loss = StepwiseKL_ELBO().differentiable_loss(lambda: site(p), lambda: site(q))
    gradient = enumeration.gradient(loss, [p, q])
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    a, b = q[:2].log_softmax(0), p[:2].log_softmax(0)
    expected = (a.exp() * (a - b)).sum() * (2 if kind == "independent" else 1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, enumeration.gradient(expected, [p, q]))


def test_the_loss_does_not_vary_where_the_guide_is_exact() -> None:
    # With sampled log-ratios the loss is -log p(x) in every sample. With analytic KLs it need not be: they average
    # over a step what the likelihood of the sampled step then adds.
    p, emission = [leaf(2), leaf(2, 2)], leaf(2, 2)

    def model() -> None:
        a = pyro.sample("a", categorical(p[0]))
        b = pyro.sample("b", categorical(p[1][a]))
        pyro.sample("x", dist.Normal(emission[a, b], 1.0), obs=torch.tensor(0.5))

    joint = p[0].log_softmax(0)[:, None] + p[1].log_softmax(1) + dist.Normal(emission, 1.0).log_prob(torch.tensor(0.5))

    def guide(analytic: bool) -> None:
        a = pyro.sample("a", categorical(joint.logsumexp(1)), infer={"analytic_kl": analytic})
        pyro.sample("b", categorical(joint[a]), infer={"analytic_kl": analytic})

    losses = [StepwiseKL_ELBO().loss(model, lambda: guide(False)) for _ in range(20)]
    assert np.ptp(losses) < 1e-12
    assert losses[0] == pytest.approx(-float(joint.detach().logsumexp((0, 1))))
    exact = enumerate_pair(Pair(model, lambda: guide(True), [*p, emission]))
    torch.testing.assert_close(exact.loss, -joint.detach().logsumexp((0, 1)))


# Training


def posterior_of_coin(data: Tensor) -> Tensor:
    """The model of `Coin`: which of two coins was thrown, given the throws."""
    return torch.log_softmax(torch.stack([dist.Bernoulli(p).log_prob(data).sum() for p in (0.3, 0.8)]), 0).exp()


DATA = torch.tensor([1.0, 0.0, 1.0])


class Coin(nn.Module):
    """Model and guide of a thrown coin; the guide's logits are the only parameters."""

    def __init__(self, register: bool):
        super().__init__()
        self.logits, self.register = nn.Parameter(torch.zeros(2)), register

    def model(self) -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        with pyro.plate("throws", 3):
            pyro.sample("x", dist.Bernoulli(torch.tensor([0.3, 0.8])[z]), obs=DATA)

    def forward(self) -> None:
        if self.register:
            pyro.module("coin", self)
        pyro.sample("z", categorical(self.logits))

    def error(self) -> float:
        return float((self.logits.detach().softmax(0) - posterior_of_coin(DATA)).abs().max())


@pytest.mark.parametrize("validate", [True, False])
def test_svi_trains(validate: bool) -> None:
    coin = Coin(register=True)
    elbo = StepwiseKL_ELBO(num_particles=30, vectorize_particles=True)
    with pyro.validation_enabled(validate):
        svi = SVI(coin.model, coin, pyro.optim.Adam({"lr": 0.1}), elbo)
        before = coin.error()
        losses = [svi.step() for _ in range(80)]
    assert all(isinstance(loss, float) for loss in losses)
    assert before > 0.1 and coin.error() < 0.05
    assert isinstance(svi.evaluate_loss(), float)


@pytest.mark.parametrize("validate", [True, False])
def test_as_a_module_it_trains_bare_modules(validate: bool) -> None:
    coin = Coin(register=False)
    loss = StepwiseKL_ELBO(num_particles=30, vectorize_particles=True)(coin.model, coin)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    before = coin.error()
    with pyro.validation_enabled(validate):
        for _ in range(80):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    assert before > 0.1 and coin.error() < 0.05


class PyroCoin(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.logits = PyroParam(torch.zeros(2))
        self.z = PyroSample(lambda self: categorical(self.logits))

    def forward(self) -> Tensor:
        return self.z


def test_as_a_module_it_trains_pyro_modules_with_local_parameters() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = PyroCoin()
        loss = StepwiseKL_ELBO(num_particles=30, vectorize_particles=True)(Coin(False).model, guide)
        loss()
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        for _ in range(80):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        assert not dict(pyro.get_param_store())
        assert float((guide.logits.detach().softmax(0) - posterior_of_coin(DATA)).abs().max()) < 0.05


def test_parameters_that_the_optimiser_cannot_see_are_pointed_out() -> None:
    coin = Coin(register=False)
    with pytest.warns(UserWarning, match="neither model nor guide has a pyro.param or pyro.module site"):
        StepwiseKL_ELBO().loss_and_grads(coin.model, coin)
    assert coin.logits.grad is not None and coin.logits.grad.abs().max() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StepwiseKL_ELBO().loss_and_grads(Coin(True).model, Coin(True))


def test_both_ways_to_the_gradient_are_one() -> None:
    pair = call_stack()
    pyro.set_rng_seed(2)
    loss = StepwiseKL_ELBO().loss_and_grads(pair.model, pair.guide, *pair.args)
    added = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in pair.parameters])
    pyro.set_rng_seed(2)
    other = StepwiseKL_ELBO().differentiable_loss(pair.model, pair.guide, *pair.args)
    assert loss == pytest.approx(float(other.detach()), rel=1e-12)
    torch.testing.assert_close(added, enumeration.gradient(other, pair.parameters))


def test_without_gradients_the_loss_is_a_float_and_leaves_no_graph() -> None:
    pair = loop()
    assert isinstance(StepwiseKL_ELBO().loss(pair.model, pair.guide), float)
    assert all(parameter.grad is None for parameter in pair.parameters)


def test_off_the_cpu_the_loss_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.zeros((), device="meta")
    monkeypatch.setattr(StepwiseKL_ELBO, "_estimate", lambda *_: (there, torch.zeros(()), True))
    assert StepwiseKL_ELBO().loss_and_grads(None, None) is there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_loss_stays_there() -> None:
    q = torch.zeros(2, device="cuda", requires_grad=True)

    def guide() -> None:
        pyro.sample("z", categorical(pyro.param("q", q)))

    def model() -> None:
        pyro.sample("z", categorical(torch.zeros(2, device="cuda")))

    loss = StepwiseKL_ELBO().loss_and_grads(model, guide)
    assert isinstance(loss, Tensor) and loss.is_cuda and not loss.requires_grad


# Diagnostics


@pytest.mark.parametrize(
    "name",
    ["loop", "plates", "scaled and masked sequence", "fallback", "call stack", "scaled and masked emission"],
)
def test_step_terms_add_up_to_the_loss(name: str) -> None:
    pair, particles = PAIRS[name](), 3
    elbo = StepwiseKL_ELBO(num_particles=particles)
    pyro.set_rng_seed(4)
    terms = elbo.step_terms(pair.model, pair.guide, *pair.args)
    pyro.set_rng_seed(4)
    loss = elbo.loss(pair.model, pair.guide, *pair.args)
    assert len(terms) == particles
    total = sum(
        float(term.value.sum()) * (1 if term.kind == "log_likelihood" else -1)
        for particle in terms
        for term in particle.values()
    )
    assert -total / particles == pytest.approx(loss, rel=1e-12)
    assert not any(term.value.requires_grad for particle in terms for term in particle.values())


def test_step_terms_name_their_kinds_and_steps() -> None:
    pair = sequence()
    (terms,) = StepwiseKL_ELBO().step_terms(pair.model, pair.guide)
    assert {name: term.kind for name, term in terms.items()} == {
        "a": "kl", "s": "kl", "b": "kl", "x": "log_likelihood",
    }  # fmt: skip
    assert terms["s"].value.shape == (2, 2)
    pair = fallback()
    (terms,) = StepwiseKL_ELBO().step_terms(pair.model, pair.guide)
    assert {terms["a"].kind, terms["x"].kind} == {"log_ratio"} and terms["b"].kind == "kl"


# Appendix B


def rare_choice() -> Iterator[tuple[Tensor, Callable[[], None], Callable[[], None]]]:
    """Choice 0 has probability eps under the guide and far less in the posterior; the guide never takes choice 2."""
    p = torch.tensor([1e-12, 0.3, 0.7 - 1e-12])
    for eps in (1e-2, 1e-4, 1e-6):
        epsilon = torch.tensor(eps, requires_grad=True)
        yield (
            epsilon,
            lambda: pyro.sample("z", dist.Categorical(p)),
            lambda epsilon=epsilon: pyro.sample(
                "z", dist.Categorical(torch.stack([epsilon, 1 - epsilon, torch.zeros(())]))
            ),
        )


def test_where_a_rare_choice_is_not_drawn_the_plain_score_points_the_wrong_way() -> None:
    # As in Appendix B of the paper: d/d eps E_q[log p(z, x) - log q(z | x)], of samples in which z = 1.
    for epsilon, model, guide in rare_choice():
        eps = float(epsilon.detach())
        truth = math.log(1e-12 / eps) - math.log(0.3 / (1 - eps))
        common = enumeration.Force({"z": enumeration.Choice(lambda fn: torch.tensor(1), lambda fn: torch.zeros(()))})
        with pyro.validation_enabled(False):  # a probability of exactly 0
            plain = -torch.autograd.grad(Trace_ELBO().differentiable_loss(model, common(guide)), epsilon)[0]
            stepwise = -torch.autograd.grad(StepwiseKL_ELBO().differentiable_loss(model, common(guide)), epsilon)[0]
        assert truth < 0
        # Pyro leaves out the paper's first term, whose expectation is zero.
        assert float(plain) == pytest.approx(-(math.log(0.3) - math.log1p(-eps)) / (1 - eps))
        assert float(plain) > 0
        # The analytic KL has the truth in every sample, however rare the choice.
        assert float(stepwise) == pytest.approx(truth, rel=1e-9)
