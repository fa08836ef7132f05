"""How well a policy does in an environment."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gymnasium
import numpy as np

from .collect import as_actor

__all__ = ["evaluate_policy"]


def evaluate_policy(
    env: gymnasium.Env[Any, Any], policy: Any, episodes: int, *, seed: int = 0, deterministic: bool = True
) -> dict[str, list[float]]:
    """Run whole episodes; return what came of each.

    Args:
        env: where to act; its first episode is reset with ``seed``, the others go on from there.
        policy: has ``predict(observation, state, episode_start, deterministic) -> (action, state)``, or is a function
            from an observation to an action, as in `collect`.
        episodes: how many.
        seed: of the environment.
        deterministic: take the likeliest actions instead of sampling them.

    Returns:
        One number an episode: ``return`` (the sum of rewards), ``length`` (steps), ``success`` (0 or 1) where the last
        ``info`` says ``is_success``, ``imitation_loss`` (its sum) where every ``info`` has one.

    Raises:
        TypeError: if the policy cannot act.
        ValueError: if there are no episodes to run.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    actor = as_actor(policy)
    found: dict[str, list[float]] = defaultdict(list)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        state, start, ended = None, True, False
        total, length, losses = 0.0, 0, []
        info: dict[str, Any] = {}
        while not ended:
            action, state = actor.predict(observation, state, np.array(start), deterministic)
            observation, reward, terminated, truncated, info = env.step(action)
            start, ended = False, terminated or truncated
            total, length = total + float(reward), length + 1
            if "imitation_loss" in info:
                losses.append(float(info["imitation_loss"]))
        found["return"].append(total)
        found["length"].append(float(length))
        if "is_success" in info:
            found["success"].append(float(info["is_success"]))
        if losses:
            found["imitation_loss"].append(sum(losses))
    return dict(found)
