"""Policies as Pyro models: cloning a teacher is maximum likelihood, or an ELBO where memory is latent.

A policy is an encoder, a core and a head. The encoder makes numbers of an observation; the core, a causal network with
or without memory, makes features of these; the head makes a distribution of the action of the features. A policy has a
Pyro model whose observed site is ``actions``, and acts by ``predict``, in the environment's own form and with the
signature of stable-baselines3.

Shapes: B rows of a batch (traces, or single transitions), T steps, O observation numbers, X input numbers, A action
numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyro
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..._saved import Saved
from ..causal import Causal
from ..heads import Head, SquashedHead
from ..observation_encoder import ObservationEncoder, as_floats, make_observation_encoder
from ..registration import register
from ..spaces import action_size, check_action_space, decode_actions, flatten_observations, observation_size
from .controller import carried, verify_rows

__all__ = ["Acting", "Batch", "DirectPolicy", "Policy", "Space"]

Space = spaces.Space[Any]

_NORMALIZE_ROWS = 256  # at a time


class Batch(Protocol):
    """What a policy reads of demonstrations ``[B, T]`` or of transitions ``[B]``.

    Attributes:
        observations: ``[..., O]``, floats or whole numbers.
        actions: stored actions, long ``[...]`` (null where there is none), long ``[..., A]`` or floats ``[..., A]``.
        acted: bool ``[...]``, at which steps an action was taken.
    """

    @property
    def observations(self) -> Tensor: ...  # noqa: D102

    @property
    def actions(self) -> Tensor: ...  # noqa: D102

    @property
    def acted(self) -> Tensor: ...  # noqa: D102


class Acting(Saved, nn.Module):
    """What acts one step after another: a subclass says what a step is, and this is its :meth:`predict`.

    Attributes:
        observation_space: of the observations that it is shown.
        action_space: of the actions that it returns.
        head: what takes actions out of distributions.
    """

    observation_space: Space
    action_space: Space
    head: Head

    @property
    def like(self) -> Tensor:
        """Any tensor of the type and on the device that it computes with."""
        return next(self.parameters())

    def encoded(self, inputs: Tensor) -> Tensor:
        """Return what :meth:`step` reads of flattened observations, ``[..., O] -> [..., X]``."""
        return inputs

    def begin(self, rows: int) -> Any:
        """Return the state before an episode's first step, leaves ``[B, ...]``; None without memory."""
        return None

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at encoded inputs ``[B, X]``, and the state after the step."""
        raise NotImplementedError

    def remember(self, state: Any, action: Tensor) -> Any:
        """Return the state, the action taken at the step now known."""
        return state

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return stored actions ``[B]`` or ``[B, A]``, the likeliest or random ones."""
        return self.head.mode(distribution) if deterministic else self.head.draw(distribution)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
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
        """Predict from inputs ``[O]`` or ``[B, O]``."""
        verify_rows(inputs)
        like = self.like
        batch = torch.as_tensor(np.atleast_2d(inputs), dtype=like.dtype, device=like.device)
        state = self._begun(state, episode_start, len(batch))
        distribution, state = self.step(self.encoded(batch), state, deterministic)
        action = self.choose(distribution, deterministic)
        state = self.remember(state, action)
        stored = action.cpu().numpy()
        found = decode_actions(self.action_space, stored if inputs.ndim == 2 else stored[0])
        if isinstance(self.action_space, spaces.Box):
            found = np.clip(found, self.action_space.low, self.action_space.high)
        return found, state

    def _begun(self, state: Any, episode_start: Any, rows: int) -> Any:
        """The state, begun anew in the rows where an episode starts."""
        return carried(self.begin(rows), state, episode_start, rows)


class Policy(Acting):
    """What all policies share: their spaces, encoded inputs, the check of data.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        inputs: what the policy reads at a step, a space or X numbers; by default the observation.
        encoder: of the inputs: ``"auto"``, ``"cnn"`` or ``"flat"``, as for an
            :class:`~pyrocontrol.models.ObservationEncoder`; or such a one, or another module of floats
            ``[..., X] -> [..., C]``. Inputs are scaled as an ObservationEncoder does, by the bounds of whole numbers,
            until :meth:`normalize` is called; for another module they are as they come.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown encoder, or one that does not take the inputs.
    """

    #: Whether it remembers what came before, and so learns from whole traces alone.
    remembers: bool = False
    not_saved = ("normalize",)
    #: Inputs are multiplied by the first and added to the second, `[X]`.
    factor: Tensor
    offset: Tensor

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        inputs: int | Space | None = None,
        encoder: str | nn.Module = "auto",
    ):
        super().__init__()
        check_action_space(action_space)
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_size = observation_size(observation_space)
        space = observation_space if inputs is None else inputs
        if not isinstance(space, spaces.Space):
            space = spaces.Box(-np.inf, np.inf, (space,))
        self.input_size = observation_size(space)
        self.encoder, self.encoded_size = make_observation_encoder(encoder, space)
        scaled = self.encoder if isinstance(self.encoder, ObservationEncoder) else None
        self.register_buffer("factor", torch.ones(self.input_size) if scaled is None else scaled.factor.clone())
        self.register_buffer("offset", torch.zeros(self.input_size) if scaled is None else scaled.offset.clone())

    @property
    def like(self) -> Tensor:
        """Any tensor of the type and on the device that it computes with."""
        return self.factor

    # -- the data ---------------------------------------------------------------------------------------------------

    def check(self, data: Any) -> None:
        """Refuse data of another problem, before any training.

        Raises:
            ValueError: if observations have another size, actions another space, or a policy that remembers is given
                data without traces.
        """
        name, mine, theirs = type(self).__name__, self.action_space, data.action_space
        if self.remembers and not hasattr(data, "lengths"):
            raise ValueError(
                f"the {name} remembers what came before, so it learns from whole traces (Demonstrations), "
                f"not from {type(data).__name__}"
            )
        if (found := observation_size(data.observation_space)) != self.observation_size:
            raise ValueError(f"the {name} takes observations of {self.observation_size} numbers, the data has {found}")
        if _kind_of(mine) != _kind_of(theirs):
            raise ValueError(f"the {name} acts in {mine}, the data's actions are in {theirs}")
        bounds: Any = mine
        if isinstance(self.head, SquashedHead) and not (
            (bounds.low <= theirs.low).all() and (theirs.high <= bounds.high).all()
        ):
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
        """Return inputs ``[..., X]`` as floats: whole numbers within 0 to 1, or all as :meth:`normalize` has them."""
        return torch.addcmul(self.offset, as_floats(inputs, self.factor), self.factor)

    def encoded(self, inputs: Tensor) -> Tensor:
        """Return what the core reads of inputs, ``[..., X] -> [..., C]``."""
        encoder, scaled = self.encoder, self.scaled(inputs)
        return encoder.read(scaled) if isinstance(encoder, ObservationEncoder) else encoder(scaled)

    def labels(self, batch: Batch) -> Tensor:
        """Return the actions of a batch, those that do not exist replaced by some in the space."""
        actions = batch.actions
        if isinstance(self.action_space, spaces.Discrete):
            return actions.clamp(max=int(self.action_space.n) - 1)
        return actions.to(self.factor.dtype) if actions.is_floating_point() else actions

    # -- telling apart ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {}

    def signature(self) -> str:
        """One line that two policies share exactly when they can share weights."""
        kind, sizes = _kind_of(self.action_space)
        given = {"observations": self.observation_size, "actions": f"{kind}{sizes}", **self.settings()}
        if next(self.encoder.parameters(), None) is not None:
            given["encoder"] = " ".join(str(self.encoder).split())
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"


def _kind_of(action_space: Space) -> tuple[str, tuple[int, ...]]:
    """The kind of an action space and its sizes, which decide how actions are stored."""
    match action_space:
        case spaces.Discrete():
            return "Discrete", (int(action_space.n),)
        case spaces.MultiDiscrete():
            return "MultiDiscrete", tuple(action_space.nvec.tolist())
    return type(action_space).__name__, (action_size(action_space),)


class DirectPolicy(Policy):
    """A policy without latent variables: given what was observed, its actions are independent.

    One of your own needs a core and a head::

        class ConvolutionalPolicy(DirectPolicy):
            remembers = True

            def __init__(self, observation_space, action_space):
                super().__init__(observation_space, action_space)
                self.network = WaveNet(self.encoded_size, 64)
                self.head = make_head("auto", 64, action_space)

    Attributes:
        network: the core, from encoded inputs ``[..., C]`` to features.
        encoded_size: C.
    """

    network: Causal

    def distribution_of(self, batch: Any) -> TorchDistribution:
        """Return the distribution of every action of a batch, batch shape ``[B]`` or ``[B, T]``."""
        return self.head(self.network(self.encoded(self.inputs_of(batch))))

    def begin(self, rows: int) -> Any:
        """Return the core's state before an episode's first step."""
        return self.network.begin(rows)

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return the distribution of the action at encoded inputs ``[B, X]``, and the core's state after the step."""
        features, state = self.network.step(inputs, state)
        return self.head(features), state

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
