r"""The exact likelihood of a control program, and its exact posterior over call stacks.

Where :class:`~pyrocontrol.inference.StepwiseKL_ELBO` bounds :math:`\log p(x)` by one sampled call stack,
:class:`ExactLikelihood` sums over all of them, in polynomial time: see :mod:`call_spans` for the recursion.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..._verify import verify_least
from ...guides.call_stack import CallStackGuide
from ...models.process import Sequence
from ...models.programs.call_stack import CallStack
from ...models.programs.call_trace import CallTrace
from ...models.programs.control_program import ControlProgram
from ...models.programs.traces import Traces
from .call_spans import CallSpans

__all__ = ["CallStackPosterior", "ExactLikelihood"]


class ExactLikelihood(ELBO):
    r"""The loss :math:`-\log p_\theta(x)` of a control program, all call stacks summed out; it needs no guide.

    It takes the place of an ELBO: ``ExactLikelihood()(program)`` is the loss module that
    :func:`~pyrocontrol.inference.fit` takes with an optimiser, and ``SVI(program.model, guide, optim,
    ExactLikelihood())`` works too; a guide that is given is not run. Annotated traces, a sparsity prior and whatever
    else the model observes count as they do in an ELBO.

    Args:
        temperature: T of :math:`T \log \sum_z p(z, x)^{1/T}`, whose gradient is an expectation under the posterior to
            the power 1/T. 1 is the likelihood. Below 1 it approaches that of the likeliest call trace; above 1 the
            posterior is flattened.
        most_memory: bytes that the tables of a trace may take.

    Raises:
        ValueError: when it is first evaluated, for a model that has other latent sites than a control program's
            calls, for latent arguments that are real vectors (naming the field), for actions that no procedure can
            reach (naming trace and step), or for traces whose tables take more than ``most_memory``.

    Example:
        >>> import pyrocontrol as pc
        >>> program = pc.models.ControlProgram("actions: left, right\nwalk -> left, right", obs_size=3)
        >>> loss = pc.inference.ExactLikelihood()(program)
        >>> optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    """

    def __init__(self, *, temperature: float = 1.0, most_memory: float = 4e9):
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        super().__init__()
        self.temperature, self.most_memory = temperature, most_memory

    def __call__(self, model: nn.Module, guide: nn.Module | None = None) -> ELBOModule:
        """Return the loss as a module over the parameters of the model (and of a guide, which gets no gradient)."""
        return ELBOModule(model, guide, self)  # type: ignore[arg-type]  # it runs no guide

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return ``-log p(x)`` of a batch, in nats."""
        with torch.no_grad():
            return float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss of a batch in nats, its gradients added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(torch_item(loss))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``-log p(x)`` of a batch, in nats, with its graph."""
        with _Unsampled() as calls:
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        total = torch.zeros(())
        summed = set()
        for name, sequence in calls.found.items():
            observed = {key: trace.nodes[key]["value"] for key in ("actions", "arguments") if key in trace.nodes}
            if "actions" not in observed:
                raise ValueError(f"ExactLikelihood needs the observed site 'actions' of what the calls {name!r} take")
            summed |= {name, *observed}
            spans = _spans(sequence, observed["actions"], observed.get("arguments"), self.most_memory, merged=True)
            spans.weights = [weights / self.temperature for weights in spans.weights]
            site = trace.nodes[name]
            log_p = self.temperature * spans.log_prob()
            total = total + scale_and_mask(log_p, site["scale"], site["mask"]).sum()
        trace.compute_log_prob(lambda name, _: name not in summed)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or name in summed or "log_prob_sum" not in site:
                continue
            if not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample":
                raise ValueError(f"ExactLikelihood sums out the calls of a control program; {name!r} is latent as well")
            total = total + site["log_prob_sum"]
        return -total

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("an exact likelihood draws no traces")


class _Unsampled(Messenger):
    """Keeps the sequences of calls that a model would sample, and lets it go on with a call of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Sequence] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, Sequence) and isinstance(fn.process, CallStack) and not msg["is_observed"]:
            self.found[msg["name"]] = fn
            msg["value"] = torch.zeros(*fn.batch_shape, 1, *fn.process.event_shape, device=fn.context.features.device)
            msg["done"] = True


def _spans(
    sequence: Sequence, actions: Tensor, arguments: Tensor | None, most_memory: float, *, merged: bool = False
) -> CallSpans:
    process, context = sequence.process, sequence.context
    assert isinstance(process, CallStack)
    most = process.tree.max_steps(int((actions < len(process.tree.actions)).sum(-1).max()))
    if sequence.horizon < most:
        raise ValueError(
            f"call stacks may take {most} steps, the horizon is {sequence.horizon}: exact sums have no horizon"
        )
    given = actions.new_zeros(*actions.shape, 0) if arguments is None else arguments
    padded = F.pad(given.to(context.features.dtype), (0, process.tree.arg_size - given.shape[-1]))
    return CallSpans(process, context, actions.long(), padded, most_memory=most_memory, merged=merged)


class CallStackPosterior:
    """The exact posterior p(z | x) over the call stacks of some traces, in double precision and without a gradient.

    Args:
        program: the program.
        traces: whose actions it is to explain; annotated calls are not looked at.
        most_memory: bytes that the tables of a trace may take.

    Attributes:
        log_likelihood: ``log p(x)`` of every trace, ``[B]`` in nats.

    Raises:
        ValueError: see :class:`ExactLikelihood`; or naming a trace, for one that is not the program's, or has
            probability zero.
    """

    @torch.no_grad()
    def __init__(self, program: ControlProgram, traces: Traces, *, most_memory: float = 4e9):
        program.check(traces)
        self.program, self.traces = program, traces
        self._spans = self._summed(program.prior(traces), most_memory)
        self.log_likelihood, self._counts, _ = self._spans._sum(counts=True)
        self._spans.verify_possible(self.log_likelihood)

    @property
    def entropy(self) -> Tensor:
        """The entropy of the posterior over call traces, ``[B]`` in nats."""
        return self.log_likelihood - self._expected(self._counts, self._spans.weights)

    # -- marginals ----------------------------------------------------------------------------------------------

    @property
    def expected_calls(self) -> Tensor:
        """Expected number of calls of every procedure at every time, ``[B, T, H]``; the root's is at time 0."""
        grammar = self._spans.grammar
        found = self._blank()
        found[:, 0, 0] = 1
        for choices, counts, (trace, time) in zip(grammar.choices, self._counts, self._spans.rows, strict=True):
            for k, (unit, _) in enumerate(choices.callees):
                child = grammar.units[unit].procedure
                found[..., child].index_put_((trace, time), counts[..., 1 + k].sum(0), accumulate=True)
        return found

    @property
    def expected_returns(self) -> Tensor:
        """Expected number of returns from every procedure at every time, ``[B, T, H]``."""
        found = self._blank()
        for h, (counts, place) in enumerate(zip(self._counts, self._spans.rows, strict=True)):
            first = 1 + len(self._spans.grammar.choices[h].callees)
            found[..., h].index_put_(place, counts[..., first:].sum((0, 2)), accumulate=True)
        return found

    @property
    def on_stack(self) -> Tensor:
        """Probability that every procedure is on the stack while an action is taken, ``[B, T, H]``; 0 after the end."""
        return (self.expected_calls.cumsum(1) - self.expected_returns.cumsum(1)).clamp(0, 1)

    def _blank(self) -> Tensor:
        weights = self._spans.weights[0]
        return weights.new_zeros(*self.traces.actions.shape, len(self.program.tree.procedures))

    # -- call traces --------------------------------------------------------------------------------------------

    def likeliest(self) -> list[CallTrace]:
        """Return the call trace of the highest probability, for each trace (Viterbi)."""
        return CallTrace.batch(self.program.tree, self._calls(self._spans.likeliest()[1]))

    def sample(self, number: int = 1) -> Tensor:
        """Return call traces from the posterior, ``[number, B, I, 1 + W]``, as the site ``calls`` has them.

        What stands after a trace's end is zero. Random numbers come from torch's generator.
        """
        verify_least(1, number=number)
        drawn = self._spans.draw(number)
        flat = self._calls([one for traces in zip(*drawn, strict=True) for one in traces])
        return flat.reshape(number, -1, *flat.shape[1:])

    def _calls(self, drawn: list[NDArray[Any]]) -> Tensor:
        """Return what was drawn, trace after trace and again, as rows (choice, argument)."""
        tree, grammar, traces = self.program.tree, self._spans.grammar, self.traces
        count = len(tree.procedures)
        calls = traces.arguments.new_zeros(len(drawn), max(len(one) for one in drawn), 1 + tree.arg_size)
        width = traces.arguments.shape[-1]
        for number, one in enumerate(drawn):
            b, stack = number % len(traces.lengths), [0]
            for i, (kind, value, time) in enumerate(one.tolist()):
                row = calls[number, i]
                if kind == 0:
                    row[0] = count + traces.actions[b, time]
                    row[1 : 1 + width] = traces.arguments[b, time]
                elif kind == 1:
                    child, argument = grammar.units[value]
                    row[0], row[1:] = child, grammar.arguments[child][argument]
                    stack.append(child)
                else:
                    row[0], row[1:] = tree.null, grammar.choices[stack.pop()].returns[value]
        return calls

    # -- guides -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo(self, guide: CallStackGuide) -> Tensor:
        """Return the exact value of a guide's ELBO, the expectation of eq. (3) and of eq. (5), ``[B]`` in nats.

        The guide is a call stack too, so that its expectations are sums of the same kind.
        """
        theirs = self._guided(guide)
        difference = [p - q for p, q in zip(self._spans.weights, theirs.weights, strict=True)]
        return self._expected(theirs.counts(), difference)

    def kl(self, guide: CallStackGuide) -> Tensor:
        """Return KL(q || p(. | x)) of a guide, ``[B]`` in nats: what its ELBO is below ``log_likelihood``."""
        return self.log_likelihood - self.elbo(guide)

    @torch.no_grad()
    def inclusive_kl(self, guide: CallStackGuide) -> Tensor:
        """Return KL(p(. | x) || q) of a guide, ``[B]`` in nats: what it would cost to code the posterior by it."""
        theirs = self._guided(guide)
        return -self.entropy - self._expected(self._counts, theirs.weights)

    def _guided(self, guide: CallStackGuide) -> CallSpans:
        process = getattr(guide, "process", None)
        if not isinstance(process, CallStack) or not process.posterior or process.tree != self.program.tree:
            raise ValueError("the guide must have a posterior CallStack over the program's own tree")
        return self._summed(guide.posterior(self.traces), self._spans.most_memory)

    def _summed(self, sequence: Sequence, most_memory: float) -> CallSpans:
        spans = _spans(sequence, self.traces.actions, self.traces.arguments, most_memory)
        spans.weights = [weights.double() for weights in spans.weights]
        return spans

    def _expected(self, counts: list[Tensor], values: list[Tensor]) -> Tensor:
        """Sum what every choice is worth, as often as it is expected, ``[B]``."""
        total = self.log_likelihood.new_zeros(len(self.log_likelihood))
        for count, value, (trace, _) in zip(counts, values, self._spans.rows, strict=True):
            held = torch.where(count > 0, count * value, 0.0).sum((0, 2))
            total = total.index_add(0, trace, held)
        return total
