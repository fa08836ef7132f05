"""The amortised posterior over call stacks, in NumPyro; the twin of :mod:`.call_stack`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro

from ..models.process_numpyro import Sequence
from ..models.programs.call_stack_numpyro import CallStack, CallStackContext
from ..models.programs.control_program_numpyro import ControlProgram
from ..models.programs.traces_numpyro import Traces, unannotated
from ..models.twin_numpyro import Array, Twin, one_hot, to_numpyro
from . import call_stack
from . import encoders_numpyro as encoders_numpyro  # whose twins `to_numpyro` finds

__all__ = ["CallStackGuide"]


class CallStackGuide(Twin, of=call_stack.CallStackGuide):
    """The posterior q_phi(z | x) over the calls of a control program; see :class:`~pyrocontrol.guides.CallStackGuide`.

    Raises:
        TypeError: for an encoder that has no twin.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        to_numpyro(self.mirrored.encoder)
        self.program: ControlProgram = to_numpyro(self.mirrored.program)

    def __call__(self, traces: Traces) -> Array | None:
        """NumPyro guide: ``calls`` from the posterior, in plate ``traces``; None where all traces are annotated."""
        guide, latent = self.registered("guide"), unannotated(traces)
        if latent is False:
            return None
        with numpyro.plate("traces", len(traces.lengths)), numpyro.handlers.mask(mask=latent):
            return numpyro.sample("calls", guide.posterior(traces))

    def posterior(self, traces: Traces) -> Sequence:
        """Return ``q_phi(z | x)``."""
        tree, process = self.program.tree, self.part("process")
        assert isinstance(process, CallStack)
        dtype = self.weights["process.choose.biases.0"].dtype
        contexts = self.part("encoder")(self._inputs(traces, dtype), traces.lengths)
        width = tree.arg_size - traces.arguments.shape[-1]
        arguments = jnp.pad(traces.arguments.astype(dtype), ((0, 0), (0, 0), (0, width)))
        task = self.program.root_argument(traces.task.astype(dtype))
        context = CallStackContext(contexts, task, traces.actions, arguments)
        return Sequence(process, context, self.program.steps_for(traces))

    def _inputs(self, traces: Traces, dtype: Any) -> Array:
        count, observations = len(self.program.tree.actions), traces.observations.astype(dtype)
        action = one_hot(traces.actions, count + 1, observations)
        previous = jnp.pad(action[:, :-1, :count], ((0, 0), (1, 0), (0, 0)))
        return jnp.concatenate([previous, observations, action, traces.arguments.astype(dtype)], -1)
