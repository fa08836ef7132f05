"""Exact expectations over everything that a small guide can sample, to test estimators against.

Discrete choices are enumerated. Reparametrised normal draws ``loc + scale * e`` are integrated by Gauss-Hermite
quadrature over ``e``, whose nodes take the place of the normal: enumeration then gives the gradient of the quadrature
sum exactly, and the closed-form KL of two normals, a square in ``e``, is what the nodes give.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution, Normal
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

NODES = 2  # exact for polynomials up to the third degree


class Choice(NamedTuple):
    """One thing that can be drawn: its value and log-weight, given the distribution, both with their graph."""

    value: Callable[[Any], Tensor]
    log_weight: Callable[[Any], Tensor]


class Run(NamedTuple):
    """One thing that a guide can do: the choice at every latent site, the traces, and the log-weight."""

    choices: dict[str, Choice]
    guide_trace: Any
    model_trace: Any
    log_weight: Tensor


class _Unmade(Exception):
    def __init__(self, name: str, fn: Any):
        self.name, self.fn = name, fn


class Force(Messenger):
    """Gives latent sites chosen values; they stay latent, with their own distributions."""

    def __init__(self, choices: dict[str, Choice]):
        super().__init__()
        self.choices = choices

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["name"] not in self.choices:
            raise _Unmade(msg["name"], msg["fn"])
        # Not "done": plates further out still give the distribution its shape.
        msg["value"] = self.choices[msg["name"]].value(msg["fn"])


def runs(model: Any, guide: Any, *args: Any) -> Iterator[Run]:
    """Yield every run of the guide, with the model replayed on it."""
    pending: list[dict[str, Choice]] = [{}]
    while pending:
        choices = pending.pop()
        try:
            guide_trace = poutine.trace(Force(choices)(guide)).get_trace(*args)
        except _Unmade as unmade:
            pending += [{**choices, unmade.name: choice} for choice in choices_of(unmade.fn)]
            continue
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        weights = [choice.log_weight(guide_trace.nodes[name]["fn"]) for name, choice in choices.items()]
        yield Run(choices, guide_trace, model_trace, sum(weights, torch.zeros(())))


def exact_elbo(found: list[Run]) -> Tensor:
    """Return the ELBO, with its graph, by what it is: the sum of q times the scaled and masked log-ratio."""
    weights = torch.stack([run.log_weight for run in found]).exp()
    assert abs(float(weights.detach().sum()) - 1) < 1e-9, "the choices do not have probability 1 in all"
    ratios = [run.model_trace.log_prob_sum() - run.guide_trace.log_prob_sum() for run in found]
    return weights @ torch.stack(ratios)


def estimates(
    elbo: Any, model: Any, guide: Any, args: tuple[Any, ...], parameters: list[Tensor], found: list[Run]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability ``[R]``, loss ``[R]`` and gradient ``[R, P]`` that an estimator gives in every run."""
    losses, gradients = [], []
    for run in found:
        loss = elbo.differentiable_loss(model, Force(run.choices)(guide), *args)
        losses.append(loss.detach())
        gradients.append(gradient(loss, parameters, retain=False))
    weights = torch.stack([run.log_weight.exp().detach() for run in found])
    return weights, torch.stack(losses), torch.stack(gradients)


def constant(run: Run) -> dict[str, Choice]:
    """The run's choices as plain values, which may be given where distributions do not have their shape yet."""
    drawn = {name: run.guide_trace.nodes[name]["value"].detach() for name in run.choices}
    return {name: choice._replace(value=lambda fn, z=drawn[name]: z) for name, choice in run.choices.items()}


def gradient(value: Tensor, parameters: list[Tensor], retain: bool = True) -> Tensor:
    """Return the gradient with respect to all parameters, flat ``[P]``."""
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=retain)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def choices_of(fn: Any) -> list[Choice]:
    """Return everything that a distribution can draw, with probability above 0."""
    if isinstance(fn, MaskedDistribution):  # what is masked is drawn all the same
        return [_through(choice, lambda masked: masked.base_dist) for choice in choices_of(fn.base_dist)]
    if isinstance(fn, Independent):
        return [_through(choice, lambda outer: outer.base_dist) for choice in choices_of(fn.base_dist)]
    if hasattr(fn, "process"):
        return _sequences(fn)
    if hasattr(fn, "tree"):
        return _procedure_steps(fn)
    if isinstance(fn, Delta):
        return [Choice(lambda fn: fn.v, lambda fn: torch.zeros(()))]
    if isinstance(fn, Normal):
        return _normals(fn.batch_shape.numel())
    support = fn.enumerate_support(expand=False)
    found = []
    for index in itertools.product(range(len(support)), repeat=fn.batch_shape.numel()):
        value = support.flatten()[list(index)].reshape(fn.batch_shape)
        if float(fn.log_prob(value).sum().detach()) > -700:
            found.append(Choice(lambda fn, z=value: z, lambda fn, z=value: fn.log_prob(z).sum()))
    return found


def _through(choice: Choice, inner: Callable[[Any], Any]) -> Choice:
    return Choice(lambda fn: choice.value(inner(fn)), lambda fn: choice.log_weight(inner(fn)))


def _nodes(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise ``[count]`` and its log-weight, over all combinations of quadrature nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    log_weights = np.log(weights / weights.sum())
    for index in itertools.product(range(NODES), repeat=count):
        yield torch.tensor(nodes[list(index)]), torch.tensor(log_weights[list(index)].sum())


def _normals(count: int) -> list[Choice]:
    return [
        Choice(lambda fn, e=e: fn.loc + fn.scale * e.reshape(fn.batch_shape), lambda fn, w=w: w)
        for e, w in _nodes(count)
    ]


def _procedure_steps(fn: Any) -> list[Choice]:
    """Everything that one step of a call stack can be, for a single stack ``[1]``."""
    h, actions = len(fn.tree.procedures), len(fn.tree.actions)
    found = []
    for number in range(len(fn.tree.choices)):
        if float(fn.log_probs[0, number].detach()) < -700:
            continue
        choice = torch.tensor([number])
        slot = number if number < fn.tree.null else fn.tree.null + int(fn.procedure)
        fields = [placed for placed in fn.tree.placed_fields if placed.slot == slot]
        observed = fn.observed is not None and h <= slot < h + actions
        # A one-hot field is one of its categories, a real one is at the nodes of its noise.
        options = [
            list(range(field.size)) if field.kind == "onehot" else list(_nodes(field.size))
            for field, *_ in (() if observed else fields)
        ]
        for option in itertools.product(*options):

            def parts(
                fn: Any,
                option: Any = option,
                fields: Any = fields,
                choice: Any = choice,
                observed: bool = observed,
            ) -> tuple[Tensor, Tensor]:
                log_weight = fn.log_probs[0, choice[0]]
                values = [choice.to(fn.log_probs.dtype)]
                if observed:
                    values.append(fn.observed[0])
                for drawn, placed in zip(option, fields, strict=False):
                    parameters, field = fn._parameters(placed)[0], placed.field
                    if field.kind == "onehot":
                        log_weight = log_weight + parameters[drawn]
                        values.append(torch.eye(field.size)[drawn])
                    else:
                        location, log_scale = parameters.chunk(2)
                        log_weight = log_weight + drawn[1]
                        values.append(location + log_scale.exp() * drawn[0])
                row = torch.cat(values)
                rest = torch.zeros(1 + fn.tree.arg_size - len(row))
                return torch.cat([row, rest]).unsqueeze(0), log_weight

            found.append(Choice(lambda fn, f=parts: f(fn)[0], lambda fn, f=parts: f(fn)[1]))
    return found


def _sequences(fn: Any) -> list[Choice]:
    """Every combination, over the rows of a batch, of every walk of a process."""
    rows = [_walks(fn, row) for row in range(fn.batch_shape.numel())]
    return [_along_choice(fn, paths) for paths in itertools.product(*rows)]


def _along_choice(fn: Any, paths: tuple[list[Choice], ...]) -> Choice:
    with torch.no_grad():
        drawn = _along(fn, paths)[0]
    return Choice(lambda fn: _along(fn, paths)[0] if fn.has_rsample else drawn, lambda fn: _along(fn, paths)[1])


def _row(fn: Any, row: int) -> Any:
    context = fn.expand(fn.batch_shape)._flat_context()
    return torch.utils._pytree.tree_map_only(Tensor, lambda leaf: leaf[row : row + 1], context)


def _walks(fn: Any, row: int) -> list[list[Choice]]:
    """Every walk of one row, depth first through ``conditional`` and ``advance``."""
    process, context = fn.process, _row(fn, row)
    found: list[list[Choice]] = []

    def visit(state: Any, path: list[Choice]) -> None:
        ended = process.terminates and not bool(process.live(state, context))
        if ended or (len(path) == fn.horizon and not process.terminates):
            found.append(path)
            return
        assert len(path) < fn.horizon, "horizon exhausted"
        conditional = process.conditional(state, context)
        for choice in choices_of(conditional):
            visit(process.advance(state, choice.value(conditional), context), [*path, choice])

    with torch.no_grad():
        visit(process.initial(context), [])
    return found


def _along(fn: Any, paths: tuple[list[Choice], ...]) -> tuple[Tensor, Tensor]:
    """Walk the rows along their paths; return the padded values and the log-weight, with their graphs."""
    process = fn.process
    longest = max(map(len, paths))
    values, total = [], torch.zeros(())
    for row, path in enumerate(paths):
        context = _row(fn, row)
        state, steps = process.initial(context), []
        for choice in path:
            conditional = process.conditional(state, context)
            z = choice.value(conditional)
            total = total + choice.log_weight(conditional)
            state = process.advance(state, z, context)
            steps.append(z[0])
        padding = torch.full_like(steps[0], process.padding)
        values.append(torch.stack(steps + [padding] * (longest - len(steps))))
    stacked = torch.stack(values)
    return stacked.reshape(fn.batch_shape + stacked.shape[1:]), total
