"""The call stack of parametrised hierarchical procedures (PHPs), as a process.

One PHP step in a frame (h, u, tau, h-, u-) draws (h+, u+): a sub-procedure, an action, or the return, and its
argument or return value; eq. (2) and Algorithm 1 of Fox et al., "Hierarchical Imitation Learning via Variational
Inference of Control Programs" (2018). The posterior of eq. (4) is the same process with the observation replaced
by a posterior context and with the choices masked so that they can only explain the observed actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from ..._saved import Saved
from ..._verify import verify_finite, verify_least
from ..process import Process, same_tensors
from . import call_stack_native
from .procedure_tree import Field, PlacedField, ProcedureTree

__all__ = ["CallStack", "CallStackContext", "CallStackState", "ProcedureNetworks", "ProcedureStep"]

# A finite stand-in for log 0: differences of two masked logits stay finite, so no gradient is NaN.
_NEVER = -1e9
_LOG_SCALE = (-5.0, 3.0)
# From so many on, sorting rows by procedure takes less time than a product with the weights of all procedures.
_MANY_ROWS = 512


class CallStackState(NamedTuple):
    """A call stack. A frame is one row of numbers: (h, tau, h-, u..., u-...), width ``3 + 2 W``.

    ``h-`` is null in a frame that has taken no step. ``u-`` is what a sub-procedure returned; an action hands its own
    argument back, so that a procedure knows what it did last. Leaves lead with ``[B]``, or ``[B, I]`` when unrolled.

    Attributes:
        depth: how many frames there are, long; 0 when the program has ended.
        time: the time t, long, which advances only when an action is taken.
        frame: the top frame.
        below: the frames beneath it, ``[B, L, 3 + 2 W]``; None in unrolled states, which are only scored.
    """

    depth: Tensor
    time: Tensor
    frame: Tensor
    below: Tensor | None


class CallStackContext(NamedTuple):
    """What the steps are conditioned on.

    Attributes:
        features: ``[B, T, C]``: the observations o_t (prior) or the posterior context b_t.
        task: ``[B, W]``: the root's argument u_0.
        actions: long ``[B, T]``, for a posterior: the observed actions, null being the number of actions.
        arguments: ``[B, T, W]``, for a posterior whose actions take arguments.
        observations: ``[B, T, O]``, for a prior: what the features are computed from, step by step.
    """

    features: Tensor
    task: Tensor
    actions: Tensor | None = None
    arguments: Tensor | None = None
    observations: Tensor | None = None


class ProcedureNetworks(Saved, nn.Module):
    """One multi-layer perceptron a procedure, evaluated without gathering weights for a row.

    A few rows, or those on a GPU, go through the first layer of every procedure at once; each keeps the block of its
    own procedure, and the other layers are block-diagonal: one batched product. Many rows on a CPU are sorted by
    procedure, and each goes through its own network alone.

    Args:
        procedures: how many procedures, ``H``.
        input_size: width of the input.
        hidden: widths of the hidden layers; empty for a linear map.
        output_size: width of the output.
        activation: of the hidden layers, ``"relu"`` or ``"tanh"``.
    """

    def __init__(
        self,
        procedures: int,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        activation: str = "relu",
    ):
        super().__init__()
        if activation not in ("relu", "tanh"):
            raise ValueError(f"activation must be 'relu' or 'tanh', got {activation!r}")
        self.procedures, self.activation = procedures, activation
        sizes = [input_size, *hidden, output_size]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            bound = 1 / math.sqrt(before)
            self.weights.append(nn.Parameter(torch.empty(procedures, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(procedures, after).uniform_(-bound, bound)))

    def of(self, procedure: int, x: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return ``[..., output]`` for inputs ``[..., input]`` of one procedure; of some outputs alone, if given."""
        last = len(self.weights) - 1
        for layer, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = weights[procedure], biases[procedure]
            if layer == last and outputs is not None:
                weight, bias = weight[:, outputs], bias[outputs]
            x = x @ weight + bias
            if layer < last:
                x = x.relu() if self.activation == "relu" else x.tanh()
        return x

    def forward(self, x: Tensor, procedure: Tensor) -> Tensor:
        """Return ``[..., output]`` for inputs ``[..., input]`` of procedures (long) ``[...]``."""
        if x.dim() == 2 and len(x) >= _MANY_ROWS and x.device.type == "cpu":
            return self._sorted(x, procedure)
        own = _one_hot(procedure, self.procedures, x)
        blocks = x.unsqueeze(-2)  # [..., 1, input]: the first layer sees the same input in every block
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            last = layer == len(self.weights) - 1
            if last:
                # sum over blocks of own * (block @ weight) = (own * block) @ weight, flattened
                masked = (own.unsqueeze(-1) * blocks).flatten(-2)
                return masked @ weight.flatten(0, 1) + own @ bias
            if layer == 0:
                flat = x @ weight.permute(1, 0, 2).flatten(1) + bias.flatten()
                blocks = flat.unflatten(-1, bias.shape)
            else:
                blocks = torch.einsum("...hi,hio->...ho", blocks, weight) + bias
            blocks = blocks.relu() if self.activation == "relu" else blocks.tanh()
        raise AssertionError("a network has at least one layer")

    def _sorted(self, x: Tensor, procedure: Tensor) -> Tensor:
        """The outputs of rows ``[N, input]``, by the network of each alone."""
        order = procedure.argsort(stable=True)
        parts = x[order].split(procedure.bincount(minlength=self.procedures).tolist())
        outputs = torch.cat([self.of(number, part) for number, part in enumerate(parts)])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return outputs[back]


class ProcedureStep(TorchDistribution):
    """Distribution of one PHP step (h+, u+), as a row ``(choice, u+...)`` of width ``1 + W``.

    The choice is categorical; given the choice, every field of its slot (an argument, or the return value of the
    procedure that returns) is a one-hot categorical or a diagonal normal, zeros fill the rest of the row.

    Args:
        tree: the call graph.
        log_probs: ``[..., K]``, normalised log-probabilities of the choices.
        procedure: long ``[...]``, the procedure h that takes the step.
        parameters: ``[..., P]``, parameters of the fields of all slots; None if no slot has fields.
        observed: ``[..., W]``, for a posterior: the observed argument of the only action it may take.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self,
        tree: ProcedureTree,
        log_probs: Tensor,
        procedure: Tensor,
        parameters: Tensor | None = None,
        observed: Tensor | None = None,
    ):
        self.tree, self.log_probs, self.procedure = tree, log_probs, procedure
        self.parameters, self.observed = parameters, observed
        super().__init__(log_probs.shape[:-1], torch.Size((1 + tree.arg_size,)), validate_args=False)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: ProcedureStep | None = None
    ) -> ProcedureStep:
        """Return the same distribution for a larger batch."""
        batch = torch.Size(batch_shape)

        def widen(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.expand(batch + part.shape[-1:])

        log_probs = self.log_probs.expand(batch + self.log_probs.shape[-1:])
        procedure = self.procedure.expand(batch)
        return ProcedureStep(self.tree, log_probs, procedure, widen(self.parameters), widen(self.observed))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether a latent argument or return value is a real vector, drawn with a pathwise gradient."""
        return self.tree.has_latent_reals

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw ``(choice, u+...)`` without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw ``(choice, u+...)``; real fields keep their graph, the choice and one-hot fields have none."""
        shape = torch.Size(sample_shape) + self.log_probs.shape
        choice = _gumbel_argmax(self.log_probs.expand(shape))
        return self._fill(choice, noisy=True)

    @property
    def mode(self) -> Tensor:
        """The likeliest choice, with the mode of its argument."""
        return self._fill(self.log_probs.argmax(-1), noisy=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log p(h+) + log p(u+ | h+)`` in nats, ``[...]``."""
        discrete, real = self._log_probs(value)
        return discrete + real

    def score_parts(self, x: Tensor, *args: object, **kwargs: object) -> ScoreParts:
        """Return the parts for a mixed step: choices and one-hot fields need the score function, reals do not."""
        discrete, real = self._log_probs(x)
        if not self.has_rsample:
            return ScoreParts(discrete + real, discrete + real, 0)  # type: ignore[arg-type]  # as Pyro has it
        return ScoreParts(discrete + real, discrete, real)

    def _fill(self, choice: Tensor, noisy: bool) -> Tensor:
        """Return the row for a choice, its fields drawn or at their modes."""
        row = choice.unsqueeze(-1).to(self.log_probs.dtype)
        width = self.tree.arg_size
        argument = row.new_zeros(choice.shape + (width,))
        if self.parameters is not None:
            slot = self._slots(choice)
            for placed in self.tree.placed_fields:
                if self.observed is not None and placed.of_action:
                    continue
                drawn = self._draw(placed, choice.shape, noisy)
                padded = F.pad(drawn, (placed.place, width - placed.place - placed.field.size))
                argument = argument + torch.where((slot == placed.slot).unsqueeze(-1), padded, 0.0)
            if self.observed is not None:
                acts = (choice >= len(self.tree.procedures)) & (choice < self.tree.null)
                argument = torch.where(acts.unsqueeze(-1), self.observed, argument)
        return torch.cat([row, argument], -1)

    def _draw(self, placed: PlacedField, shape: torch.Size, noisy: bool) -> Tensor:
        field = placed.field
        parameters = self._parameters(placed).expand(shape + (field.parameters,))
        if field.kind == "onehot":
            index = _gumbel_argmax(parameters) if noisy else parameters.argmax(-1)
            return F.one_hot(index, field.size).to(parameters.dtype)
        location, log_scale = parameters.chunk(2, -1)
        return location + log_scale.exp() * torch.randn_like(location) if noisy else location

    def _log_probs(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of the discrete and of the real parts of a step."""
        choice = value[..., 0].long()
        log_probs = self.log_probs.expand(choice.shape + self.log_probs.shape[-1:])
        discrete = log_probs.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        real = torch.zeros_like(discrete)
        if self.parameters is not None:
            slot = self._slots(choice)
            for placed in self.tree.placed_fields:
                if self.observed is not None and placed.of_action:
                    continue  # the observed argument has probability one
                chosen = slot == placed.slot
                u = torch.where(chosen.unsqueeze(-1), placed_in(value[..., 1:], placed), 0.0)
                term = torch.where(chosen, self._field_log_prob(placed, u), 0.0)
                if placed.field.kind == "onehot":
                    discrete = discrete + term
                else:
                    real = real + term
        return discrete, real

    def _field_log_prob(self, placed: PlacedField, u: Tensor) -> Tensor:
        parameters = self._parameters(placed)
        if placed.field.kind == "onehot":
            return (u * parameters).sum(-1)
        location, log_scale = parameters.chunk(2, -1)
        z = (u - location) * (-log_scale).exp()
        return (-0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def _parameters(self, placed: PlacedField) -> Tensor:
        """The field's normalised logits, or its location and clamped log-scale."""
        assert self.parameters is not None
        raw = self.parameters[..., placed.parameter : placed.parameter + placed.field.parameters]
        if placed.field.kind == "onehot":
            return raw.log_softmax(-1)
        location, log_scale = raw.chunk(2, -1)
        return torch.cat([location, log_scale.clamp(*_LOG_SCALE)], -1)

    def _slots(self, choice: Tensor) -> Tensor:
        """The slot that a choice fills: its own, or the return value of the procedure that returns."""
        return torch.where(choice == self.tree.null, self.tree.null + self.procedure, choice)

    def _slot_probability(self, slot: int) -> Tensor:
        if slot < self.tree.null:
            return self.log_probs[..., slot].exp()
        returns = self.procedure == slot - self.tree.null
        return torch.where(returns, self.log_probs[..., self.tree.null].exp(), 0.0)


@register_kl(ProcedureStep, ProcedureStep)
def _kl_step_step(q: ProcedureStep, p: ProcedureStep) -> Tensor:
    """``KL(h+) + E_q(h+)[KL(u+ | h+)]``; the argument of an observed action costs ``-log p(u | h+)``."""
    kl = (q.log_probs.exp() * (q.log_probs - p.log_probs)).sum(-1)
    if q.parameters is None:
        return kl
    for placed in q.tree.placed_fields:
        if q.observed is not None and placed.of_action:
            cost = -p._field_log_prob(placed, placed_in(q.observed, placed))
        else:
            cost = _field_kl(placed.field, q._parameters(placed), p._parameters(placed))
        kl = kl + q._slot_probability(placed.slot) * cost
    return kl


def placed_in(argument: Tensor, placed: PlacedField) -> Tensor:
    """Return the part ``[..., size]`` of an argument ``[..., W]`` that a field holds."""
    return argument[..., placed.place : placed.place + placed.field.size]


def _field_kl(field: Field, q: Tensor, p: Tensor) -> Tensor:
    if field.kind == "onehot":
        return (q.exp() * (q - p)).sum(-1)
    (q_loc, q_log), (p_loc, p_log) = q.chunk(2, -1), p.chunk(2, -1)
    ratio = 2 * (q_log - p_log)
    return (0.5 * (ratio.exp() + (q_loc - p_loc).square() * (-2 * p_log).exp() - 1 - ratio)).sum(-1)


class CallStack(Process):
    """The call-stack process of a control program, prior or posterior.

    Args:
        tree: the call graph.
        feature_size: width ``C`` of the context's features: observations, or the posterior context.
        hidden: hidden layers of the networks that choose.
        argument_hidden: hidden layers of the networks of arguments and return values; none in Appendix C.
        activation: of the hidden layers.
        posterior: mask the choices by the observed actions in the context. In both, a procedure cannot return
            before its first step.
        return_bias: added to the initial logit of returning; see :class:`ControlProgram`.

    Raises:
        TypeError: if a width of a layer is not whole.
        ValueError: if it is less than 1, or ``return_bias`` is not finite.

    Attributes:
        native: take the sampling walk in compiled C where possible.

    State: :class:`CallStackState`. Context: :class:`CallStackContext`. Step: :class:`ProcedureStep`.
    """

    terminates = True
    support = constraints.real_vector
    end_is_discrete = True
    native = True

    consistent: Tensor
    available: Tensor
    _counts: Tensor

    def __init__(
        self,
        tree: ProcedureTree,
        feature_size: int,
        *,
        hidden: Sequence[int] = (16,),
        argument_hidden: Sequence[int] = (),
        activation: str = "relu",
        posterior: bool = False,
        return_bias: float = 0.0,
    ):
        super().__init__()
        verify_finite(return_bias=return_bias)
        for width in hidden:
            verify_least(1, hidden=width)
        for width in argument_hidden:
            verify_least(1, argument_hidden=width)
        self.tree, self.posterior, self.feature_size = tree, posterior, feature_size
        self.event_shape = torch.Size((1 + tree.arg_size,))
        self.has_rsample = tree.has_latent_reals
        h, k = len(tree.procedures), len(tree.choices)
        inputs = feature_size + 1 + k + 2 * tree.arg_size
        self.choose = ProcedureNetworks(h, inputs, hidden, k, activation)
        self.choose.biases[-1].data[:, tree.null] += return_bias
        parameters = sum(placed.field.parameters for placed in tree.placed_fields)
        self.argue = ProcedureNetworks(h, inputs, argument_hidden, parameters, activation) if parameters else None
        self.register_buffer("consistent", tree.consistent, persistent=False)
        self.register_buffer("available", tree.available, persistent=False)
        counts = torch.tensor([float(p.counts) for p in tree.procedures])
        self.register_buffer("_counts", counts, persistent=False)

    def group_norms(self, feature_groups: Sequence[int]) -> Tensor:
        """Return the norm of the weights by which each procedure reads each group of its inputs, ``[H, G]``.

        The groups are those of the features, the counter, the most recent call, the argument, and the returned
        value. Their sum is the group lasso; a procedure whose weights on a group are zero does not see it.

        Args:
            feature_groups: widths that split the features.
        """
        parts = self.choose.weights[0].split(self.group_widths(feature_groups), 1)
        # Smooth at zero, where a norm has no gradient.
        return torch.stack([(part.square().sum((1, 2)) + 1e-6).sqrt() for part in parts], -1)

    def group_widths(self, feature_groups: Sequence[int]) -> list[int]:
        """Return how many numbers each group of the inputs has; see :meth:`group_norms`."""
        width = self.tree.arg_size
        return [*feature_groups, 1, len(self.tree.choices), *([width, width] if width else [])]

    # -- the state machine --------------------------------------------------------------------------------------

    def initial(self, context: CallStackContext) -> CallStackState:
        """The stack that holds the root, called with the task as its argument."""
        batch = context.features.shape[0]
        zeros = context.task.new_zeros(batch, dtype=torch.long)
        frame = self._new_frame(zeros, context.task)
        below = frame.new_zeros(batch, self.tree.depth, frame.shape[-1])
        return CallStackState(zeros + 1, zeros, frame, below)

    def live(self, state: CallStackState, context: CallStackContext) -> Tensor:
        """A program runs until its stack is empty."""
        return state.depth > 0

    def conditional(self, state: CallStackState, context: CallStackContext) -> ProcedureStep:
        """The step of the top frame: eq. (2), or eq. (4) masked by the next action."""
        if state.depth.dim() == 1 or state.depth.device.type != "cpu":
            rows = torch.arange(len(state.depth), device=state.depth.device)
            trace = rows.reshape((-1,) + (1,) * (state.depth.dim() - 1)).expand(state.depth.shape)
            return ProcedureStep(self.tree, *self._choose(state.frame, state.time, trace, context))
        # Traces differ in length, so that most rows of a batch may be padding. On a CPU they are left out (on a
        # GPU, counting them would stall it).
        live = (state.depth > 0).nonzero(as_tuple=True)
        log_probs, _, parameters, observed = self._choose(state.frame[live], state.time[live], live[0], context)

        def spread(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.new_zeros(state.depth.shape + part.shape[1:]).index_put(live, part)

        everywhere = spread(log_probs)
        assert everywhere is not None
        procedure = state.frame[..., 0].long()
        return ProcedureStep(self.tree, everywhere, procedure, spread(parameters), spread(observed))

    def _choose(
        self, frame: Tensor, time: Tensor, trace: Tensor, context: CallStackContext
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return log-probabilities of the choices, procedures, parameters of arguments, and observed arguments.

        Args:
            frame: ``[..., 3 + 2 W]``.
            time: long ``[...]``.
            trace: long ``[...]``, the row of the context that each frame belongs to.
            context: leaves ``[B, ...]``.
        """
        procedure = frame[..., 0].long()
        x = self._seen(frame, self._counts[procedure], time, trace, context)
        if self.posterior:
            assert context.actions is not None
            allowed = self.consistent[procedure, context.actions[trace, time]]
        else:
            allowed = self.available[procedure]
        # A procedure takes at least one step before it returns.
        allowed = torch.cat([allowed[..., :-1], allowed[..., -1:] & (frame[..., 1:2] > 0)], -1)
        logits = torch.where(allowed, self.choose(x, procedure), _NEVER)
        parameters = self.argue(x, procedure) if self.argue is not None else None
        observed = None
        if self.posterior and context.arguments is not None and parameters is not None:
            observed = context.arguments[trace, time]
        return logits.log_softmax(-1), procedure, parameters, observed

    def choices_of(
        self, procedure: int, frame: Tensor, time: Tensor, trace: Tensor, context: CallStackContext
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what :meth:`_choose` does, of frames that are all of one procedure, whose networks alone are asked.

        Returns:
            The choices that the procedure has, long ``[K']``; their log-probabilities ``[..., K']``; and the
            parameters of arguments, None if nothing that it may choose has one.
        """
        choices = self.available[procedure].nonzero()[:, 0]  # the return is the last of them
        x = self._seen(frame, self._counts[procedure], time, trace, context)
        logits = self.choose.of(procedure, x, choices)
        if self.posterior:
            assert context.actions is not None
            logits = torch.where(self.consistent[procedure][:, choices][context.actions[trace, time]], logits, _NEVER)
        stop = torch.where(frame[..., 1:2] > 0, logits[..., -1:], _NEVER)
        own = {*choices.tolist(), self.tree.null + procedure}
        fields = self.argue is not None and any(placed.slot in own for placed in self.tree.placed_fields)
        parameters = self.argue.of(procedure, x) if self.argue is not None and fields else None
        return choices, torch.cat([logits[..., :-1], stop], -1).log_softmax(-1), parameters

    def _seen(self, frame: Tensor, counts: Tensor, time: Tensor, trace: Tensor, context: CallStackContext) -> Tensor:
        """Return the input of the networks; ``counts`` is 1 where the procedure sees its counter, else 0."""
        counter, last = frame[..., 1], frame[..., 2].long()
        return torch.cat(
            [
                context.features[trace, time],
                (counter * counts.to(frame.dtype)).unsqueeze(-1),
                _one_hot(last, len(self.tree.choices), frame),
                frame[..., 3:],
            ],
            -1,
        )

    def advance(self, state: CallStackState, z: Tensor, context: CallStackContext) -> CallStackState:
        """Algorithm 1: pop on a return, push on a call, let time pass on an action."""
        assert state.below is not None
        choice, u = z[..., 0].long(), z[..., 1:]
        returns, calls = choice == self.tree.null, choice < len(self.tree.procedures)
        stepped = torch.cat(
            [
                state.frame[..., :1],
                state.frame[..., 1:2] + 1,
                z[..., :1].to(state.frame.dtype),
                state.frame[..., 3 : 3 + u.shape[-1]],
                torch.where(calls.unsqueeze(-1), 0.0, u),  # an action hands its own argument back
            ],
            -1,
        )
        level = torch.arange(self.tree.depth, device=z.device)
        # Pop: the caller's frame comes back with the value returned.
        caller = (level == (state.depth - 2).unsqueeze(-1)).unsqueeze(-1)
        popped = torch.where(caller, state.below, 0.0).sum(-2)
        popped = torch.cat([popped[..., : 3 + u.shape[-1]], u], -1)
        # Push: the stepped frame goes beneath a new one.
        top = (level == (state.depth - 1).unsqueeze(-1)) & calls.unsqueeze(-1)
        below = torch.where(top.unsqueeze(-1), stepped.unsqueeze(-2), state.below)
        new = self._new_frame(choice.clamp(max=len(self.tree.procedures) - 1), u)
        frame = torch.where(calls.unsqueeze(-1), new, torch.where(returns.unsqueeze(-1), popped, stepped))
        depth = state.depth + calls.long() - returns.long()
        acts = ~(calls | returns)
        time = (state.time + acts.long()).clamp(max=context.features.shape[1] - 1)
        return CallStackState(depth, time, frame, below)

    def walk(self, context: CallStackContext, horizon: int, draw: str) -> tuple[Tensor, Tensor] | None:
        """Walk natively where that is possible: on a CPU, in single precision, with discrete arguments."""
        return call_stack_native.walk(self, context, horizon, draw == "mode") if self.native else None

    def unroll(self, z: Tensor, context: CallStackContext) -> tuple[CallStackState, Tensor]:
        """Compute all top frames along ``z`` at once.

        Which call made the frame on top before step i, and which step in it came last, are running maxima of step
        numbers a level of the stack: ``O(L)`` parallel scans instead of ``I`` sequential steps.
        """
        tree, steps = self.tree, z.shape[1]
        choice, u = z[..., 0].long(), z[..., 1:]
        depth = self.depths(choice)
        live = depth > 0
        # Whatever stands after the end has no say in anything.
        choice, u = torch.where(live, choice, tree.null), torch.where(live.unsqueeze(-1), u, 0.0)
        returns, calls = live & (choice == tree.null), live & (choice < len(tree.procedures))
        acts = live & ~(calls | returns)
        time = (acts.cumsum(1) - acts.long()).clamp(max=context.features.shape[1] - 1)

        number = torch.arange(steps, device=z.device).unsqueeze(-1)
        level = torch.arange(tree.depth, device=z.device)  # level l holds the frame at depth l + 1
        on = depth.unsqueeze(-1) == level + 1  # [B, I, L]
        enters = calls.unsqueeze(-1) & (depth.unsqueeze(-1) == level)
        place = (depth - 1).clamp(0, tree.depth - 1).unsqueeze(-1)

        def before(running: Tensor, first: int) -> Tensor:
            """The running value before each step, at the level of its top frame."""
            shifted = torch.cat([torch.full_like(running[:, :1], first), running[:, :-1]], 1)
            return shifted.gather(-1, place).squeeze(-1)

        maker = before(torch.where(enters, number, -1).cummax(1).values, -1)  # the call that made the frame
        last = before(torch.where(on, number, -1).cummax(1).values, -1)  # the last step at this level
        count = on.cumsum(1)
        made = maker.clamp(min=0)
        at_call = count.gather(1, made.unsqueeze(-1).expand(-1, -1, tree.depth)).gather(-1, place).squeeze(-1)
        counter = before(count, 0) - torch.where(maker >= 0, at_call, 0)

        procedure = torch.where(maker >= 0, choice.gather(1, made), 0).clamp(max=len(tree.procedures) - 1)
        taken = torch.where(counter > 0, choice.gather(1, last.clamp(min=0)), tree.null)
        width = u.shape[-1]
        argument = u.gather(1, made.unsqueeze(-1).expand(-1, -1, width))
        argument = torch.where((maker >= 0).unsqueeze(-1), argument, context.task.unsqueeze(1))
        popped = torch.where((returns | acts).unsqueeze(-1), u, 0.0)
        returned = torch.cat([torch.zeros_like(popped[:, :1]), popped[:, :-1]], 1)
        head = torch.stack([procedure, counter, taken], -1).to(z.dtype)
        frame = torch.cat([head, argument.to(z.dtype), returned], -1)
        return CallStackState(depth, time, frame, None), live

    def steps_alive(self, z: Tensor) -> int:
        """Return how many steps the longest row has; on a GPU, which it would have to wait for, how many there are."""
        if z.device.type != "cpu":
            return z.shape[1]
        # By NumPy, which takes a fifth of torch's time for so little. A row ends with the return of its last frame.
        choice = z[..., 0].detach().numpy()
        left = (choice == self.tree.null).cumsum(1) > (choice < len(self.tree.procedures)).cumsum(1)
        ends = np.where(left.any(1), left.argmax(1) + 1, z.shape[1])
        return int(ends.max(initial=1))

    def depths(self, choice: Tensor) -> Tensor:
        """Return how many frames there are before each of the choices (long ``[B, I]``); 0 after the end."""
        change = (choice < len(self.tree.procedures)).long() - (choice == self.tree.null).long()
        depth = 1 + change.cumsum(1) - change
        return torch.where(depth.cummin(1).values > 0, depth, 0)

    def same_states(self, other: Process, context: CallStackContext, theirs: CallStackContext) -> bool:
        """Two call stacks over one tree have the same frames along the same calls, if they have the same task."""
        return (
            isinstance(other, CallStack)
            and (other.tree is self.tree or other.tree == self.tree)
            and context.features.shape[1] == theirs.features.shape[1]
            and same_tensors(context.task, theirs.task)
        )

    def _new_frame(self, procedure: Tensor, argument: Tensor) -> Tensor:
        """A frame that has taken no step."""
        head = torch.stack([procedure, torch.zeros_like(procedure), torch.full_like(procedure, self.tree.null)], -1)
        return torch.cat([head.to(argument.dtype), argument, torch.zeros_like(argument)], -1)


def _one_hot(index: Tensor, size: int, like: Tensor) -> Tensor:
    # torch's own looks for the least and the greatest index first, which takes longer than all the rest.
    return F.embedding(index, torch.eye(size, dtype=like.dtype, device=like.device))


def _gumbel_argmax(logits: Tensor) -> Tensor:
    # The exponential race: argmax of p / Exp(1), in logs. rand never returns 1, so the clamp is for 0 alone.
    noise = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - (-noise.log()).log()).argmax(-1)
