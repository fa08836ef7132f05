"""An environment as a policy with normalised actions sees it, and what tells it from others."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from ...models.policies.episodes import Episodes, Step
from ...models.policies.level import check_box, to_box
from ..training.checkpoint import described

__all__ = ["Body", "environment_of"]


class Body(Episodes):
    """Episodes of an environment, in normalised actions and the policy's precision.

    Normalised actions in (-1, 1) are mapped affinely to the environment's bounds; an environment with a true attribute
    ``latent`` takes them as they are.

    Args:
        env: one environment with a Box of float actions and a flat Box of observations.
        policy: what is to act in it.

    Raises:
        TypeError: if the environment is none, its actions are no Box of floats, or the policy does not say what it acts
            on.
        ValueError: if the policy does not fit into it, or actions have no bounds.
    """

    def __init__(self, env: Any, policy: Any) -> None:
        super().__init__(env)
        for name in ("observation_size", "action_size", "squash"):
            if not hasattr(policy, name):
                raise TypeError(f"a {type(policy).__name__} is no policy that acts with normalised actions: no {name}")
        seen, acted = env.observation_space, env.action_space
        weights = policy.parameters() if isinstance(policy, nn.Module) else ()
        dtype = next((weight.dtype for weight in weights), torch.float32)
        self.precision = torch.empty((), dtype=dtype).numpy().dtype
        if not isinstance(seen, spaces.Box) or seen.shape != (policy.observation_size,):
            raise ValueError(
                f"the environment's observations are {seen}, not a Box of the {policy.observation_size} numbers "
                f"that the {type(policy).__name__} takes"
            )
        self.latent = env.has_wrapper_attr("latent") and env.get_wrapper_attr("latent") is True
        if not self.latent:
            check_box(acted, policy.action_size)
        elif getattr(acted, "shape", None) != (policy.action_size,):
            raise ValueError(f"the environment's latents are {acted}, not the {policy.action_size} of the policy")
        if self.latent == bool(policy.squash):
            kind = "latents of any size: the policy needs squash=False"
            raise ValueError(f"the environment takes {kind if self.latent else 'bounded actions: squash=True'}")
        self.box, self.shape = acted, seen.shape

    def begin(self, seed: int | None = None, options: dict[str, Any] | None = None) -> np.ndarray:
        """Begin an episode; return the observation ``[O]``.

        Raises:
            ValueError: for an observation of another shape than the space has.
            FloatingPointError: for one that is not finite.
        """
        self.observation = self._seen(super().begin(seed, options))
        return self.observation

    def step(self, action: Any) -> Step:
        """Take a step with a normalised action ``[A]``.

        Raises:
            ValueError: for an observation of another shape than the space has.
            TypeError: for a reward that is no number.
            FloatingPointError: for what is not finite.
        """
        action = np.asarray(action, self.precision)  # as a replay keeps it, which brings episodes back
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the policy's action is {action}")
        step = super().step(action.astype(self.box.dtype) if self.latent else to_box(action, self.box))
        self.observation = self._seen(step.next_observation)
        return step._replace(action=action, next_observation=self.observation)

    def _seen(self, observation: Any) -> np.ndarray:
        """Return a copy, as environments may use their array again."""
        if np.shape(observation) != self.shape:
            raise ValueError(f"the observation has shape {[*np.shape(observation)]}, not {[*self.shape]}")
        with np.errstate(over="ignore"):
            seen = np.array(observation, self.precision)
        if not np.isfinite(seen).all():
            raise FloatingPointError(f"the observation is {observation}, not finite in {self.precision}")
        return seen


def environment_of(env: gymnasium.Env[Any, Any]) -> str:
    """Return what a run must find again to go on: the environment, its bounds, policies that are a part of it.

    Of a registered one, arguments and wrappers too; of another, nothing else is known but the name of its class.
    """
    if (spec := env.spec) is None:
        found = type(env.unwrapped).__name__
    else:
        given = {name: value for name, value in sorted(spec.kwargs.items()) if name != "render_mode"}
        given |= {f"{n}: {around.name}": around.kwargs for n, around in enumerate(spec.additional_wrappers, 1)}
        found = spec.id + (f" {described(given)}" if given else "")
        found += f" of {spec.max_episode_steps} steps" if spec.max_episode_steps else ""
    found += f", actions {described(env.action_space)}"
    if env.has_wrapper_attr("fingerprint"):
        found += f" through {env.get_wrapper_attr('fingerprint')}"
    return found
