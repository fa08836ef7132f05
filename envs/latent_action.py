"""A frozen policy as part of the environment: its latents are the actions of the level above.

A flow policy is a = f(h; s) with h ~ N(0, I). Frozen, f is a layer between the environment and another policy, and
embedding it gives a new environment, whose actions are h. As f is invertible in h, everything that could be done before
can still be done. T. Haarnoja et al., "Latent Space Policies for Hierarchical Reinforcement Learning" (2018), section
5.1. Environments of this kind can be embedded again, to any depth.

Shapes: O observation numbers, A action numbers, which are as many at all levels.
"""

from __future__ import annotations

import hashlib
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..models.policies.level import Columns, check_box, check_module, columns_of, frozen, hold_of, to_box

__all__ = ["LatentActionEnv"]


class LatentActionEnv(gymnasium.Wrapper):
    """An environment whose actions are the latents h of a frozen policy, a = f(h; s).

    The loop is closed: a latent is held for ``hold`` steps of the environment inside, and at each of them the action is
    computed anew from what is then observed. Rewards of these steps are added up; fewer are made where the episode
    ends. What the policy emits is mapped from (-1, 1) to the bounds of the actions inside, unless they are latents too.

    Observation: as inside. Action: ``[A]``, any real numbers, of the policy's precision; its prior is N(0, I).
    ``info`` is that of the last step inside; its ``environment_steps`` says how many steps were made at the very
    bottom.

    The policy is copied to the CPU, so that training it further does not change the environment.

    Args:
        env: bounded actions, or a `LatentActionEnv` itself, further wrapped as one likes.
        policy: a `Level`, such as `FlowPolicy`.
        observation: which numbers of the observation the policy sees, a slice or indices; None for all. An appended
            goal, or a position, is cut off by it.
        hold: for how many steps inside an action is held.

    Raises:
        TypeError: if the actions inside are not numbers in one row, the observations are not, the policy is no torch
            module, ``observation`` neither a slice nor indices, or ``hold`` no whole number.
        ValueError: if they are of other sizes than the policy's, it squashes its actions where these are latents or
            does not where they are bounded, the actions have no two bounds and are no latents, the policy is no map
            from latents to actions, or ``hold`` is less than 1.
    """

    #: The actions are latents: any real numbers, not to be scaled to bounds. Wrappers around pass the name on.
    latent = True

    def __init__(
        self, env: gymnasium.Env[Any, Any], policy: Any, *, observation: Columns = None, hold: int = 1
    ) -> None:
        super().__init__(env)
        self.hold = hold_of(hold)
        _check_spaces(env, policy)
        self._shape: Any = env.observation_space.shape
        self.columns = columns_of(observation, int(env.observation_space.shape[0]), policy.observation_size)  # type: ignore[index]
        self.policy: Any = frozen(policy).cpu()
        weight = next(self.policy.parameters())
        self._dtype = weight.dtype
        self._box: Any = None if is_latent(env) else env.action_space
        precision = np.float64 if weight.dtype == torch.float64 else np.float32
        self.action_space = spaces.Box(-np.inf, np.inf, (policy.action_size,), precision)
        self._seen: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """What this level and those below it are, their weights included; whoever trains on latents keeps it."""
        digest = hashlib.sha256(f"{self.policy.signature()}, {self.columns.tolist()}, {self.hold}".encode())
        for name, tensor in sorted(self.policy.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        if self.env.has_wrapper_attr("fingerprint"):
            digest.update(self.env.get_wrapper_attr("fingerprint").encode())
        return digest.hexdigest()[:16]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode inside; raises as `step` does, for what is observed."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._look(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold a latent for ``hold`` steps inside, or until the episode ends.

        Raises:
            ValueError: for a latent of another shape or that is not finite, if it leads to no finite action, or if an
                observation inside has another shape than those of its space.
            FloatingPointError: if an observation inside is not finite.
            RuntimeError: before `reset`.
        """
        if self._seen is None:
            raise RuntimeError("call reset before step")
        if np.shape(action) != (self.policy.action_size,):
            raise ValueError(f"a latent must have shape [{self.policy.action_size}], got {[*np.shape(action)]}")
        if not np.isfinite(action).all():
            raise ValueError(f"a latent must be finite, got {action!r}")
        latents = torch.as_tensor(np.asarray(action), dtype=self._dtype).unsqueeze(0)
        total, steps = 0.0, 0
        for _ in range(self.hold):
            observation, reward, terminated, truncated, info = self.env.step(self._act(latents))
            self._look(observation)
            total, steps = total + float(reward), steps + info.get("environment_steps", 1)
            if terminated or truncated:
                break
        return observation, total, bool(terminated), bool(truncated), {**info, "environment_steps": steps}

    def _look(self, observation: Any) -> None:
        """Keep what the policy sees."""
        if np.shape(observation) != self._shape:
            shapes = f"{[*np.shape(observation)]}, not {[*self._shape]}"
            raise ValueError(f"the environment's observation has shape {shapes}")
        if not np.isfinite(observation).all():
            raise FloatingPointError(f"the environment's observation is {observation}")
        self._seen = np.asarray(observation)[self.columns]

    def _act(self, latents: Tensor) -> np.ndarray:
        """What the environment inside is to do next."""
        with torch.inference_mode():
            seen = torch.as_tensor(self._seen, dtype=self._dtype).unsqueeze(0)
            action = self.policy.actions(latents, seen)[0].numpy()
        if not np.isfinite(action).all():
            raise ValueError(f"the latents {latents[0].tolist()} lead to an action that is not finite: {action}")
        return action if self._box is None else to_box(action, self._box)


def is_latent(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether the actions of an environment are the latents of a policy, also where it is wrapped further."""
    return env.has_wrapper_attr("latent") and env.get_wrapper_attr("latent") is True


def _check_spaces(env: gymnasium.Env[Any, Any], policy: Any) -> None:
    check_module(policy)
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, spaces.Box) or len(observations.shape) != 1:
        raise TypeError(f"observations must be a Box of one row (see FlattenObservation), got {observations}")
    kind = type(policy).__name__
    if not getattr(policy, "invertible", False):
        raise ValueError(f"the {kind} is no invertible map from latents to actions: it can only be the top level")
    for name in ("observation_size", "action_size", "squash", "actions", "signature"):
        if not hasattr(policy, name):
            raise TypeError(f"the {kind} is no level: it has no {name}")
    if next(policy.parameters(), None) is None:
        raise ValueError(f"the {kind} has no parameters, by which its precision is known")
    if not is_latent(env):
        check_box(actions, policy.action_size)
        if not policy.squash:
            raise ValueError(f"the {kind} emits any real numbers, it was trained for a level above: {actions}")
        return
    if actions.shape != (policy.action_size,):
        raise ValueError(
            f"the {kind} acts with {policy.action_size} numbers, the level below has other latents: {actions}"
        )
    if policy.squash:
        raise ValueError(f"the {kind} squashes its actions, it was trained for an environment, not for latents")
