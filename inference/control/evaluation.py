"""How well a policy does while it is being learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..._verify import verify_least, verify_seed
from ...models.policies.controller import as_controller
from ...models.policies.episodes import Episodes
from .body import Body

__all__ = ["evaluation"]


def evaluation(
    policy: Any,
    env: gymnasium.Env[Any, Any] | Callable[[], gymnasium.Env[Any, Any]],
    *,
    episodes: int = 10,
    deterministic: bool = False,
    seed: int = 10_000,
) -> Callable[[int], dict[str, float]]:
    """Return a function of the step that runs a policy and returns its mean return, for :func:`learn`.

    Every call runs the same episodes, seeded ``seed`` and up, with the same noise. A policy that is on a GPU is copied
    to the CPU for that: there, so few observations at a time take less time.

    A policy with normalised actions acts by its ``act``. A controller acts by its ``predict(observation, state,
    episode_start, deterministic)``, in the environment's own observations and actions: what it remembers of an episode
    is in the state that is passed on, and what a learner remembers of its own episode is not touched.

    Args:
        policy: the policy that is being learnt, with normalised actions, or a controller.
        env: an environment of its own, in which one episode comes after the other; or a function that makes one, called
            once an episode: they are then run side by side, their actions drawn at once, which takes less time.
        episodes: how many to run.
        deterministic: take the policy's mode; else sample, as latent space policies are evaluated.
        seed: of the environment and the policy's noise.

    Returns:
        A function to a dictionary of ``return`` and ``length``, means over the episodes.

    Raises:
        TypeError: for an environment or actions of another kind, what cannot act, or numbers that are not whole.
        ValueError: for spaces that do not fit the policy, or numbers out of range.
    """
    verify_least(1, episodes=episodes)
    verify_seed(seed)
    predicts = callable(getattr(policy, "predict", None))
    body: Callable[[Any], Episodes] = Episodes if predicts else lambda own: Body(own, policy)
    seeds = [seed + number for number in range(episodes)]
    alone = isinstance(env, gymnasium.Env) or not callable(env)
    bodies = [body(env)] if alone else [body(env()) for _ in seeds]  # type: ignore[operator]
    if len({id(each.env.unwrapped) for each in bodies}) < len(bodies):
        raise ValueError("the function must make a new environment at every call: episodes run side by side")
    if predicts:
        as_controller(policy, bodies[0].env)  # refuses an environment that it cannot act in

    def evaluate(_step: int) -> dict[str, float]:
        rewards, length = 0.0, 0
        elsewhere = isinstance(policy, nn.Module) and any(weight.is_cuda for weight in policy.parameters())
        acting = copy.deepcopy(policy).cpu() if elsewhere else policy
        controller = as_controller(acting, bodies[0].env) if predicts else None
        torch.manual_seed(seed)
        for first in range(0, episodes, len(bodies)):
            group = bodies[: episodes - first]
            for own, each in zip(seeds[first:], group, strict=False):
                each.controller, each.deterministic = controller, deterministic
                each.begin(own)
            if controller is None:
                _act(acting, group, deterministic)
            else:
                _predict(controller, group, deterministic)
            rewards += sum(each.total for each in group)
            length += sum(each.steps for each in group)
        return {"return": rewards / episodes, "length": length / episodes}

    evaluate.bodies = [each.env.unwrapped for each in bodies]  # type: ignore[attr-defined]
    return evaluate


def _act(policy: Any, bodies: list[Episodes], deterministic: bool) -> None:
    """Run episodes to their ends, side by side, by normalised actions."""
    while running := [body for body in bodies if not body.over]:
        actions = policy.act(np.stack([body.observation for body in running]), deterministic)
        for body, action in zip(running, actions, strict=True):
            body.step(action)


def _predict(controller: Any, bodies: list[Episodes], deterministic: bool) -> None:
    """Run episodes to their ends, side by side unless each begins with a state of its own, by a controller."""
    if len(bodies) == 1 or callable(getattr(controller, "initial_state", None)):
        for body in bodies:
            for _ in body:
                pass
        return
    state, start = None, np.ones(len(bodies), bool)
    while not all(body.over for body in bodies):  # those that are over stay in the batch, and take no step
        seen = pytree.tree_map(lambda *parts: np.stack(parts), *(body.observation for body in bodies))
        actions, state = controller.predict(seen, state, start, deterministic)
        start = np.zeros_like(start)
        for body, action in zip(bodies, actions, strict=True):
            if not body.over:
                body.step(action)
