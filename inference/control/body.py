"""An environment as something with normalised actions sees it, and what tells it from others."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from ...models.policies.episodes import Episodes, Step
from ...models.policies.level import check_box, to_box
from ...models.spaces import boxes_of
from ..training.checkpoint import described
from .observed import Observation, fits, keep

__all__ = ["Body", "environment_of"]


class Body(Episodes):
    """Episodes of an environment, in normalised actions and the observations that are learnt from.

    Normalised actions in (-1, 1) are mapped affinely to the environment's bounds; an environment with a true attribute
    ``latent`` takes them as they are.

    Args:
        env: one environment with a Box of float actions.
        actor: what is to act in it: a policy with ``observation_size``, ``action_size`` and ``squash``, which takes
            vectors in the precision of its first parameter; or what says by an ``observation_space``, a Box or a Dict
            of Boxes, what it takes, and in which dtypes, beside its ``action_size``. Its actions are squashed unless a
            ``squash`` says otherwise.

    Attributes:
        space: of the observations.
        precision: of the actions.

    Raises:
        TypeError: if the environment is none, its actions are no Box of floats, or the actor does not say what it acts
            on.
        ValueError: if the actor does not fit into it, or actions have no bounds.
    """

    observation: Observation

    def __init__(self, env: Any, actor: Any) -> None:
        super().__init__(env)
        space, kind = getattr(actor, "observation_space", None), type(actor).__name__
        for name in ("action_size",) if space is not None else ("observation_size", "action_size", "squash"):
            if not hasattr(actor, name):
                raise TypeError(f"a {kind} is no policy that acts with normalised actions: no {name}")
        seen, acted, size = env.observation_space, env.action_space, actor.action_size
        squash = bool(getattr(actor, "squash", True))
        weights = actor.parameters() if isinstance(actor, nn.Module) else ()
        dtype = next((weight.dtype for weight in weights), torch.float32)
        self.precision = torch.empty((), dtype=dtype).numpy().dtype
        if space is None:
            what = f"a Box of the {actor.observation_size} numbers"
            space = spaces.Box(-np.inf, np.inf, (actor.observation_size,), self.precision.type)
            known = isinstance(seen, spaces.Box) and seen.shape == space.shape
        else:
            boxes_of(space)
            what, known = f"the {space}", fits(space, seen)
        if not known:
            raise ValueError(f"the environment's observations are {seen}, not {what} that the {kind} takes")
        self.latent = env.has_wrapper_attr("latent") and env.get_wrapper_attr("latent") is True
        if not self.latent:
            check_box(acted, size)
        elif getattr(acted, "shape", None) != (size,):
            raise ValueError(f"the environment's latents are {acted}, not the {size} of the policy")
        if self.latent == squash:
            bounds = "latents of any size: the policy needs squash=False"
            raise ValueError(f"the environment takes {bounds if self.latent else 'bounded actions: squash=True'}")
        self.box, self.space = acted, space

    def begin(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        """Begin an episode; return the observation.

        Raises:
            ValueError: for an observation of another shape or dtype than the space has.
            FloatingPointError: for one that is not finite.
        """
        self.observation = keep(self.space, super().begin(seed, options))
        return self.observation

    def step(self, action: Any) -> Step:
        """Take a step with a normalised action ``[A]``.

        Raises:
            ValueError: for an observation of another shape or dtype than the space has.
            TypeError: for a reward that is no number.
            FloatingPointError: for what is not finite.
        """
        action = np.asarray(action, self.precision)  # as a replay keeps it, which brings episodes back
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the policy's action is {action}")
        step = super().step(action.astype(self.box.dtype) if self.latent else to_box(action, self.box))
        self.observation = keep(self.space, step.next_observation)
        return step._replace(action=action, next_observation=self.observation)


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
