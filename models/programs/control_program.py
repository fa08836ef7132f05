"""Control programs: policies that are sets of procedures run by a call stack."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import gymnasium
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from ..._saved import Saved
from ..._verify import verify_finite, verify_least
from ..observation_encoder import ObservationEncoder, as_floats, make_observation_encoder, observed
from ..policies.episodes import Episodes, verify_environment
from ..process import Sequence
from ..registration import register
from ..spaces import observation_size
from .acting import ProgramController, ProgramState
from .call_stack import CallStack, CallStackContext
from .call_trace import CallTrace
from .description import describe
from .procedure_tree import ProcedureTree
from .traces import Traces, check_stopped, split_annotated

__all__ = ["ControlProgram", "Execution"]


# What a procedure reads besides the observation, in the order of `CallStack.group_norms`.
_FRAME_INPUTS = ("counter", "last", "argument", "returned")


class Execution(NamedTuple):
    """What came of running a program in an environment.

    Attributes:
        calls: the call trace.
        actions: the actions' numbers, in order.
        total_reward: sum of rewards.
        finished: whether the program returned by itself (else the environment ended, or steps ran out).
        info: the environment's last info.
    """

    calls: CallTrace
    actions: list[int]
    total_reward: float
    finished: bool
    info: dict[str, Any]


class ControlProgram(Saved, nn.Module):
    r"""A control program as a generative model of traces.

    ``calls ~ Sequence(call stack prior)``, and the actions are those that the calls take: the joint
    ``p(z, x)`` of eq. (3) in Fox et al. (2018), the environment's own steps left out as a constant.

    Args:
        tree: the procedures, or their text form.
        obs_size: width ``O`` of an observation; the observation space has it too.
        arg_size: width of arguments and return values; checked against the tree, which knows it.
        hidden: hidden layers of each procedure's network.
        argument_hidden: hidden layers of the networks of arguments and return values; none in the paper.
        activation: of the hidden layers, ``"relu"`` or ``"tanh"``.
        encoder: what the procedures see of an observation: ``"auto"`` (the default), ``"cnn"`` or ``"flat"``, as for an
            :class:`~pyrocontrol.models.ObservationEncoder` of the observation space; or a module of floats
            ``[..., O] -> [..., C]`` with an attribute ``groups`` (widths that split ``C``), such as a
            :class:`~pyrocontrol.models.FieldEncoder`. A vector of floats is seen as it is by default.
        sparsity: rate lambda of a sparsity prior on what procedures see, ``exp(-lambda sum_h,g ||W_hg||)`` over
            the first-layer weights of each procedure h and input group g (a group lasso), in nats of the whole
            training set.
        return_bias: added to the initial logit of returning. Procedures then start short, so loops form in the caller.
        unpenalized: inputs that the sparsity prior leaves free: ``"counter"``, ``"last"`` (the most recent call),
            ``"argument"`` or ``"returned"``. With ``("last",)`` the prior is on what a procedure sees of the world and
            of its caller, and its own place in the program is free.
        num_traces: size of the training set, against which ``sparsity`` is weighed in a batch.
        horizon: most PHP steps of a trace; by default what the call graph can need.
        observation_space: that :meth:`predict` reads; by default all vectors of ``obs_size`` numbers.
        action_space: that :meth:`predict` acts in; by default the actions are numbered from 0.

    Raises:
        TypeError: if a number that should be whole is not, or ``unpenalized`` is one name.
        ValueError: if the tree cannot be read, ``arg_size`` is not the tree's, a number is out of range, or
            ``sparsity`` lacks ``num_traces``.

    Example:
        >>> program = ControlProgram("actions: left, right\nwalk -> left, right", obs_size=3)
        >>> program.tree.choices
        ('walk', 'left', 'right', 'return')
    """

    def __init__(
        self,
        tree: ProcedureTree | str,
        obs_size: int | None = None,
        arg_size: int | None = None,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        hidden: Several[int] = (16,),
        argument_hidden: Several[int] = (),
        activation: str = "relu",
        encoder: str | nn.Module | None = None,
        sparsity: float = 0.0,
        unpenalized: Several[str] = (),
        num_traces: int | None = None,
        return_bias: float = 0.0,
        horizon: int | None = None,
    ):
        super().__init__()
        self.tree = ProcedureTree.parse(tree) if isinstance(tree, str) else tree
        if arg_size is not None and arg_size != self.tree.arg_size:
            raise ValueError(
                f"arg_size={arg_size}, but the widest argument or return value of the tree has {self.tree.arg_size}"
            )
        self.observation_space = observed(obs_size, observation_space)
        self.action_space = spaces.Discrete(len(self.tree.actions)) if action_space is None else action_space
        verify_finite(0, sparsity=sparsity)
        if sparsity and num_traces is None:
            raise ValueError("sparsity is weighed against the training set: give num_traces")
        counts = {"num_traces": num_traces, "horizon": horizon}
        verify_least(1, **{name: count for name, count in counts.items() if count is not None})
        if isinstance(unpenalized, str):
            raise TypeError(f"unpenalized is a sequence of names, such as ({unpenalized!r},), not {unpenalized!r}")
        if unknown := [str(name) for name in unpenalized if name not in _FRAME_INPUTS]:
            raise ValueError(f"unpenalized inputs are some of {', '.join(_FRAME_INPUTS)}, got {', '.join(unknown)}")
        self.obs_size, self.horizon = observation_size(self.observation_space), horizon
        self.return_bias = return_bias
        self.hidden, self.argument_hidden = tuple(hidden), tuple(argument_hidden)
        self.sparsity, self.num_traces, self.unpenalized = sparsity, num_traces, tuple(unpenalized)
        self.encoder, size = make_observation_encoder(encoder, self.observation_space)
        self.groups = _groups_of(self.encoder, size)
        self.process = CallStack(
            self.tree,
            size,
            hidden=hidden,
            argument_hidden=argument_hidden,
            activation=activation,
            return_bias=return_bias,
        )

    # -- the model ----------------------------------------------------------------------------------------------

    def model(self, traces: Traces) -> None:
        """Pyro model: ``calls`` from the call stack, ``actions`` as the calls take them, in plate ``traces``.

        The actions' arguments, where they take any, are the site ``arguments``; a sparsity prior is the factor
        ``sparsity``. Traces whose calls are annotated are observed whole, as ``annotated_calls`` in plate
        ``annotated_traces``.
        """
        register("program", self)
        if self.sparsity and self.num_traces:
            share = len(traces.lengths) / self.num_traces
            pyro.factor("sparsity", -self.sparsity * share * self.penalty())
        unannotated, annotated = split_annotated(traces)
        if annotated is not None and annotated.calls is not None:
            with pyro.plate("annotated_traces", len(annotated.lengths), dim=-1):
                pyro.sample("annotated_calls", self.prior(annotated), obs=annotated.calls)
        if unannotated is None:
            return
        with pyro.plate("traces", len(unannotated.lengths), dim=-1):
            calls = pyro.sample("calls", self.prior(unannotated))
            actions, arguments = self.taken(calls, unannotated.actions.shape[-1])
            pyro.sample("actions", dist.Delta(actions, event_dim=1), obs=unannotated.actions.to(actions.dtype))
            if self.tree.action_arg_size:
                pyro.sample("arguments", dist.Delta(arguments, event_dim=2), obs=unannotated.arguments)

    def penalty(self) -> Tensor:
        """Return ``sum_h,g ||W_hg||`` over all procedures and the inputs that the sparsity prior is on."""
        norms = self.process.group_norms(self.groups)
        inputs = _FRAME_INPUTS[: norms.shape[-1] - len(self.groups)]
        penalized = [True] * len(self.groups) + [name not in self.unpenalized for name in inputs]
        return norms[:, torch.tensor(penalized, device=norms.device)].sum()

    def forward(self, traces: Traces) -> None:
        """Run :meth:`model`, so that the program itself can be given to an ELBO as a module."""
        self.model(traces)

    def prior(self, traces: Traces) -> Sequence:
        """Return ``p_theta(z | o, u_0)``, the observations being the trace's own."""
        task = traces.task.to(self.process.choose.biases[0].dtype)
        observations = as_floats(traces.observations, task).to(task.dtype)
        context = CallStackContext(self.encoder(observations), self.root_argument(task), observations=observations)
        return Sequence(self.process, context, self.steps_for(traces))

    def taken(self, calls: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return the actions that calls ``[..., I, 1 + W]`` take, and their arguments.

        Returns:
            ``[..., steps]``, null after the last action, and ``[..., steps, V]``, zero there.
        """
        procedures, null, width = len(self.tree.procedures), self.tree.null, self.tree.action_arg_size
        rows = calls.reshape((-1,) + calls.shape[-2:])
        choice = rows[..., 0].long()
        acts = (self.process.depths(choice) > 0) & (choice >= procedures) & (choice < null)
        # Steps that take no action, and actions beyond the last step, are written to a column that is cut off.
        column = torch.where(acts, acts.cumsum(1) - 1, steps).clamp(max=steps)
        actions = rows.new_full((len(rows), steps + 1), null - procedures)
        actions = actions.scatter(1, column, rows[..., 0] - procedures)[:, :steps]
        arguments = rows.new_zeros(len(rows), steps + 1, width)
        if width:
            arguments = arguments.scatter(1, column.unsqueeze(-1).expand(-1, -1, width), rows[..., 1 : 1 + width])
        batch = calls.shape[:-2]
        return actions.reshape(batch + (steps,)), arguments[:, :steps].reshape(batch + (steps, width))

    def root_argument(self, task: Tensor) -> Tensor:
        """Return the task ``[B, U]`` as the root's argument ``[B, W]``."""
        return F.pad(task, (0, self.tree.arg_size - task.shape[-1]))

    def steps_for(self, traces: Traces) -> int:
        """Return the horizon for these traces, in PHP steps."""
        return self.horizon or self.tree.max_steps(traces.actions.shape[-1] - 1)

    # -- checks -------------------------------------------------------------------------------------------------

    def check(self, traces: Traces) -> None:
        """Refuse traces that the program cannot have produced, before any training.

        Raises:
            ValueError: for actions that are not Discrete, or naming trace and step, for traces that were cut off,
                another observation width, actions that no procedure can reach, arguments of the wrong kind, annotated
                calls that no call stack can take or that do not take the trace's actions, or a horizon too short.
        """
        check_stopped(traces)
        if (width := observation_size(traces.observation_space)) != self.obs_size:
            raise ValueError(
                f"trace 0, step 0: the program takes observations of width {self.obs_size}, "
                f"the traces have width {width}"
            )
        self.tree.check(traces)
        if self.horizon is not None:
            needed = self.tree.least_steps(traces.actions)
            if traces.calls is not None:
                needed = torch.maximum(needed, (traces.calls[..., 0] >= 0).sum(1))
            short = (needed > self.horizon).nonzero()
            if len(short):
                trace = int(short[0, 0])
                last = int(traces.lengths[trace]) - 1
                raise ValueError(
                    f"trace {trace}, step {last}: the horizon of {self.horizon} PHP steps is too short, "
                    f"{last} actions need at least {int(needed[trace])}"
                )
        if traces.calls is not None:
            self._check_calls(traces, traces.calls)

    def _check_calls(self, traces: Traces, calls: Tensor) -> None:
        """Refuse annotated calls that no call stack can take, or that take other actions than the trace's."""
        tree = self.tree
        if calls.shape[-1] != 1 + tree.arg_size:
            raise ValueError(
                f"annotated calls of this tree have width {1 + tree.arg_size}, the traces' have {calls.shape[-1]}"
            )
        calls = F.pad(calls, (0, 0, 0, 1), value=-1.0)  # one step more, by which the stack must be empty
        choice, annotated = calls[..., 0].long(), calls[:, :1, 0] >= 0

        def refuse(bad: Tensor, what: str, unit: str = "call") -> None:
            bad = bad & annotated
            if bad.any():
                trace, step = bad.nonzero()[0].tolist()
                raise ValueError(f"trace {trace}, {unit} {step}: {what}")

        refuse(choice > tree.null, f"an annotated choice outside 0..{tree.null}")
        calls = torch.cat([calls[..., :1].clamp(min=0), calls[..., 1:]], -1)
        context = CallStackContext(
            calls.new_zeros(*traces.actions.shape, 0), self.root_argument(traces.task).to(calls.dtype)
        )
        state, live = self.process.unroll(calls, context)
        allowed = tree.available.to(choice.device)[state.frame[..., 0].long(), choice.clamp(min=0)]
        early = (choice == tree.null) & (state.frame[..., 1] == 0)
        refuse(
            live & (choice >= 0) & (~allowed | early),
            "the running procedure has no such choice as annotated, or returns before it has done anything",
        )
        refuse(live & (choice < 0), "the annotated calls stop before the root returns")
        refuse(~live & (choice >= 0), "an annotated call after the root has returned")
        slots = torch.where(choice == tree.null, tree.null + state.frame[..., 0].long(), choice)
        if fault := tree.fault(torch.where(live & annotated, slots, -1), calls[..., 1:]):
            (trace, step), why = fault
            raise ValueError(f"trace {trace}, call {step}: {why}")
        actions, arguments = self.taken(calls, traces.actions.shape[1])
        refuse(actions != traces.actions, "the annotated calls do not take the trace's action", "step")
        refuse((arguments != traces.arguments).any(-1), "the annotated calls do not take the action's argument", "step")

    def signature(self) -> str:
        """Return what a checkpoint must share with this program to fit it."""
        plain = isinstance(self.encoder, ObservationEncoder) and self.encoder.plain
        encoder = "Identity()" if plain else self.encoder  # as before there were such encoders
        networks = f"hidden={self.hidden}, {self.argument_hidden}, {self.process.choose.activation}, encoder={encoder}"
        prior = f"sparsity={self.sparsity}, num_traces={self.num_traces}"
        prior += f", unpenalized={tuple(sorted({*self.unpenalized}))}" if self.unpenalized else ""
        prior += "" if self.horizon is None else f", horizon={self.horizon}"
        prior += f", return_bias={self.return_bias}" if self.return_bias else ""
        return f"ControlProgram(obs_size={self.obs_size}, {networks}, {prior})\n{self.tree}"

    def describe(
        self, demonstrations: Traces | None = None, *, inputs: Several[str] | None = None, least: float = 0.1
    ) -> str:
        """Return the program as text: of each procedure, what it may call, what it reads, and what it does.

        It reads an input if the weights on it have a norm of ``least`` or more; the strongest comes first. Counted are
        the first layers of its networks, and of its last call, its argument and what came back the parts that they can
        have. What it does is what its runs did from call to return, the most frequent first,
        where ``a+`` is a more than once in a row.

        Args:
            demonstrations: traces along which the program runs greedily; without them, nothing is said of what it does.
            inputs: names of the parts of an encoded observation, one a group of the encoder; by default the
                vocabularies of a `FieldEncoder`, counted up.
            least: the smallest norm of weights to mention.

        Raises:
            ValueError: for another number of names.
        """
        return describe(self, demonstrations, inputs=inputs, least=least)

    # -- the policy ---------------------------------------------------------------------------------------------

    def greedy_actions(self, traces: Traces) -> Tensor:
        """Return the greedy actions ``[B, T]``; null once the program has returned."""
        with torch.no_grad():
            return self.taken(self._greedy(traces), traces.actions.shape[-1])[0].long()

    def greedy_arguments(self, traces: Traces) -> Tensor:
        """Return the arguments ``[B, T, V]`` of the greedy actions."""
        with torch.no_grad():
            return self.taken(self._greedy(traces), traces.actions.shape[-1])[1]

    def greedy_calls(self, traces: Traces) -> list[CallTrace]:
        """Return the call traces that the greedy actions come from, as they are: the program sees no actions."""
        return CallTrace.batch(self.tree, self._greedy(traces))

    def within(self, env: gymnasium.Env[Any, Any]) -> ProgramController:
        """Return the controller that the program is in an environment, in the environment's own actions.

        Args:
            env: a Gymnasium environment. Where its actions are numbered, and the program's take no arguments, the
                action's number counts from the start of its Discrete; elsewhere its ``encode_action(index, argument)``
                gives its action.

        Raises:
            TypeError: for what is not one environment.
            ValueError: for observations of another width, or actions that the environment cannot take.
        """
        verify_environment(env)
        numbered = isinstance(env.action_space, spaces.Discrete) and not self.tree.action_arg_size
        encode = None if numbered else getattr(env.unwrapped, "encode_action", None)
        return ProgramController(self, env.observation_space, env.action_space, encode)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        task: Any = None,
    ) -> tuple[Any, ProgramState]:
        """Act in the program's own spaces; see :meth:`ProgramController.predict`. :meth:`within` knows another's."""
        controller = ProgramController(self, self.observation_space, self.action_space)
        return controller.predict(observation, state, episode_start, deterministic, task=task)

    def execute(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        task: Any = None,
        greedy: bool = True,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
        max_steps: int = 100_000,
    ) -> Execution:
        """Run the program in an environment until it returns: Algorithm 1.

        Where the environment ends, the program is asked once more, at the last observation: it may return there.

        Args:
            env: see :meth:`within`. The null action is passed on when the program returns, if there is one.
            task: the root's argument u_0; by default ``info["task"]`` of the reset.
            greedy: take the likeliest choice at every step, or sample.
            seed: of the environment's reset.
            options: of the environment's reset.
            max_steps: most PHP steps.

        Raises:
            ValueError: as :meth:`within`, for observations that are not finite, or a task of another width.
        """
        verify_least(1, max_steps=max_steps)
        controller, episode = self.within(env), Episodes(env)
        episode.begin(seed, options)
        state = controller.initial_state(episode.info if task is None else {"task": task})
        null = len(self.tree.actions)
        steps: list[Tensor] = []
        actions: list[int] = []
        finished = False
        while not finished and len(steps) < max_steps:
            seen = controller.flat(episode.observation)[None]
            decision = controller.decide(seen, state, greedy, limit=max_steps - len(steps))
            number, state = int(decision.numbers), decision.state
            finished = number == null
            if episode.over and not finished:
                break
            steps += decision.steps
            if 0 <= number < null:
                actions.append(number)
            if not episode.over and (0 <= number < null or finished and controller.has_null):
                episode.step(controller.encoded(decision)[0])
        calls = CallTrace.batch(self.tree, torch.stack(steps, 1))[0]
        return Execution(calls, actions, episode.total, finished, episode.info)

    def _greedy(self, traces: Traces) -> Tensor:
        """Greedy calls ``[B, I, 1 + W]`` on the traces' observations; a program gone astray stops at the horizon."""
        return self.prior(traces).greedy()


def _groups_of(encoder: nn.Module, width: int) -> tuple[int, ...]:
    """Return the widths of an encoder's groups of outputs, of which there are ``width`` numbers."""
    groups = getattr(encoder, "groups", None)
    if groups is None:
        raise ValueError(f"the encoder {type(encoder).__name__} needs an attribute groups, the widths of its outputs")
    if width != sum(groups):
        raise ValueError(f"the encoder's output has width {width}, its groups {tuple(groups)} have {sum(groups)}")
    return tuple(groups)
