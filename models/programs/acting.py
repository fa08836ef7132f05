"""A control program as a controller: its call stack is what it remembers from one observation to the next.

Shapes: B rows of a batch, O observation numbers, W numbers of an argument, V those of an action's argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils import _pytree as pytree

from ..._saved import Saved
from ..policies.controller import carried, verify_rows
from ..spaces import decode_actions, flatten_observations, observation_size
from .call_stack import CallStackContext, CallStackState

if TYPE_CHECKING:
    from .control_program import ControlProgram

__all__ = ["Decision", "ProgramController", "ProgramState"]


class ProgramState(NamedTuple):
    """What a program remembers.

    Attributes:
        stack: its call stack, leaves ``[B, ...]``; the depth is 0 where the root has returned.
        task: the root's argument ``[B, W]``, kept when an episode begins.
    """

    stack: CallStackState
    task: Tensor


class Decision(NamedTuple):
    """What a program did at an observation.

    Attributes:
        numbers: the actions, long ``[B]``; the number of actions stands for null, which is a return of the root, and -1
            where the steps ran out before either.
        arguments: of the actions ``[B, W]``.
        steps: the PHP steps that it took, each ``[B, 1 + W]``.
        state: after them.
    """

    numbers: Tensor
    arguments: Tensor
    steps: list[Tensor]
    state: ProgramState


class ProgramController(Saved):
    """A control program that acts (Algorithm 1 of Fox et al., 2018).

    At an observation it calls and returns until it acts. Where the root returns, it takes the null action if the
    environment has one, and is called anew if not: a controller always acts.

    Args:
        program: what acts.
        observation_space: of the environment.
        action_space: of the environment. A `Discrete` with one action more than the program's has the null.
        encode: maps an action's number and argument to the environment's own action, as ``env.encode_action`` does;
            needed where actions take arguments.

    Raises:
        ValueError: for spaces that do not go with the program.
    """

    def __init__(
        self,
        program: ControlProgram,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encode: Any = None,
    ) -> None:
        actions = program.tree.actions
        self.widths = [sum(field.size for field in action.argument) for action in actions]
        if encode is None and any(self.widths):
            raise ValueError(
                "the tree's actions take arguments: the environment needs encode_action(index, argument), "
                "which returns its own action for them"
            )
        if encode is None and not (isinstance(action_space, spaces.Discrete) and action_space.n >= len(actions)):
            raise ValueError(f"the tree has {len(actions)} actions, the environment's action space is {action_space}")
        if (width := observation_size(observation_space)) != program.obs_size:
            raise ValueError(f"the program takes observations of width {program.obs_size}, got {width}")
        self.program, self.encode = program, encode
        self.observation_space, self.action_space = observation_space, action_space
        #: Whether the environment is told that the program has returned.
        self.has_null = encode is not None or int(action_space.n) == len(actions) + 1  # type: ignore[attr-defined]

    def initial_state(self, info: dict[str, Any]) -> ProgramState:
        """Return the state of an episode's start, whose task is ``info["task"]`` (none if it is not there).

        Raises:
            ValueError: for a task of another width than the root's argument.
        """
        task = torch.as_tensor(info.get("task", ()))
        return self._fresh(task.to(self._like.device, self._like.dtype).reshape(1, -1))

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        task: Any = None,
    ) -> tuple[Any, ProgramState]:
        """Return an action for an observation, or a batch of them; see :class:`~pyrocontrol.models.Controller`.

        Args:
            observation: in the environment's form, one or a batch.
            state: what the call before returned; None at first.
            episode_start: bool, or bool ``[B]``: where the program is called anew. Its task stays.
            deterministic: take the likeliest choice at every step.
            task: the root's argument ``[U]`` or ``[B, U]``, where there is no state that holds it.

        Raises:
            ValueError: for observations of another space or that are not finite, a task of another width, or a state
                of another program or another number of rows.
        """
        flat = self.flat(observation)
        rows = np.atleast_2d(flat)
        if state is None:
            given = torch.atleast_2d(torch.as_tensor(() if task is None else task).to(self._like))
            state = self._fresh(given.expand(len(rows), -1))
        else:
            task_given: Any = state[1] if isinstance(state, tuple | list) and len(state) == 2 else None
            if np.ndim(task_given) != 2:
                raise ValueError(f"the state is of another policy: {type(state).__name__}")
            begun = self._fresh(torch.as_tensor(task_given).to(self._like), checked=False)
            state = carried(begun, state, episode_start, len(rows))
        decision = self.decide(rows, state, deterministic, restart=not self.has_null)
        actions = self.encoded(decision)
        return (actions[0] if flat.ndim == 1 else np.stack(actions)), decision.state

    @torch.no_grad()
    def decide(
        self,
        observations: Any,
        state: ProgramState,
        deterministic: bool,
        *,
        restart: bool = False,
        limit: int | None = None,
    ) -> Decision:
        """Take PHP steps until every row has acted or returned.

        Args:
            observations: flattened, ``[B, O]``.
            state: before them; a row that has returned is called anew.
            deterministic: take the likeliest choice at every step, or sample.
            restart: call a row anew that returns here, so that it acts.
            limit: most PHP steps.
        """
        program, tree = self.program, self.program.tree
        process, procedures = program.process, len(tree.procedures)
        features = program.encoder(torch.as_tensor(observations).to(self._like).unsqueeze(1))
        context = CallStackContext(features, state.task)
        fresh = process.initial(context)
        stack = _where(state.stack.depth == 0, fresh, state.stack)
        numbers = torch.full_like(stack.depth, -1)
        arguments = torch.zeros_like(state.task)
        steps: list[Tensor] = []
        while bool((waiting := numbers < 0).any()) and (limit is None or len(steps) < limit):
            conditional = process.conditional(stack, context)
            z = conditional.mode if deterministic else conditional.sample()
            steps.append(z)
            stack = _where(waiting, process.advance(stack, z, context), stack)
            choice, returned = z[:, 0].long(), stack.depth == 0
            acts = (choice >= procedures) & (choice < tree.null)
            if restart:
                stack = _where(waiting & returned, fresh, stack)
                returned = torch.zeros_like(returned)
            done = waiting & (acts | returned)
            numbers = torch.where(done, torch.where(returned, tree.null, choice) - procedures, numbers)
            arguments = torch.where((done & acts).unsqueeze(-1), z[:, 1:], arguments)
        return Decision(numbers, arguments, steps, state._replace(stack=stack))

    def encoded(self, decision: Decision) -> list[Any]:
        """Return the environment's own action of every row, null included."""
        numbers, arguments = decision.numbers.tolist(), decision.arguments.cpu().numpy()
        if self.encode is None:
            return [decode_actions(self.action_space, np.int64(number)) for number in numbers]
        widths = [*self.widths, 0]  # null takes none
        return [
            self.encode(number, argument[: widths[number]]) for number, argument in zip(numbers, arguments, strict=True)
        ]

    @property
    def _like(self) -> Tensor:
        return self.program.process.choose.weights[0]

    def _fresh(self, task: Tensor, checked: bool = True) -> ProgramState:
        """The state before the first step, of tasks ``[B, U]``, or ``[B, W]`` where they are arguments already."""
        tree = self.program.tree
        declared = sum(field.size for field in tree.root.argument)
        if checked and task.shape[1] != declared:
            raise ValueError(f"the root takes an argument of width {declared}, the task has width {task.shape[1]}")
        if checked:
            task = self.program.root_argument(task)
        blank = CallStackContext(task.new_zeros(len(task), 1, 0), task)
        return ProgramState(self.program.process.initial(blank), task)

    def flat(self, observation: Any) -> np.ndarray:
        """Return observations as numbers, ``[O]`` or ``[B, O]``.

        Raises:
            ValueError: for observations of another space, or that are not finite.
        """
        flat = flatten_observations(self.observation_space, observation)
        verify_rows(flat)
        return flat


def _where(flag: Tensor, new: CallStackState, old: CallStackState) -> CallStackState:
    """Return ``new`` in the rows flagged, ``old`` elsewhere."""

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(flag.reshape((-1,) + (1,) * (one.dim() - 1)), one, other)

    return pytree.tree_map(choose, new, old)
