"""Policies with the memory of a recurrent network.

Shapes: B rows of a batch, T steps, O observation numbers, X input numbers, U task numbers, A actions (the null not
counted).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..causal import GRU, LSTM
from ..heads import Head, action_features, action_features_size, make_head
from ..observation_encoder import ObservationEncoder, as_floats, make_observation_encoder, observed
from ..programs.traces import Traces, check_stopped
from ..registration import register
from ..spaces import flatten_observations, observation_size
from .controller import carried
from .policy import Acting, DirectPolicy, Space

__all__ = ["ControllerState", "RecurrentController", "RecurrentPolicy", "RecurrentState"]


class RecurrentState(NamedTuple):
    """What a recurrent policy carries from step to step.

    Attributes:
        cell: the numbers of the recurrent layers, each ``[B, layers, hidden]`` (two for an LSTM, one for a GRU).
        previous: the action before, ``[B, X]`` (X is 0 where it is not seen).
    """

    cell: tuple[Tensor, ...]
    previous: Tensor


class RecurrentPolicy(DirectPolicy):
    """p(a_t | o_0..o_t [, a_0..a_t-1]): memory as the state of a recurrent network, learnt from `Demonstrations`.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        cell: ``"lstm"`` or ``"gru"``.
        hidden: numbers of the state of a layer.
        layers: how many layers.
        see_previous_action: feed the action before at every step, zeros at the first; one-hot if it is a choice.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.
        encoder: of the observation; see :class:`Policy`.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head, cell or encoder, or sizes that are not positive.
    """

    remembers = True

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        cell: str = "lstm",
        hidden: int = 64,
        layers: int = 1,
        see_previous_action: bool = False,
        head: str | Head = "auto",
        normalize: Any = None,
        encoder: str | nn.Module = "auto",
    ):
        super().__init__(observation_space, action_space, encoder=encoder)
        cells = {"lstm": LSTM, "gru": GRU}
        if cell not in cells:
            raise ValueError(f"cell must be one of {', '.join(cells)}, got {cell!r}")
        if min(hidden, layers) < 1:
            raise ValueError("hidden and layers must be positive")
        self.cell, self.hidden, self.layers, self.see_previous_action = cell, hidden, layers, see_previous_action
        self.previous_size = action_features_size(action_space) if see_previous_action else 0
        self.network = cells[cell](self.encoded_size + self.previous_size, hidden, layers)
        self.head = make_head(head, hidden, action_space)
        if normalize is not None:
            self.normalize(normalize)

    def distribution(self, observations: Tensor, actions: Tensor | None = None) -> TorchDistribution:
        """Return the distribution of every action along traces, each given the trace's own past.

        Args:
            observations: ``[B, T, O]``.
            actions: stored actions ``[B, T]`` or ``[B, T, A]``; needed if the policy sees the action before.

        Returns:
            Batch shape ``[B, T]``. Padding comes last, so it changes nothing before it.
        """
        inputs = self.encoded(observations)
        if self.see_previous_action:
            if actions is None:
                raise ValueError("this policy sees the action before: give the actions")
            features = action_features(self.action_space, actions[:, :-1], inputs.dtype)
            inputs = torch.cat([inputs, F.pad(features, (0, 0, 1, 0))], -1)
        return self.head(self.network(inputs))

    def distribution_of(self, batch: Any) -> TorchDistribution:
        """Return the distribution of every action of a batch, batch shape ``[B, T]``."""
        return self.distribution(batch.observations, batch.actions)

    def begin(self, rows: int) -> RecurrentState:
        """Return the state before an episode's first step: zeros."""
        return RecurrentState(self.network.begin(rows), self.factor.new_zeros(rows, self.previous_size))

    def step(self, inputs: Tensor, state: RecurrentState, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at encoded inputs ``[B, X]``, and the state after the step."""
        features, cell = self.network.step(torch.cat([inputs, state.previous], -1), state.cell)
        return self.head(features), state._replace(cell=cell)

    def remember(self, state: RecurrentState, action: Tensor) -> RecurrentState:
        """Return the state, the action taken at the step now known."""
        if not self.see_previous_action:
            return state
        return state._replace(previous=action_features(self.action_space, action, self.factor.dtype))

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        names = ("cell", "hidden", "layers", "see_previous_action")
        return {name: getattr(self, name) for name in names} | {"head": self.head.signature()}


class ControllerState(NamedTuple):
    """What a recurrent controller carries from step to step.

    Attributes:
        cell: the numbers of the LSTM, two of ``[B, layers, hidden]``.
        task: ``[B, U]``, kept when an episode begins (U is 0 where it is not seen).
        previous: the action before one-hot, ``[B, A]`` (A is 0 where it is not seen).
    """

    cell: tuple[Tensor, ...]
    task: Tensor
    previous: Tensor


class RecurrentController(Acting):
    """MLP, stacked LSTM, MLP: p(a_t | o_0..o_t [, task] [, a_0..a_{t-1}]), null being an action.

    The end-to-end baseline of R. Fox et al., "Hierarchical Imitation Learning via Variational Inference of Control
    Programs" (2018), Appendix C: four LSTM layers of 64 nodes between two 64-node MLPs, and a softmax over the actions.
    As published it sees neither the task nor its own previous action; ``see_task`` and ``see_previous_action`` give it
    both. Actions with arguments are not supported: it models the action's index alone.

    Args:
        obs_size: O, observation numbers; the observation space has it too.
        num_actions: A, actions without the null; by default those of the action space.
        task_size: U, task numbers; needed if ``see_task``.
        see_task: feed the task at every step.
        see_previous_action: feed the previous action at every step, one-hot ``[A]``, zeros at step 0.
        hidden: nodes of every layer.
        layers: LSTM layers.
        encoder: of the observation: ``"auto"`` (the default), ``"cnn"`` or ``"flat"``, as for an
            :class:`~pyrocontrol.models.ObservationEncoder` of the observation space; or a module of floats
            ``[..., O] -> [..., X]``. A vector of floats is seen as it is by default.
        observation_space: that :meth:`predict` reads; by default all vectors of ``obs_size`` numbers.
        action_space: that :meth:`predict` acts in, a `Discrete`; by default the actions are numbered from 0. One with
            an action more than ``num_actions`` has null; without null, the likeliest other action is taken.

    Raises:
        ValueError: if a size is missing or not positive, spaces do not go with the sizes, or ``see_task`` is asked for
            without a task.
    """

    def __init__(
        self,
        obs_size: int | None = None,
        num_actions: int | None = None,
        *,
        task_size: int = 0,
        see_task: bool = False,
        see_previous_action: bool = False,
        hidden: int = 64,
        layers: int = 4,
        encoder: str | nn.Module | None = None,
        observation_space: Space | None = None,
        action_space: Space | None = None,
    ) -> None:
        super().__init__()
        self.observation_space = observed(obs_size, observation_space)
        obs_size = observation_size(self.observation_space)
        if num_actions is None and isinstance(action_space, spaces.Discrete):
            num_actions = int(action_space.n)
        if num_actions is None:
            raise ValueError("give num_actions, or the action_space, a Discrete")
        if min(obs_size, num_actions, hidden, layers) < 1:
            raise ValueError("obs_size, num_actions, hidden and layers must be positive")
        if see_task and task_size < 1:
            raise ValueError("see_task needs task_size >= 1")
        self.obs_size, self.num_actions, self.task_size = obs_size, num_actions, task_size
        self.action_space = self._acting_in(spaces.Discrete(num_actions) if action_space is None else action_space)
        self.see_task, self.see_previous_action = see_task, see_previous_action
        self.hidden, self.layers = hidden, layers
        self.observation_encoder, seen = make_observation_encoder(encoder, self.observation_space)
        inputs = seen + see_task * task_size + see_previous_action * num_actions
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        # Padded and batch first, never packed: a packed sequence leaves the fused kernel, which is 7 times as
        # fast. Padding comes last, so a causal network is not touched by it.
        self.lstm = LSTM(hidden, hidden, layers)
        self.decoder = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_actions + 1))

    def check(self, traces: Traces) -> None:
        """Refuse traces of another problem.

        Raises:
            ValueError: if sizes differ, or the actions are not Discrete or take arguments; naming trace and step, if a
                trace was cut off.
        """
        check_stopped(traces)
        found = {
            "obs_size": (observation_size(traces.observation_space), self.obs_size),
            "num_actions": (traces.num_actions, self.num_actions),
            "action argument size": (traces.arguments.shape[-1], 0),
        }
        if self.see_task:
            found["task_size"] = (traces.task.shape[-1], self.task_size)
        for name, (given, expected) in found.items():
            if given != expected:
                raise ValueError(f"the demonstrations have {name} {given}, the recurrent controller {expected}")

    def signature(self) -> str:
        """One line that two controllers share exactly when they can share weights."""
        names = ("obs_size", "num_actions", "task_size", "see_task", "see_previous_action", "hidden", "layers")
        given = [f"{name}={getattr(self, name)}" for name in names]
        if not (isinstance(self.observation_encoder, ObservationEncoder) and self.observation_encoder.plain):
            given.append(f"encoder={' '.join(str(self.observation_encoder).split())}")
        return f"RecurrentController({', '.join(given)})"

    # -- the model --------------------------------------------------------------------------------------------------

    def logits(self, traces: Traces) -> Tensor:
        """`[B, T, A + 1]` unnormalised log p(a_t | past), the past being the trace's own; last is null."""
        observations = self.encoded(traces.observations)
        task = traces.task.unsqueeze(1).expand(-1, observations.shape[1], -1)
        previous = F.pad(self._action_features(traces.actions[:, :-1]), (0, 0, 1, 0))
        return self.decoder(self.lstm(self.encoder(self._beside(observations, task, previous))))

    def encoded(self, inputs: Tensor) -> Tensor:
        """Return what the encoder makes of observations ``[..., O]``."""
        return self.observation_encoder(as_floats(inputs, self.like))

    def _beside(self, observations: Tensor, task: Tensor, previous: Tensor) -> Tensor:
        """What is seen at a step."""
        return torch.cat([observations] + [task] * self.see_task + [previous] * self.see_previous_action, -1)

    def _action_features(self, actions: Tensor) -> Tensor:
        """Actions one-hot ``[..., A]``, zeros for null."""
        return action_features(spaces.Discrete(self.num_actions), actions, self.like.dtype)

    def model(self, traces: Traces) -> Tensor:
        """Pyro model: log p(a | o) = sum_{t < length} log p(a_t | o_0..o_t), as one observed site `actions`.

        Returns:
            `[B, T]` the actions.
        """
        register("controller", self)
        logits = self.logits(traces)
        live = torch.arange(logits.shape[1], device=logits.device) < traces.lengths.unsqueeze(1)
        with pyro.plate("traces", logits.shape[0], dim=-1):
            return pyro.sample("actions", dist.Categorical(logits=logits).mask(live).to_event(1), obs=traces.actions)

    def forward(self, traces: Traces) -> Tensor:
        """Same as `model`."""
        return self.model(traces)

    def guide(self, traces: Traces) -> None:
        """Pyro guide of a model without latent variables: empty."""

    @torch.no_grad()
    def greedy_actions(self, traces: Traces) -> Tensor:
        """`[B, T]` long: the likeliest action at each step given the trace's past; null in the padding."""
        live = torch.arange(traces.actions.shape[1], device=traces.actions.device) < traces.lengths.unsqueeze(1)
        return torch.where(live, self.logits(traces).argmax(-1), self.num_actions)

    def greedy_arguments(self, traces: Traces) -> Tensor:
        """`[B, T, 0]`: its actions have no arguments."""
        return traces.observations.new_zeros(*traces.actions.shape, 0)

    # -- acting -----------------------------------------------------------------------------------------------------

    def within(self, env: Any) -> RecurrentController:
        """Return the controller that it is in an environment: the same weights, the environment's spaces.

        Raises:
            ValueError: for observations of another width, or actions that are not Discrete or too few.
        """
        if (found := observation_size(env.observation_space)) != self.obs_size:
            raise ValueError(f"the recurrent controller takes observations of {self.obs_size} numbers, got {found}")
        bound = copy.copy(self)
        bound.observation_space, bound.action_space = env.observation_space, self._acting_in(env.action_space)
        return bound

    def _acting_in(self, space: Space) -> Space:
        if not isinstance(space, spaces.Discrete) or space.n < self.num_actions:
            raise ValueError(f"the recurrent controller has {self.num_actions} actions, the action space is {space}")
        return space

    def initial_state(self, info: dict[str, Any]) -> ControllerState:
        """Return the state of an episode's start, whose task is ``info["task"]`` if it is seen.

        Raises:
            ValueError: for a task of another size.
        """
        return self._initial(info.get("task", ()), 1)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        task: Any = (),
    ) -> tuple[np.ndarray, ControllerState]:
        """Return an action for an observation, or a batch of them; see :meth:`Acting.predict`.

        Args:
            observation: in the environment's form, one or a batch.
            state: what the call before returned; None at first.
            episode_start: bool, or bool ``[B]``: where an episode begins. Its task stays.
            deterministic: take the likeliest action instead of a random one.
            task: ``[U]`` or ``[B, U]``, where there is no state that holds it.

        Raises:
            ValueError: as :meth:`Acting.predict`, and for a task of another size.
        """
        inputs = flatten_observations(self.observation_space, observation)
        if state is None and inputs.size:
            state = self._initial(task, len(np.atleast_2d(inputs)))
        return self._act(inputs, state, episode_start, deterministic)

    def begin(self, rows: int) -> ControllerState:
        """Return the state before an episode's first step: zeros, the task too."""
        cell, like = self.lstm.begin(rows), self.like
        return ControllerState(
            cell,
            like.new_zeros(rows, self.task_size if self.see_task else 0),
            like.new_zeros(rows, self.num_actions if self.see_previous_action else 0),
        )

    def step(self, inputs: Tensor, state: ControllerState, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action, null included, at encoded inputs ``[B, X]``, and the state after."""
        features, cell = self.lstm.step(self.encoder(self._beside(inputs, state.task, state.previous)), state.cell)
        return dist.Categorical(logits=self.decoder(features)), state._replace(cell=cell)

    def remember(self, state: ControllerState, action: Tensor) -> ControllerState:
        """Return the state, the action taken at the step now known."""
        return state._replace(previous=self._action_features(action)) if self.see_previous_action else state

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return actions ``[B]``, without null where the space has none."""
        logits = distribution.logits[..., : None if self._has_null else -1]
        return logits.argmax(-1) if deterministic else dist.Categorical(logits=logits).sample()

    @property
    def _has_null(self) -> bool:
        return int(self.action_space.n) == self.num_actions + 1  # type: ignore[attr-defined]

    def _initial(self, task: Any, rows: int) -> ControllerState:
        state = self.begin(rows)
        if not self.see_task:
            return state
        given = torch.as_tensor(task).to(state.task)
        if given.shape not in ((self.task_size,), (rows, self.task_size)):
            raise ValueError(f"the task must have shape [{self.task_size}], got {[*given.shape]}")
        return state._replace(task=given.expand(rows, -1))

    def _begun(self, state: Any, episode_start: Any, rows: int) -> ControllerState:
        known = carried(self.begin(rows), state, None, rows)
        return carried(self.begin(rows)._replace(task=known.task), known, episode_start, rows)
