"""How well a policy does while it is being learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from ..._verify import verify_least, verify_seed
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
    """Return a function of the step that runs the policy and returns its mean return, for :func:`learn`.

    Every call runs the same episodes, seeded ``seed`` and up, with the same noise. A policy that is on a GPU is copied
    to the CPU for that: there, so few observations at a time take less time.

    Args:
        policy: the policy that is being learnt, with normalised actions.
        env: an environment of its own, in which one episode comes after the other; or a function that makes one, called
            once an episode: they are then run side by side, their actions drawn at once, which takes less time.
        episodes: how many to run.
        deterministic: take the policy's mode; else sample, as latent space policies are evaluated.
        seed: of the environment and the policy's noise.

    Returns:
        A function to a dictionary of ``return`` and ``length``, means over the episodes.

    Raises:
        TypeError: for an environment or actions of another kind, or numbers that are not whole.
        ValueError: for spaces that do not fit the policy, or numbers out of range.
    """
    verify_least(1, episodes=episodes)
    verify_seed(seed)
    seeds = [seed + number for number in range(episodes)]
    if isinstance(env, gymnasium.Env) or not callable(env):
        body = Body(env, policy)
        groups = [[(own, body)] for own in seeds]
    else:
        groups = [[(own, Body(env(), policy)) for own in seeds]]
        if len({id(body.env.unwrapped) for _, body in groups[0]}) < episodes:
            raise ValueError("the function must make a new environment at every call: episodes run side by side")

    def evaluate(_step: int) -> dict[str, float]:
        rewards, length = 0.0, 0
        elsewhere = isinstance(policy, nn.Module) and any(weight.is_cuda for weight in policy.parameters())
        acting = copy.deepcopy(policy).cpu() if elsewhere else policy
        torch.manual_seed(seed)
        for group in groups:
            for own, body in group:
                body.begin(own)
            while running := [body for _, body in group if not body.over]:
                seen = np.stack([body.observation for body in running])
                actions = acting.act(seen, deterministic)
                for body, action in zip(running, actions, strict=True):
                    body.step(action)
            rewards += sum(body.total for _, body in group)
            length += sum(body.steps for _, body in group)
        return {"return": rewards / episodes, "length": length / episodes}

    evaluate.bodies = [body.env.unwrapped for group in groups for _, body in group]  # type: ignore[attr-defined]
    return evaluate
