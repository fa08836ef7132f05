"""Policies as Pyro models: cloning a teacher is maximum likelihood, or an ELBO where memory is latent.

Every policy has a Pyro model whose observed site is ``actions``, and acts by ``predict``, in the environment's own
form and with the signature of stable-baselines3.

Shapes: B rows of a batch (traces, or single transitions), T steps, O observation numbers, X input numbers, A action
numbers, K memory states, D memory numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..._saved import Saved
from ..heads import Head, SquashedHead, action_features, action_features_size, make_head
from ..networks import mlp
from ..process import Emission, Sequence
from ..registration import register
from ..spaces import (
    action_size,
    check_action_space,
    decode_actions,
    flatten_observations,
    observation_parts,
    observation_size,
)
from .memory import DiscreteMemory, Memory, MemoryContext, MemoryState, make_memory

__all__ = [
    "Batch",
    "GoalConditionedPolicy",
    "LatentMemoryPolicy",
    "Policy",
    "ReactivePolicy",
    "RecurrentPolicy",
    "RecurrentState",
]

Space = gymnasium.Space[Any]

_NORMALIZE_ROWS = 256  # at a time


class Batch(Protocol):
    """What a policy reads of demonstrations ``[B, T]`` or of transitions ``[B]``.

    Attributes:
        observations: ``[..., O]``.
        actions: stored actions, long ``[...]`` (null where there is none), long ``[..., A]`` or floats ``[..., A]``.
        acted: bool ``[...]``, at which steps an action was taken.
    """

    @property
    def observations(self) -> Tensor: ...  # noqa: D102

    @property
    def actions(self) -> Tensor: ...  # noqa: D102

    @property
    def acted(self) -> Tensor: ...  # noqa: D102


class Policy(Saved, nn.Module):
    """What all policies share: their spaces, scaled inputs, the check of data, and acting.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        inputs: X, width of what the policy reads at a step; by default O.

    Raises:
        TypeError: for spaces of other kinds.
    """

    #: Whether it remembers what came before, and so learns from whole traces alone.
    remembers: bool = False
    not_saved = ("normalize",)
    head: Head
    #: Inputs are multiplied by the first and added to the second, `[X]`.
    factor: Tensor
    offset: Tensor

    def __init__(self, observation_space: Space, action_space: Space, *, inputs: int | None = None):
        super().__init__()
        check_action_space(action_space)
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_size = observation_size(observation_space)
        self.input_size = self.observation_size if inputs is None else inputs
        self.register_buffer("factor", torch.ones(self.input_size))
        self.register_buffer("offset", torch.zeros(self.input_size))

    # -- the data ---------------------------------------------------------------------------------------------------

    def check(self, data: Any) -> None:
        """Refuse data of another problem, before any training.

        Raises:
            ValueError: if observations have another size, actions another space, or a policy that remembers is given
                data without traces.
        """
        if self.remembers and not hasattr(data, "lengths"):
            raise ValueError(
                f"the {type(self).__name__} remembers what came before, so it learns from whole traces "
                f"(Demonstrations), not from {type(data).__name__}"
            )
        found = observation_size(data.observation_space)
        if found != self.observation_size:
            raise ValueError(
                f"the {type(self).__name__} takes observations of {self.observation_size} numbers, the data has {found}"
            )
        mine: Any = self.action_space
        theirs = data.action_space
        if _kind_of(mine) != _kind_of(theirs):
            raise ValueError(f"the {type(self).__name__} acts in {mine}, the data's actions are in {theirs}")
        if isinstance(self.head, SquashedHead) and not ((mine.low <= theirs.low) & (theirs.high <= mine.high)).all():
            raise ValueError(f"the squashed head emits actions in {mine}, which does not hold the data's {theirs}")

    def normalize(self, data: Any) -> None:
        """Scale inputs from now on to the mean 0 and standard deviation 1 that they have in ``data``.

        The statistics are computed once, over all steps at which an action was taken, and saved with the weights.
        Inputs that do not vary are shifted only.

        Args:
            data: demonstrations or transitions, with ``data[indices]`` a batch of them.
        """
        self.check(data)
        count = 0
        mean = square = torch.zeros(self.input_size, dtype=torch.float64)  # square: sum of squared deviations
        for rows in torch.arange(len(data)).split(_NORMALIZE_ROWS):
            batch = data[rows]
            values = self.inputs_of(batch)[batch.acted].detach().cpu().double()
            # Chan, Golub, LeVeque (1979): a part is added without loss of precision.
            center, share = values.mean(0), len(values) / (count + len(values))
            square = square + (values - center).square().sum(0) + (center - mean).square() * count * share
            mean = mean + (center - mean) * share
            count += len(values)
        deviation = (square / count).sqrt()
        deviation[deviation <= 1e-9 * mean.abs()] = 1.0  # does not vary but by rounding
        with torch.no_grad():
            self.factor.copy_(1 / deviation)
            self.offset.copy_(-mean / deviation)

    def inputs_of(self, batch: Any) -> Tensor:
        """Return what the policy reads of a batch, ``[..., X]``, not scaled."""
        return batch.observations

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return inputs ``[..., X]`` as the network takes them; the identity unless :meth:`normalize` was called."""
        return torch.addcmul(self.offset, inputs, self.factor)

    def labels(self, batch: Batch) -> Tensor:
        """Return the actions of a batch, those that do not exist replaced by some in the space."""
        actions = batch.actions
        if isinstance(self.action_space, spaces.Discrete):
            return actions.clamp(max=int(self.action_space.n) - 1)
        return actions.to(self.factor.dtype) if actions.is_floating_point() else actions

    # -- acting -----------------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> Any:
        """Return the state before an episode's first step, leaves ``[B, ...]``; None without memory."""
        return None

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at scaled inputs ``[B, X]``, and the state after the step."""
        raise NotImplementedError

    def remember(self, state: Any, action: Tensor) -> Any:
        """Return the state, the action taken at the step now known."""
        return state

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Return an action for an observation, or a batch of them; the signature is stable-baselines3's.

        Args:
            observation: in the environment's form, one or a batch.
            state: what the call before returned; None at first.
            episode_start: bool, or bool ``[B]``: where an episode begins, so that the state is begun anew.
            deterministic: take the likeliest action instead of a random one.

        Returns:
            The action, one or a batch, in the environment's form (a Box's is clipped to its bounds), and the state.

        Raises:
            ValueError: for observations of another space, that are not finite, or none at all; for a state of another
                policy or another number of rows; for an ``episode_start`` that is neither one bool nor one a row.
        """
        return self._act(flatten_observations(self.observation_space, observation), state, episode_start, deterministic)

    @torch.no_grad()
    def _act(self, inputs: np.ndarray, state: Any, episode_start: Any, deterministic: bool) -> tuple[np.ndarray, Any]:
        """Predict from inputs ``[X]`` or ``[B, X]``."""
        if inputs.ndim > 2:
            raise ValueError(f"predict takes one observation or a batch of them, got shape {inputs.shape[:-1]}")
        if not len(inputs):
            raise ValueError("predict takes at least one observation, the batch is empty")
        if not (finite := np.isfinite(inputs)).all():
            row = int(np.atleast_2d(finite).all(-1).argmin())
            raise ValueError(f"the observation (or goal) of row {row} is not finite")
        batch = torch.as_tensor(np.atleast_2d(inputs), dtype=self.factor.dtype, device=self.factor.device)
        distribution, state = self.step(
            self.scaled(batch), self._begun(state, episode_start, len(batch)), deterministic
        )
        action = self.head.mode(distribution) if deterministic else self.head.draw(distribution)
        state = self.remember(state, action)
        stored = action.cpu().numpy()
        found = decode_actions(self.action_space, stored if inputs.ndim == 2 else stored[0])
        if isinstance(self.action_space, spaces.Box):
            found = np.clip(found, self.action_space.low, self.action_space.high)
        return found, state

    def _begun(self, state: Any, episode_start: Any, rows: int) -> Any:
        """The state, begun anew in the rows where an episode starts."""
        if episode_start is not None and np.shape(episode_start) not in ((), (rows,)):
            raise ValueError(f"episode_start must be one bool or [{rows}], got shape {[*np.shape(episode_start)]}")
        fresh = self.begin(rows)
        if state is None or fresh is None:
            return fresh
        # Leaf by leaf, in the form of the fresh one: named tuples may have become plain, tensors arrays.
        begun, form = pytree.tree_flatten(fresh)
        given = pytree.tree_leaves(state)
        if [leaf.shape for leaf in begun] != [np.shape(leaf) for leaf in given]:
            raise ValueError(f"the state is of another policy, or not of {rows} rows")
        device = self.factor.device
        leaves = [torch.as_tensor(old, dtype=new.dtype, device=device) for new, old in zip(begun, given, strict=True)]
        if episode_start is not None:
            anew = torch.as_tensor(episode_start, dtype=torch.bool, device=device).expand(rows)
            leaves = [
                torch.where(anew.reshape((rows,) + (1,) * (old.dim() - 1)), new, old)
                for new, old in zip(begun, leaves, strict=True)
            ]
        return pytree.tree_unflatten(leaves, form)

    # -- telling apart ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {}

    def signature(self) -> str:
        """One line that two policies share exactly when they can share weights."""
        kind, sizes = _kind_of(self.action_space)
        given = {"observations": self.observation_size, "actions": f"{kind}{sizes}", **self.settings()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"


def _kind_of(action_space: Space) -> tuple[str, tuple[int, ...]]:
    """The kind of an action space and its sizes, which decide how actions are stored."""
    match action_space:
        case spaces.Discrete():
            return "Discrete", (int(action_space.n),)
        case spaces.MultiDiscrete():
            return "MultiDiscrete", tuple(action_space.nvec.tolist())
    return type(action_space).__name__, (action_size(action_space),)


class _WithoutLatents(Policy):
    """A policy whose actions are independent given what was observed: a Pyro model without latent sites."""

    def distribution_of(self, batch: Any) -> TorchDistribution:
        """Return the distribution of every action of a batch, batch shape ``[B]`` or ``[B, T]``."""
        raise NotImplementedError

    def model(self, batch: Batch) -> Tensor:
        """Pyro model: ``log p(a | o) = sum_t log p(a_t | o_..t)``, one observed site ``actions`` in plate ``batch``.

        Returns:
            The actions.
        """
        register("policy", self)
        distribution, actions = self._observed(batch)
        with pyro.plate("batch", len(actions), dim=-1):
            return pyro.sample("actions", distribution, obs=actions)

    def forward(self, batch: Batch) -> Tensor:
        """Run :meth:`model`, so that the policy itself can be given to an ELBO as a module."""
        return self.model(batch)

    def guide(self, batch: Batch) -> None:
        """Pyro guide of a model without latent variables: empty."""

    def loss(self, batch: Batch) -> Tensor:
        """Return ``-log p(a | o)``, nats: what ``Trace_ELBO()(policy, policy.guide)`` computes, without its overhead.

        ``fit((policy.loss, torch.optim.Adam(policy.parameters())), data, ...)`` is cloning at full speed.
        """
        distribution, actions = self._observed(batch)
        return -distribution.log_prob(actions).sum()

    def _observed(self, batch: Batch) -> tuple[TorchDistribution, Tensor]:
        """The distribution of the actions of each row, batch shape ``[B]``, and the actions."""
        distribution = self.distribution_of(batch)
        steps = len(distribution.batch_shape) - 1
        if steps:
            distribution = distribution.mask(batch.acted).to_event(steps)
        return distribution, self.labels(batch)


class ReactivePolicy(_WithoutLatents):
    """pi(a_t | o_t): a network from the observation to a distribution of the action.

    It learns from `Demonstrations` and from `Transitions` alike.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        hidden: sizes of the hidden layers.
        activation: ``"tanh"`` or ``"relu"``.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.
        inputs: X, width of what a subclass's :meth:`inputs_of` returns; by default O.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head or activation.

    Example:
        >>> import gymnasium
        >>> policy = ReactivePolicy(gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2))
        >>> action, state = policy.predict(np.zeros(3, np.float32), deterministic=True)
        >>> action in policy.action_space, state
        (True, None)
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        hidden: Several[int] = (64, 64),
        activation: str = "tanh",
        head: str | Head = "auto",
        normalize: Any = None,
        inputs: int | None = None,
    ):
        super().__init__(observation_space, action_space, inputs=inputs)
        self.hidden, self.activation = tuple(hidden), activation
        self.network = mlp(self.input_size, self.hidden, activation)
        self.head = make_head(head, self.hidden[-1] if self.hidden else self.input_size, action_space)
        if normalize is not None:
            self.normalize(normalize)

    def distribution(self, inputs: Tensor) -> TorchDistribution:
        """Return pi(a | o) at observations ``[..., O]``, batch shape ``[...]``."""
        return self.head(self.network(self.scaled(inputs)))

    def distribution_of(self, batch: Any) -> TorchDistribution:
        """Return the distribution of every action of a batch, batch shape ``[B]`` or ``[B, T]``."""
        return self.distribution(self.inputs_of(batch))

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at scaled inputs ``[B, X]``."""
        return self.head(self.network(inputs)), None

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"hidden": self.hidden, "activation": self.activation, "head": self.head.signature()}


class GoalConditionedPolicy(ReactivePolicy):
    """pi(a_t | o_t, g): a reactive policy that is told the goal, learnt from `Transitions` with ``goals``.

    In the spaces of Gymnasium's goal environments, dicts with ``observation``, ``achieved_goal`` and ``desired_goal``,
    the desired goal of the observation is not read: the goal takes its place.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        goal_size: G, numbers of a goal.
        hidden: sizes of the hidden layers.
        activation: ``"tanh"`` or ``"relu"``.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head or activation, or a goal without numbers.
    """

    columns: Tensor

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        goal_size: int,
        *,
        hidden: Several[int] = (64, 64),
        activation: str = "tanh",
        head: str | Head = "auto",
        normalize: Any = None,
    ):
        if goal_size < 1:
            raise ValueError(f"goal_size must be positive, got {goal_size}")
        parts = observation_parts(observation_space)
        kept = [part for name, part in parts.items() if name.split(".")[0] != "desired_goal"]
        columns = torch.cat([torch.arange(part.start, part.stop) for part in kept])
        super().__init__(
            observation_space,
            action_space,
            hidden=hidden,
            activation=activation,
            head=head,
            inputs=len(columns) + goal_size,
        )
        self.goal_size, self.has_goal = goal_size, len(kept) < len(parts)
        self.register_buffer("columns", columns, persistent=False)
        if normalize is not None:
            self.normalize(normalize)

    def distribution(self, inputs: Tensor, goals: Tensor | None = None) -> TorchDistribution:
        """Return pi(a | o, g) at observations ``[..., O]`` and goals ``[..., G]``, batch shape ``[...]``.

        Without goals, ``inputs`` ``[..., X]`` are both, as :meth:`inputs_of` gives them.
        """
        return super().distribution(inputs if goals is None else self._joined(inputs, goals))

    def inputs_of(self, batch: Any) -> Tensor:
        """Return observations and goals of a batch side by side, ``[..., X]``, not scaled."""
        return self._joined(batch.observations, self._goals_of(batch))

    def _goals_of(self, data: Any) -> Tensor:
        goals = getattr(data, "goals", None)
        if goals is None:
            raise ValueError(f"the {type(self).__name__} learns from transitions with goals; the data has none")
        return goals

    def _joined(self, observations: Tensor, goals: Tensor) -> Tensor:
        return torch.cat([observations[..., self.columns] if self.has_goal else observations, goals], -1)

    def check(self, data: Any) -> None:
        """Refuse data of another problem, before any training.

        Raises:
            ValueError: if observations or goals have another size, actions another space, or there are no goals.
        """
        super().check(data)
        goals = self._goals_of(data)
        if goals.shape[-1] != self.goal_size:
            raise ValueError(
                f"the {type(self).__name__} takes goals of {self.goal_size} numbers, the data has {goals.shape[-1]}"
            )

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        goal: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return an action for an observation and a goal, or a batch of them; see :meth:`Policy.predict`.

        Args:
            observation: in the environment's form, one or a batch. A goal environment's dict serves also where the
                policy was made for its ``observation`` alone.
            state: not used.
            episode_start: not used.
            deterministic: take the likeliest action instead of a random one.
            goal: ``[G]`` (or one number, if G is 1), or ``[B, G]``; by default the ``desired_goal`` of the observation.

        Raises:
            ValueError: as :meth:`Policy.predict`, and if there is no goal, it has another size, or there are not as
                many as observations.
        """
        given = observation
        if isinstance(given, Mapping):
            space = self.observation_space
            names = list(space.spaces) if isinstance(space, spaces.Dict) else ["observation"]
            if absent := [name for name in names if name not in given]:
                raise ValueError(f"the observation has no {', '.join(map(repr, absent))}")
            observation = {name: given[name] for name in names} if isinstance(space, spaces.Dict) else given[names[0]]
        flat = flatten_observations(self.observation_space, observation)
        if goal is None:
            if not (isinstance(given, Mapping) and "desired_goal" in given):
                raise ValueError("there is no goal: give goal=..., or an observation with a desired_goal")
            goal = np.asarray(given["desired_goal"])
            goal = goal.reshape(goal.shape[: flat.ndim - 1] + (math.prod(goal.shape[flat.ndim - 1 :]),))
        if self.has_goal:
            flat = flat[..., self.columns.cpu().numpy()]
        goal = np.atleast_1d(np.asarray(goal, flat.dtype))
        if goal.shape[-1] != self.goal_size:
            raise ValueError(f"a goal has {self.goal_size} numbers, got {goal.shape[-1]}")
        if goal.ndim > 1 and goal.shape[:-1] != flat.shape[:-1]:
            raise ValueError(f"goals of shape {goal.shape} do not go with observations of batch {flat.shape[:-1]}")
        goal = np.broadcast_to(goal, flat.shape[:-1] + goal.shape[-1:])
        return self._act(np.concatenate([flat, goal], -1), state, episode_start, deterministic)

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"goal_size": self.goal_size, **super().settings()}


class RecurrentState(NamedTuple):
    """What a recurrent policy carries from step to step.

    Attributes:
        cell: the numbers of the recurrent layers, each ``[B, layers, hidden]`` (two for an LSTM, one for a GRU).
        previous: the action before, ``[B, X]`` (X is 0 where it is not seen).
    """

    cell: tuple[Tensor, ...]
    previous: Tensor


class RecurrentPolicy(_WithoutLatents):
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

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head or cell, or sizes that are not positive.
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
    ):
        super().__init__(observation_space, action_space)
        cells: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
        if cell not in cells:
            raise ValueError(f"cell must be one of {', '.join(cells)}, got {cell!r}")
        if min(hidden, layers) < 1:
            raise ValueError("hidden and layers must be positive")
        self.cell, self.hidden, self.layers, self.see_previous_action = cell, hidden, layers, see_previous_action
        self.previous_size = action_features_size(action_space) if see_previous_action else 0
        self.network = cells[cell](self.input_size + self.previous_size, hidden, layers, batch_first=True)
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
        inputs = self.scaled(observations)
        if self.see_previous_action:
            if actions is None:
                raise ValueError("this policy sees the action before: give the actions")
            features = action_features(self.action_space, actions[:, :-1], inputs.dtype)
            inputs = torch.cat([inputs, nn.functional.pad(features, (0, 0, 1, 0))], -1)
        return self.head(self.network(inputs)[0])

    def distribution_of(self, batch: Any) -> TorchDistribution:
        """Return the distribution of every action of a batch, batch shape ``[B, T]``."""
        return self.distribution(batch.observations, batch.actions)

    def begin(self, rows: int) -> RecurrentState:
        """Return the state before an episode's first step: zeros."""
        zeros = self.factor.new_zeros(rows, self.layers, self.hidden)
        cell = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        return RecurrentState(cell, self.factor.new_zeros(rows, self.previous_size))

    def step(self, inputs: Tensor, state: RecurrentState, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at scaled inputs ``[B, X]``, and the state after the step."""
        before = tuple(leaf.transpose(0, 1).contiguous() for leaf in state.cell)
        inputs = torch.cat([inputs, state.previous], -1).unsqueeze(1)
        output, after = self.network(inputs, before if self.cell == "lstm" else before[0])
        leaves = after if self.cell == "lstm" else (after,)
        return self.head(output[:, 0]), RecurrentState(tuple(leaf.transpose(0, 1) for leaf in leaves), state.previous)

    def remember(self, state: RecurrentState, action: Tensor) -> RecurrentState:
        """Return the state, the action taken at the step now known."""
        if not self.see_previous_action:
            return state
        return state._replace(previous=action_features(self.action_space, action, self.factor.dtype))

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        names = ("cell", "hidden", "layers", "see_previous_action")
        return {name: getattr(self, name) for name in names} | {"head": self.head.signature()}


class LatentMemoryPolicy(Policy):
    """pi(m_t, a_t | m_{t-1}, o_t): memory as a latent variable, learnt from `Demonstrations` with a guide.

    ``m_t ~ pi(m_t | m_{t-1}, o_t)``, ``a_t ~ pi(a_t | m_t, o_t)``. What the teacher kept in mind is not in the data;
    :class:`~pyrocontrol.guides.MemoryGuide` infers it, and :class:`~pyrocontrol.inference.StepwiseKL_ELBO` bounds
    ``log p(a | o)``, which for discrete memory ``forward_log_likelihood(*policy.tables(demonstrations))`` has exactly.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        memory: ``"discrete"``, ``"gaussian"``, or a :class:`~pyrocontrol.models.Memory` of observations.
        size: states of a discrete memory, numbers of a Gaussian one.
        hidden: sizes of the hidden layers, of the memory and of the action.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head or memory, or sizes that are not positive.
    """

    remembers = True

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        memory: str | Memory = "discrete",
        size: int = 8,
        hidden: Several[int] = (64,),
        head: str | Head = "auto",
        normalize: Any = None,
    ):
        super().__init__(observation_space, action_space)
        if not hidden:
            raise ValueError("hidden needs at least one layer, in which memory and observation meet")
        self.hidden = tuple(hidden)
        if isinstance(memory, str):
            memory = make_memory(memory, self.input_size, size, self.hidden)
        if memory.context_size != self.input_size:
            raise ValueError(f"the memory sees {memory.context_size} numbers, observations have {self.input_size}")
        self.memory = memory
        self.from_memory = nn.Linear(memory.width, self.hidden[0], bias=False)
        self.from_observation = nn.Linear(self.input_size, self.hidden[0])
        self.network = nn.Sequential(nn.Tanh(), mlp(self.hidden[0], self.hidden[1:]))
        self.head = make_head(head, self.hidden[-1], action_space)
        if normalize is not None:
            self.normalize(normalize)

    # -- the model --------------------------------------------------------------------------------------------------

    def model(self, batch: Any) -> Tensor:
        """Pyro model: ``memory`` from the prior, ``actions`` given it, in plate ``batch``.

        Returns:
            The actions.
        """
        register("policy", self)
        observations = self.scaled(batch.observations)
        with pyro.plate("batch", len(observations), dim=-1):
            memory = pyro.sample("memory", self.prior(batch))
            steps = memory.shape[memory.dim() - 1 - len(self.memory.event_shape)]
            distribution = self._emitted(memory, observations[:, :steps])
            emission = Emission(distribution, "memory", mask=batch.acted[:, :steps])
            return pyro.sample("actions", emission, obs=self.labels(batch)[:, :steps])

    def forward(self, batch: Any) -> Tensor:
        """Run :meth:`model`, so that the policy itself can be given to an ELBO as a module."""
        return self.model(batch)

    def prior(self, batch: Any) -> Sequence:
        """Return ``p(m | o)``, the observations being the trace's own."""
        context = MemoryContext(self.scaled(batch.observations), batch.lengths - 1)
        return Sequence(self.memory, context, max(batch.observations.shape[1] - 1, 1))

    def distribution(self, observations: Tensor, memory: Tensor) -> TorchDistribution:
        """Return pi(a_t | m_t, o_t) at observations ``[..., O]`` and memories ``[...]`` or ``[..., D]``."""
        return self._emitted(memory, self.scaled(observations))

    def _emitted(self, memory: Tensor, inputs: Tensor) -> TorchDistribution:
        features = self.from_memory(self.memory.features(memory)) + self.from_observation(inputs)
        return self.head(self.network(features))

    def tables(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the model of a batch as a hidden Markov chain, for discrete memory: log-probabilities, nats.

        Returns:
            ``log p(m_0 | o_0)`` ``[B, K]``, ``log p(m_t = k | m_{t-1} = j, o_t)`` ``[B, I - 1, K, K]`` for steps 1 to
            I - 1, and ``log p(a_t | m_t, o_t)`` ``[B, I, K]``, 0 where a trace took no action.

        Raises:
            TypeError: for memory that is not discrete.
        """
        if not isinstance(self.memory, DiscreteMemory):
            raise TypeError(f"only discrete memory has tables, not {type(self.memory).__name__}")
        inputs = self.scaled(batch.observations)[:, :-1]
        transitions = self.memory.logits(inputs).log_softmax(-1)
        actions = self.labels(batch)[:, :-1].unsqueeze(2)
        every = torch.arange(self.memory.size, device=inputs.device).expand(inputs.shape[:2] + (-1,))
        emission = self._emitted(every, inputs.unsqueeze(2)).log_prob(actions)
        emission = torch.where(batch.acted[:, :-1, None], emission, 0.0)
        return transitions[:, 0, -1], transitions[:, 1:, :-1], emission

    def exact_loss(self, batch: Any) -> Tensor:
        """Return ``-log p(a | o)``, nats, for discrete memory: what a bound bounds, summed over memories exactly.

        ``fit((policy.exact_loss, torch.optim.Adam(policy.parameters())), data, ...)`` is cloning without a guide.

        Raises:
            TypeError: for memory that is not discrete.
        """
        initial, transition, emission = self.tables(batch)
        # Pyro's chain takes a step before what it emits first: from anywhere, to where this one begins.
        first = initial[:, None, None].expand(-1, 1, self.memory.size, -1)
        chain = dist.DiscreteHMM(torch.zeros_like(initial), torch.cat([first, transition], 1), dist.Unit(emission))
        return -chain.log_prob(emission.new_empty(emission.shape[:2] + (0,))).sum()

    # -- acting -----------------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> MemoryState:
        """Return the memory before an episode's first step."""
        return MemoryState(self.memory.blank(rows), torch.zeros(rows, dtype=torch.long, device=self.factor.device))

    def step(self, inputs: Tensor, state: MemoryState, deterministic: bool) -> tuple[TorchDistribution, MemoryState]:
        """Draw the memory (or take the likeliest one); return the distribution of the action, and the memory."""
        state = MemoryState(*state)  # what went through another's hands may be a plain tuple
        context = MemoryContext(inputs.unsqueeze(1), state.step + 1)
        conditional = self.memory.conditional(state, context)
        memory = conditional.mode if deterministic else conditional.sample()
        return self._emitted(memory, inputs), self.memory.advance(state, memory, context)

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"memory": self.memory.signature(), "hidden": self.hidden, "head": self.head.signature()}
