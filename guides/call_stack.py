"""The amortised posterior over call stacks."""

from __future__ import annotations

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._saved import Saved
from ..models.observation_encoder import ObservationEncoder, as_floats
from ..models.process import Sequence
from ..models.programs.call_stack import CallStack, CallStackContext
from ..models.programs.call_trace import CallTrace
from ..models.programs.control_program import ControlProgram
from ..models.programs.traces import Traces, split_annotated
from ..models.registration import register
from .encoders import TraceEncoder, make_encoder

__all__ = ["CallStackGuide"]


class CallStackGuide(Saved, nn.Module):
    """The posterior q_phi(z | x) over the calls of a control program, masked so that it can only explain x.

    The same PHP steps as the program's with parameters of their own, the observation replaced by a context b_t
    of the whole demonstration; eq. (4) in Fox et al. (2018). At the end of the trace everything returns; before
    it the root does not; only the observed action, with its argument, and procedures that can reach it, may be
    chosen.

    Args:
        program: the program whose calls are inferred.
        encoder: ``"bilstm"`` (the paper's), ``"lstm"`` (causal), ``"transformer"``, or a :class:`TraceEncoder`
            over (previous action, observation, action). The observation is what the program's own
            :class:`~pyrocontrol.models.ObservationEncoder` makes of it, if it has one; its weights are shared.
        encoder_size: units of a named encoder (a direction).
        compile: compile the sampling walk; see :class:`~pyrocontrol.models.Process`.

    Raises:
        ValueError: for an unknown encoder.
    """

    def __init__(
        self,
        program: ControlProgram,
        encoder: str | TraceEncoder = "bilstm",
        *,
        encoder_size: int = 32,
        compile: bool = False,
    ):
        super().__init__()
        tree = program.tree
        # One-hot previous action (none at first), observation, one-hot action (null at last), its argument.
        seen = program.encoder.size if isinstance(program.encoder, ObservationEncoder) else program.obs_size
        self.input_size = seen + 2 * len(tree.actions) + 1 + tree.action_arg_size
        self.encoder = make_encoder(encoder, self.input_size, encoder_size)
        self.process = CallStack(
            tree, self.encoder.size, hidden=program.hidden, argument_hidden=program.argument_hidden, posterior=True
        )
        self.process.compile_walk = compile
        self._program = (program,)  # in a tuple, so that its parameters are not the guide's

    @property
    def program(self) -> ControlProgram:
        """The program whose calls are inferred."""
        return self._program[0]

    def forward(self, traces: Traces) -> Tensor | None:
        """Pyro guide: ``calls`` from the posterior, in plate ``traces``, for traces that are not annotated."""
        register("guide", self)
        latent, _ = split_annotated(traces)
        if latent is None:
            return None
        with pyro.plate("traces", len(latent.lengths), dim=-1):
            return pyro.sample("calls", self.posterior(latent))

    def posterior(self, traces: Traces) -> Sequence:
        """Return ``q_phi(z | x)``."""
        tree = self.program.tree
        contexts = self.encoder(self._inputs(traces), traces.lengths)
        arguments = F.pad(traces.arguments, (0, tree.arg_size - traces.arguments.shape[-1]))
        context = CallStackContext(contexts, self.program.root_argument(traces.task), traces.actions, arguments)
        return Sequence(self.process, context, self.program.steps_for(traces))

    @torch.no_grad()
    def infer(self, traces: Traces) -> list[CallTrace]:
        """Return the call trace that takes the likeliest choice at every step, for each trace."""
        return CallTrace.batch(self.program.tree, self.posterior(traces).greedy())

    def signature(self) -> str:
        """Return what a checkpoint must share with this guide to fit it."""
        return f"CallStackGuide({type(self.encoder).__name__}, {self.encoder.size})\n{self.program.tree}"

    def _inputs(self, traces: Traces) -> Tensor:
        count = traces.num_actions
        encoder, observations = self.program.encoder, as_floats(traces.observations, traces.arguments)
        if isinstance(encoder, ObservationEncoder):
            observations = encoder(observations)
        action = F.one_hot(traces.actions, count + 1).to(observations.dtype)
        previous = F.pad(action[:, :-1, :count], (0, 0, 1, 0))
        return torch.cat([previous, observations, action, traces.arguments], -1)
