"""Levels of latent space policies as one policy: it acts, can be inverted, and is kept in one file.

With levels 0 (the lowest) to L - 1 the action is

    a = f_0(h_0; s),  h_0 = f_1(h_1; s),  ...,  h_{L-1} ~ N(0, I),

and since each f_i is invertible in its latents, every action is that of exactly one latent at the top. T. Haarnoja et
al., "Latent Space Policies for Hierarchical Reinforcement Learning" (2018), section 5.1.

Shapes: `...` a batch of any shape, B rows, L levels, O observation numbers, A action numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..._saved import Saved, readable
from ...models.policies.level import Columns, check_box, columns_of, from_box, frozen, hold_of, to_box

__all__ = ["Hierarchy", "HierarchyState"]


class HierarchyState(NamedTuple):
    """What a hierarchy remembers from step to step.

    Attributes:
        clock: steps since the episode began, ``[B]`` int64.
        latents: h_i of each level as last computed, ``[B, L, A]``; that of the top where it is fixed.
    """

    clock: Tensor
    latents: Tensor


class Hierarchy(Saved, nn.Module):
    """Frozen levels, composed.

    It acts as its top policy does in the environment that embeds the levels below, one in the other, by
    `LatentActionEnv` with the same ``observations`` and ``holds``.

    Args:
        policies: from the lowest level to the top. They are copied.
        observations: which numbers of the observation each level sees: slices or indices, None for all.
        observation_size: O; by default that of the top policy, which then sees everything.
        holds: for each level but the top, for how many of its steps it is given the same latent; by default 1.
        fixed_latent: draw the latent of the top level once an episode and keep it, as the paper does in the maze.
        action_space: bounded, to which `predict` scales actions, and from which `latents` takes them; None for the
            box from -1 to 1.

    Raises:
        TypeError: if policies are no list, one is no torch module, a hold no whole number, or the space no Box.
        ValueError: if there are no policies, two do not fit to each other, their precision included, a number of things
            is not that of levels, a level other than the top is not invertible, or one was trained for another place or
            space.
    """

    def __init__(
        self,
        policies: Sequence[Any],
        observations: Sequence[Columns] | None = None,
        *,
        observation_size: int | None = None,
        holds: Sequence[int] | None = None,
        fixed_latent: bool = False,
        action_space: spaces.Box | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(policies, Sequence | nn.ModuleList):
            raise TypeError(f"policies must be a list, the lowest first, not a {type(policies).__name__}")
        count = len(policies)
        if not count:
            raise ValueError("a hierarchy needs at least one level")
        self.levels = nn.ModuleList(frozen(policy) for policy in policies)
        self._copied(policies, self.levels)
        for number, policy in enumerate(policies):
            for name in ("observation_size", "action_size", "squash", "draw", "mode", "signature"):
                if not hasattr(policy, name):
                    raise TypeError(f"level {number}: a {type(policy).__name__} is no policy, it has no {name}")
        self.observation_size = int(policies[-1].observation_size if observation_size is None else observation_size)
        self.action_size = int(policies[0].action_size)
        self.fixed_latent = fixed_latent
        if action_space is None:
            double = next(self.parameters()).dtype == torch.float64
            action_space = spaces.Box(-1, 1, (self.action_size,), np.float64 if double else np.float32)
        self.action_space = action_space
        observations = [None] * count if observations is None else observations
        holds = [1] * (count - 1) if holds is None else holds
        for name, given in {"observations": observations, "holds": holds}.items():
            if not isinstance(given, Sequence | np.ndarray):
                raise TypeError(f"{name} must be a list with an entry for each level, got {given!r}")
        self.holds = tuple(map(hold_of, holds))
        if len(observations) != count:
            raise ValueError(f"observations are {len(observations)}, one for each of {count} levels is needed")
        if len(self.holds) != count - 1:
            raise ValueError(
                f"holds must be {count - 1} positive numbers, for each level but the top, got {self.holds}"
            )
        if len(precisions := {str(weight.dtype) for weight in self.parameters()}) > 1:
            raise ValueError(f"levels must be of one precision, these are {' and '.join(sorted(precisions))}")
        for number, policy in enumerate(policies):
            self._check_level(number, policy, count)
        check_box(self.action_space, self.action_size)
        self.columns: list[list[int]] = []
        for number, (columns, policy) in enumerate(zip(observations, policies, strict=True)):
            try:
                self.columns.append(columns_of(columns, self.observation_size, policy.observation_size).tolist())
            except ValueError as error:
                raise ValueError(f"level {number}: {error}") from error
        # At how many steps of the environment each level acts once.
        self.periods = [int(np.prod(self.holds[:number], dtype=np.int64)) for number in range(count)]

    def _check_level(self, number: int, policy: Any, count: int) -> None:
        kind, top = type(policy).__name__, number == count - 1
        if policy.action_size != self.action_size:
            raise ValueError(
                f"level {number} ({kind}) acts with {policy.action_size} numbers, level 0 with {self.action_size}"
            )
        if policy.squash != (number == 0):
            where = "the environment" if policy.squash else "a level above the lowest"
            raise ValueError(f"level {number} ({kind}) was trained for {where}: squash is {policy.squash}")
        if not getattr(policy, "invertible", False) and (not top or self.fixed_latent):
            what = "the latent of the top cannot be fixed" if top else "it can only be the top"
            raise ValueError(f"level {number} ({kind}) is no invertible map from latents to actions: {what}")

    # -- acting -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, HierarchyState]:
        """Return an action for an observation, or a batch of them; the signature is stable-baselines3's.

        Args:
            observation: ``[O]`` or ``[B, O]``.
            state: what the call before returned; None at first. Without it nothing is held.
            episode_start: bool, or bool ``[B]``: where an episode begins, so that the state is begun anew.
            deterministic: let the top level take its mode, or the latent 0 where that is fixed, instead of drawing.

        Returns:
            The action, ``[A]`` or ``[B, A]``, scaled to the action space, and the state.

        Raises:
            ValueError: for observations of another shape, or that are not finite; for a state of another number of
                rows; for an ``episode_start`` that is neither one bool nor one a row.
        """
        given = np.asarray(observation)
        if given.ndim not in (1, 2) or given.shape[-1] != self.observation_size:
            raise ValueError(
                f"observations must have shape [{self.observation_size}] or [B, {self.observation_size}], "
                f"got {[*given.shape]}"
            )
        if not np.isfinite(given).all():
            raise ValueError("the observation is NaN or infinite")
        weight = next(self.parameters())
        seen = torch.as_tensor(np.atleast_2d(given), dtype=weight.dtype, device=weight.device)
        clock, latents = self._begun(state, episode_start, len(seen), weight)
        latents = latents.clone()
        value = self._top(seen, clock, latents, deterministic)
        for number in reversed(range(len(self.levels) - 1)):
            # The level above acts once in so many steps; in between, this one keeps the latent it was given.
            due = clock % self.periods[number + 1] == 0
            latents[:, number] = torch.where(due.unsqueeze(-1), value, latents[:, number])
            value = self._level(number).actions(latents[:, number], seen[:, self.columns[number]])
        action = to_box(value.cpu().numpy(), self.action_space)
        return action if given.ndim == 2 else action[0], HierarchyState(clock + 1, latents)

    def within(self, env: Any) -> Hierarchy:
        """Return this hierarchy, which acts in the bounds of its own action space, if these are the environment's.

        Raises:
            ValueError: if they are not, or observations are of another size: actions would be out of scale.
        """
        if env.action_space != self.action_space:
            raise ValueError(
                f"the hierarchy acts in {self.action_space}, the environment in {env.action_space}: "
                "make it with action_space=env.action_space"
            )
        if getattr(env.observation_space, "shape", None) != (self.observation_size,):
            raise ValueError(
                f"the hierarchy takes observations of {self.observation_size} numbers in a row, "
                f"the environment's are {env.observation_space}"
            )
        return self

    def _level(self, number: int) -> Any:
        return self.levels[number]

    def _top(self, seen: Tensor, clock: Tensor, latents: Tensor, deterministic: bool) -> Tensor:
        """What the top level emits, ``[B, A]``; a latent of its own that is kept goes into ``latents``."""
        top, inputs = self._level(-1), seen[:, self.columns[-1]]
        if not self.fixed_latent:
            return top.mode(inputs) if deterministic else top.draw(inputs)[0]
        fresh = torch.zeros_like(latents[:, -1]) if deterministic else torch.randn_like(latents[:, -1])
        latents[:, -1] = torch.where((clock == 0).unsqueeze(-1), fresh, latents[:, -1])
        return top.actions(latents[:, -1], inputs)

    def _begun(self, state: Any, episode_start: Any, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The clock and the latents, the clock set back where an episode starts."""
        if episode_start is not None and np.shape(episode_start) not in ((), (rows,)):
            raise ValueError(f"episode_start must be one bool or [{rows}], got shape {[*np.shape(episode_start)]}")
        shape = (rows, len(self.levels), self.action_size)
        if state is None:
            return torch.zeros(rows, dtype=torch.long, device=like.device), like.new_zeros(shape)
        clock = torch.as_tensor(state[0], dtype=torch.long, device=like.device)
        latents = torch.as_tensor(state[1], dtype=like.dtype, device=like.device)
        if clock.shape != (rows,) or latents.shape != shape:
            raise ValueError(f"the state is of another hierarchy, or not of {rows} rows")
        if episode_start is not None:
            clock = clock.masked_fill(torch.as_tensor(episode_start, dtype=torch.bool, device=like.device), 0)
        return clock, latents

    # -- latents and actions ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def actions(self, latents: Any, observations: Any) -> Tensor:
        """Return actions ``[..., A]``, f_0(f_1(...f_{L-1}(h; s)...; s); s), in the action space's scale.

        All is computed in double precision.

        Args:
            latents: of the top level, ``[..., A]``.
            observations: ``[..., O]``.

        Raises:
            ValueError: for other sizes, or numbers that are not finite.
        """
        value, seen = self._doubles(latents, observations, "latents")
        for level, columns in reversed(self._double_levels()):
            value = level.actions(value, seen[..., columns])
        box = self.action_space
        low, high = (torch.as_tensor(end, dtype=value.dtype, device=value.device) for end in (box.low, box.high))
        return low + (value + 1) * ((high - low) / 2)

    @torch.no_grad()
    def latents(self, actions: Any, observations: Any) -> list[Tensor]:
        """Return what each level's latents are at given actions: h_0, h_1, ..., h_{L-1}, ``[..., A]`` each.

        The inverse of `actions`, in double precision, whatever the weights' own: ``actions(latents(a, s)[-1], s)``
        reproduces any a within the bounds to 1e-5 of half the distance between them (actions at a bound, whose latents
        are infinite, are taken to lie 1e-6 inside).

        Args:
            actions: ``[..., A]``, in the action space's scale.
            observations: ``[..., O]``.

        Raises:
            ValueError: for other sizes, numbers that are not finite, or actions out of bounds by more than rounding.
            NotImplementedError: if the top level is not invertible.
        """
        value, seen = self._doubles(actions, observations, "actions")
        value = torch.as_tensor(from_box(value.cpu().numpy(), self.action_space), device=value.device)
        if (value.abs() > 1 + 1e-5).any():  # further than single precision rounds
            raise ValueError(f"actions must be within {self.action_space}")
        found = []
        for level, columns in self._double_levels():
            value = level.latents(value, seen[..., columns])
            found.append(value)
        return found

    def _double_levels(self) -> list[tuple[Any, list[int]]]:
        return [(copy.deepcopy(level).double(), at) for level, at in zip(self.levels, self.columns, strict=True)]

    def _doubles(self, values: Any, observations: Any, what: str) -> tuple[Tensor, Tensor]:
        device = next(self.parameters()).device
        value = torch.as_tensor(values, dtype=torch.float64, device=device)
        seen = torch.as_tensor(observations, dtype=torch.float64, device=device)
        if value.shape[-1:] != (self.action_size,):
            raise ValueError(f"{what} must have shape [..., {self.action_size}], got {[*value.shape]}")
        if seen.shape != (*value.shape[:-1], self.observation_size):
            raise ValueError(
                f"observations must have shape {[*value.shape[:-1], self.observation_size]}, got {[*seen.shape]}"
            )
        if not (value.isfinite().all() and seen.isfinite().all()):
            raise ValueError(f"{what} or observations are NaN or infinite")
        return value, seen

    def signature(self) -> str:
        """Return lines that two hierarchies share exactly when they can share weights and mean the same by them."""
        lines = [
            f"{number}: {self._level(number).signature()} of {columns}" for number, columns in enumerate(self.columns)
        ]
        about = f"{self.observation_size=}, {self.holds=}, {self.fixed_latent=}, {self.action_space=}"
        return "\n".join([*lines, about.replace("self.", "")])


def _of_version_0_1(content: dict[str, Any], kind: str | None) -> list[dict[str, Any]]:
    """What `load` makes of a hierarchy that version 0.1 wrote: its levels, and the hierarchy of them."""
    saved = {entry["level"]: entry for entry in content["levels"]}
    entries = [saved[number] for number in range(content["count"])]
    common = {"precision": "float32", "training": False}
    levels = [
        {"class": f":{entry['class']}", "arguments": entry["settings"], "state": entry["state"]} | common
        for entry in entries
    ]
    space = content["action_space"]
    arguments = {
        "policies": [{"object": number} for number in range(len(levels))],
        "observations": [entry["columns"] for entry in entries],
        "action_space": None if space is None else {"space": space},
    } | {name: content[name] for name in ("observation_size", "holds", "fixed_latent")}
    state = {f"levels.{i}.{name}": tensor for i, entry in enumerate(entries) for name, tensor in entry["state"].items()}
    return [*levels, {"class": ":Hierarchy", "arguments": arguments, "state": state} | common]


readable("pyrocontrol hierarchy 1", _of_version_0_1)
