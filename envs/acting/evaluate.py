"""How well a controller does in an environment."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ..._verify import verify_least
from ...models.policies.controller import as_controller
from ...models.policies.episodes import Episodes
from .video import save_video, verify_video

__all__ = ["evaluate_policy"]


def evaluate_policy(
    env: gymnasium.Env[Any, Any],
    policy: Any,
    episodes: int,
    *,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
    video: str | os.PathLike[str] | None = None,
) -> dict[str, list[float]]:
    """Run whole episodes; return what came of each.

    Args:
        env: where to act, one environment; its first episode is reset with ``seed``, the others go on from there.
        policy: a controller, or a function from an observation to an action; see `pyrocontrol.models.as_controller`.
        episodes: how many.
        seed: of the environment.
        deterministic: take the likeliest actions instead of sampling them.
        max_steps: steps after which an episode is truncated; None leaves that to the environment.
        video: a ``.gif`` or ``.mp4`` to film all episodes to; the environment needs ``render_mode="rgb_array"``.

    Returns:
        One number an episode: ``return`` (the sum of rewards), ``length`` (steps), ``success`` (0 or 1) where the last
        ``info`` says ``is_success``, ``imitation_loss`` (its sum) where every ``info`` has one.

    Raises:
        TypeError: if the policy cannot act, or a vector of environments is given.
        ValueError: if there are no episodes to run, or no video can be made.
    """
    verify_least(1, episodes=episodes)
    acting = Episodes(env, as_controller(policy, env), deterministic=deterministic, max_steps=max_steps)
    frames: list[np.ndarray] = []
    fps = 30.0
    if video is not None:
        if env.render_mode != "rgb_array":
            raise ValueError(f"a video needs an environment with render_mode='rgb_array', not {env.render_mode!r}")
        fps = float(env.metadata.get("render_fps") or fps)
        verify_video(Path(video), fps)

    def film() -> None:
        if video is not None:
            frames.append(np.asarray(env.render()))

    found: dict[str, list[float]] = defaultdict(list)
    for episode in range(episodes):
        acting.begin(seed if episode == 0 else None)
        film()
        losses = []
        for step in acting:
            film()
            losses += [float(step.info["imitation_loss"])] if "imitation_loss" in step.info else []
        found["return"].append(acting.total)
        found["length"].append(float(acting.steps))
        if "is_success" in acting.info:
            found["success"].append(float(acting.info["is_success"]))
        if losses:
            found["imitation_loss"].append(sum(losses))
    if video is not None:
        save_video(video, np.stack(frames), fps)
    return dict(found)
