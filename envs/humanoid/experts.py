"""Who shows the humanoid's skills: experts and assisted playback.

pybullet brings trained policies for four of its clips; all other clips can only be played back with the root held where
the clip has it (`assisted=True` of `DeepMimicEnv`). `humanoid_demonstrations` records what they show.

Shapes: B observations.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import tasks
from .deep_mimic import ACTION_HIGH, ACTION_LOW
from .motion import BALL_STARTS, CONTROL_RATE, HINGE_STARTS, SPHERICAL, STAND, HumanoidMotion, bullet_data
from .quaternions import rotation_vector
from .tensor_bundle import read_tensor_bundle

__all__ = ["COMPOSITES", "EXPERT_SKILLS", "AssistedPlayback", "DeepMimicExpert", "parts_of"]

EXPERT_SKILLS = ("backflip", "jump", "spinkick", "walk")

# Which skills add up to which. Those of the spin kick are the paper's; it does not say which ones make a backflip, and
# jump + roll is this library's choice.
COMPOSITES = {"spinkick": ("kick", "spin", "jump"), "backflip": ("jump", "roll")}
#: The same, and doing nothing.
ALL_COMPOSITES = {**COMPOSITES, STAND: ()}

_STATE, _ACTION = 197, 36


def parts_of(skill: str) -> tuple[str, ...]:
    """Return the sub-skills of a skill: those that make a composite or a sum (``"kick+spin"``), itself, or none.

    Raises:
        ValueError: if a part of a sum has no name.
    """
    return tasks.parts_of(skill, ALL_COMPOSITES)


def _observed(observation: Any) -> np.ndarray:
    seen = np.asarray(observation, np.float32)
    if seen.ndim not in (1, 2) or seen.shape[-1] != _STATE:
        raise ValueError(f"the observation must have shape [{_STATE}] or [B, {_STATE}], got {list(seen.shape)}")
    if not np.isfinite(seen).all():
        raise ValueError("the observation is NaN or infinite")
    return seen


class DeepMimicExpert:
    """A policy that DeepMimic trained: two hidden layers (1024 and 512, ReLU), and normalisers at both ends.

        a = sd_a * (W_3 relu(W_2 relu(W_1 (o - mean_o) / sd_o + b_1) + b_2) + b_3) + mean_a

    Args:
        motion: one of `EXPERT_SKILLS`, whose policies pybullet brings. Others: `DeepMimicExpert.load`.
        noise: standard deviation of the actions of `deterministic=False`, in units of sd_a; 0.05 is what the policies
            were trained with.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
        ValueError: if there is no policy of this motion, or the noise is negative.
    """

    def __init__(self, motion: str, *, noise: float = 0.05) -> None:
        if motion not in EXPERT_SKILLS:
            raise ValueError(f"pybullet has no policy of {motion!r}; it has {', '.join(EXPERT_SKILLS)}")
        self._read(bullet_data() / "data" / "policies" / "humanoid3d" / f"humanoid3d_{motion}.ckpt", noise)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, noise: float = 0.05) -> DeepMimicExpert:
        """Read a checkpoint of DeepMimic's, made by the authors' code or by pybullet's.

        Args:
            path: the checkpoint, such as `humanoid3d_kick.ckpt` beside whose `.index` stand its `.data-...` files. It
                holds the tensors `agent/main/actor/{0,1,...}/dense/{kernel,bias}` of the hidden layers,
                `agent/main/actor/dense/{kernel,bias}` of the last one, and `agent/resource/{s_norm,a_norm}/{mean,std}`,
                for 197 observation numbers (no goals) and 36 action numbers.
            noise: see the class.

        Raises:
            FileNotFoundError: if there is no such checkpoint, or a part is missing.
            ValueError: if it cannot be read (see `read_tensor_bundle`), lacks a tensor, or has other sizes.
        """
        expert = cls.__new__(cls)
        expert._read(Path(path), noise)
        return expert

    def _read(self, path: Path, noise: float) -> None:
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.noise = noise
        tensors = read_tensor_bundle(path)

        def tensor(name: str, *shape: int | None) -> np.ndarray:
            if (found := tensors.get(f"agent/{name}")) is None:
                raise ValueError(f"{path} is no checkpoint of DeepMimic's: it has no tensor agent/{name}")
            if found.ndim != len(shape) or any(w not in (None, n) for w, n in zip(shape, found.shape, strict=True)):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise ValueError(f"{path}: agent/{name} has shape {list(found.shape)}, expected [{wanted}]")
            if not np.isfinite(found).all():
                raise ValueError(f"{path}: agent/{name} holds a number that is NaN or infinite")
            return found.astype(np.float32)

        self._seen = tuple(tensor(f"resource/s_norm/{name}", _STATE) for name in ("mean", "std"))
        self._acted = tuple(tensor(f"resource/a_norm/{name}", _ACTION) for name in ("mean", "std"))
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        width = _STATE
        while f"agent/main/actor/{len(self._layers)}/dense/kernel" in tensors:
            layer = f"main/actor/{len(self._layers)}/dense"
            kernel = tensor(f"{layer}/kernel", width, None)
            width = kernel.shape[1]
            self._layers.append((kernel, tensor(f"{layer}/bias", width)))
        last = "main/actor/dense"
        self._layers.append((tensor(f"{last}/kernel", width, _ACTION), tensor(f"{last}/bias", _ACTION)))

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return the action for one observation or a batch, clipped to its bounds, and the state as it was.

        Args:
            observation: `[197]` or `[B, 197]`.
            state: not used: the phase is part of the observation.
            episode_start: not used.
            deterministic: the mean; else with the noise of the class, from torch's generator.

        Returns:
            The action, `[36]` or `[B, 36]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape or is not finite.
        """
        hidden = (_observed(observation) - self._seen[0]) / self._seen[1]
        for kernel, bias in self._layers[:-1]:
            hidden = np.maximum(hidden @ kernel + bias, 0)
        kernel, bias = self._layers[-1]
        action = hidden @ kernel + bias
        if not deterministic:
            action = action + self.noise * torch.randn(action.shape).numpy()
        return (action * self._acted[1] + self._acted[0]).clip(ACTION_LOW, ACTION_HIGH), state


class AssistedPlayback:
    """Follows a clip with the joints: the targets are the clip's own pose, a little ahead of time.

    Stable proportional-derivative control lags behind a moving target by damping / stiffness = 0.1 s, so the targets
    are those of `lead` seconds later. Alone the body would soon fall over: use it in an environment that holds the
    root, `DeepMimicEnv(motion, assisted=True)`.

    Args:
        motion: a clip: the name of a shipped one, a file, or a `HumanoidMotion`.
        lead: how far ahead (s).

    Raises:
        ModuleNotFoundError, ValueError: see `HumanoidMotion.load`; also if the lead is not finite.
    """

    def __init__(self, motion: str | os.PathLike[str] | HumanoidMotion, *, lead: float = 0.1) -> None:
        if not np.isfinite(lead):
            raise ValueError(f"lead must be finite, got {lead}")
        self.motion = motion if isinstance(motion, HumanoidMotion) else HumanoidMotion.load(motion)
        self.lead = lead
        # A rotation about an axis is also one about the opposite axis by the opposite angle. Of the two the one is
        # taken that goes on from the tick before, so that the numbers do not jump where an angle passes 0 (they may
        # where a clip begins anew); it begins with the axis that points along z, about which most joints turn.
        self._ticks = 1 + int(np.ceil(self.motion.seconds * CONTROL_RATE))
        self._axes = np.zeros((self._ticks, len(BALL_STARTS), 3))
        axis = np.tile([0.0, 0.0, 1.0], (len(BALL_STARTS), 1))
        for tick in range(self._ticks):
            axis = self._encode(tick / CONTROL_RATE, axis)[1]
            self._axes[tick] = axis

    def _encode(self, seconds: float, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The clip's pose as an action `[36]`, and its axes `[8, 3]` of length 1, on the side of the axes `like`."""
        joints = self.motion.at(seconds).joints
        turns = rotation_vector(np.array([joint for joint, ball in zip(joints, SPHERICAL, strict=True) if ball]))
        angles = np.linalg.norm(turns, axis=1, keepdims=True)
        none = angles < 1e-6
        axes = np.where(none, like, turns / np.where(none, 1.0, angles))
        sign = np.where((axes * like).sum(1, keepdims=True) < 0, -1.0, 1.0)
        axes, angles = sign * axes, sign * angles
        action = np.zeros(_ACTION)
        action[BALL_STARTS] = angles[:, 0]
        action[BALL_STARTS[:, None] + [1, 2, 3]] = axes
        action[HINGE_STARTS] = [float(joint[0]) for joint, ball in zip(joints, SPHERICAL, strict=True) if not ball]
        return action, axes

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return the targets at the phase that is observed, for one observation or a batch, and the state as it was.

        Args:
            observation: `[197]` or `[B, 197]`, of which only the phase counts.
            state: not used.
            episode_start: not used.
            deterministic: without effect, the playback is deterministic.

        Returns:
            The action, `[36]` or `[B, 36]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape or is not finite, or its phase is not in 0..1.
        """
        seen = _observed(observation)
        phases = np.atleast_1d(seen[..., 0]).astype(np.float64)
        if not ((phases >= 0) & (phases <= 1)).all():
            raise ValueError("the phase, the first number of an observation, must be in 0..1")
        actions = []
        for phase in phases:
            seconds = phase * self.motion.seconds + self.lead
            within = seconds % self.motion.seconds if self.motion.loops else min(seconds, self.motion.seconds)
            tick = min(round(within * CONTROL_RATE), self._ticks - 1)
            actions.append(self._encode(seconds, self._axes[tick])[0])
        found = np.array(actions, np.float32).clip(ACTION_LOW, ACTION_HIGH)
        return (found[0] if seen.ndim == 1 else found), state
