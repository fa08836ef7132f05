"""Control programs as NumPyro models; the twin of :mod:`.control_program`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from torch import nn

from ..observation_encoder import ObservationEncoder
from ..process_numpyro import Sequence
from ..twin_numpyro import Array, Twin, to_numpyro
from . import control_program, field_encoder
from .call_stack_numpyro import CallStack, CallStackContext
from .control_program import _FRAME_INPUTS
from .procedure_tree import ProcedureTree
from .traces_numpyro import Traces, as_tensors, unannotated

__all__ = ["ControlProgram", "FieldEncoder"]


class FieldEncoder(Twin, of=field_encoder.FieldEncoder):
    """Embeds the categorical fields of an observation; see :class:`~pyrocontrol.models.FieldEncoder`."""

    def __call__(self, observations: Array) -> Array:
        """Return ``[..., size]`` for observations ``[..., O]``."""
        widths = np.cumsum([width for _, width in self.mirrored.fields])
        parts = jnp.split(observations, widths[:-1], -1)
        return jnp.concatenate(
            [
                part if vocabulary is None else part @ self.weights[f"tables.{vocabulary}"]
                for (vocabulary, _), part in zip(self.mirrored.fields, parts, strict=True)
            ],
            -1,
        )


class ControlProgram(Twin, of=control_program.ControlProgram):
    """A control program as a generative model of traces; see :class:`~pyrocontrol.models.ControlProgram`.

    Raises:
        TypeError: for an encoder of observations that has no twin.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        encoder: nn.Module = self.mirrored.encoder
        self.plain = isinstance(encoder, nn.Identity) or (isinstance(encoder, ObservationEncoder) and encoder.plain)
        if not self.plain:
            to_numpyro(encoder)

    @property
    def tree(self) -> ProcedureTree:
        """The call graph."""
        tree: ProcedureTree = self.mirrored.tree
        return tree

    @property
    def process(self) -> CallStack:
        """The call-stack prior."""
        process: CallStack = self.part("process")
        return process

    def model(self, traces: Traces) -> None:
        """NumPyro model, with the sites of the Pyro model.

        Where some traces are annotated, or may be, rows of both kinds of site are masked, as shapes are fixed here.
        There is no latent ``calls`` where all of them are known to be.
        """
        program, torch_program = self.registered("program"), self.mirrored
        if torch_program.sparsity and torch_program.num_traces:
            share = len(traces.lengths) / torch_program.num_traces
            numpyro.factor("sparsity", -torch_program.sparsity * share * program.penalty())
        latent, annotated = unannotated(traces), traces.calls
        if annotated is not None and latent is not True:
            given = latent is False or ~latent
            with numpyro.plate("annotated_traces", len(traces.lengths)), numpyro.handlers.mask(mask=given):
                blank = annotated[..., :1] < 0  # past the end, and in rows without annotation
                held = jnp.where(blank, 0.0, annotated)
                held = jnp.concatenate([jnp.where(blank, float(self.tree.null), held[..., :1]), held[..., 1:]], -1)
                numpyro.sample("annotated_calls", program.prior(traces, annotated.shape[1]), obs=held)
        if latent is False:
            return
        with numpyro.plate("traces", len(traces.lengths)), numpyro.handlers.mask(mask=latent):
            calls = numpyro.sample("calls", program.prior(traces))
            actions, arguments = program.taken(calls, traces.actions.shape[-1])
            numpyro.sample("actions", dist.Delta(actions, event_dim=1), obs=traces.actions.astype(actions.dtype))
            if self.tree.action_arg_size:
                numpyro.sample("arguments", dist.Delta(arguments, event_dim=2), obs=traces.arguments)

    def check(self, traces: Traces) -> None:
        """Refuse traces that the program cannot have produced; see :meth:`~pyrocontrol.models.ControlProgram.check`."""
        self.mirrored.check(as_tensors(traces))

    def penalty(self) -> Array:
        """Return ``sum_h,g ||W_hg||`` over all procedures and the inputs that the sparsity prior is on."""
        module = self.mirrored
        widths = np.cumsum(module.process.group_widths(module.groups))
        parts = jnp.split(self.weights["process.choose.weights.0"], widths[:-1], 1)
        norms = [jnp.sqrt((part**2).sum((1, 2)) + 1e-6) for part in parts]
        penalized = [True] * len(module.groups) + [name not in module.unpenalized for name in _FRAME_INPUTS]
        return sum(norm.sum() for norm, on in zip(norms, penalized, strict=False) if on)

    def prior(self, traces: Traces, steps: int | None = None) -> Sequence:
        """Return ``p_theta(z | o, u_0)``, the observations being the trace's own."""
        dtype = self.weights["process.choose.biases.0"].dtype
        observations = traces.observations.astype(dtype)
        features = observations if self.plain else self.part("encoder")(observations)
        context = CallStackContext(features, self.root_argument(traces.task.astype(dtype)))
        return Sequence(self.process, context, steps or self.steps_for(traces))

    def taken(self, calls: Array, steps: int) -> tuple[Array, Array]:
        """Return the actions ``[B, steps]`` that calls ``[B, I, 1 + W]`` take, and the arguments ``[B, steps, V]``."""
        procedures, null, width = len(self.tree.procedures), self.tree.null, self.tree.action_arg_size
        choice = calls[..., 0].astype(int)
        acts = (self.process.depths(choice) > 0) & (choice >= procedures) & (choice < null)
        column = jnp.where(acts, acts.cumsum(1) - 1, steps).clip(max=steps)
        rows = jnp.arange(len(calls))[:, None]
        actions = jnp.full((len(calls), steps + 1), null - procedures, calls.dtype)
        actions = actions.at[rows, column].set(calls[..., 0] - procedures)[:, :steps]
        arguments = jnp.zeros((len(calls), steps + 1, width), calls.dtype)
        return actions, arguments.at[rows, column].set(calls[..., 1 : 1 + width])[:, :steps]

    def root_argument(self, task: Array) -> Array:
        """Return the task ``[B, U]`` as the root's argument ``[B, W]``."""
        return jnp.pad(task, ((0, 0), (0, self.tree.arg_size - task.shape[-1])))

    def steps_for(self, traces: Traces) -> int:
        """Return the horizon for these traces, in PHP steps."""
        steps: int = self.mirrored.steps_for(traces)
        return steps
