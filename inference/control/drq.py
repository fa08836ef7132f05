"""Soft actor-critic from images: DrQ, which averages targets and critics over random shifts.

Shapes: B batch, F frames, H and W pixels, C channels, A action numbers, K critics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from ...guides.policies.image_policy import Convolutions, Frames, ImagePolicy, features_of
from .critics import Critics
from .policy_gradient import Estimate
from .replay import ReplayBatch
from .ring import ReplayOptions
from .sequence_replay import SequenceBatch, SequenceReplay
from .soft_control import SoftActorCritic

__all__ = ["DrQ", "ImageCritics", "randomly_shifted"]


class ImageCritics(Critics):
    """Critics of images ``[..., F, H, W, C]``: convolutions and features in common, then K networks.

    Args:
        convolutions: shared with a policy; these critics are who learns them.
        features: numbers that the K networks read.
        action_size: A.
        hidden: sizes of their hidden layers.
        count: K.
        coordinates: see `Critics`.
    """

    def __init__(
        self,
        convolutions: Convolutions,
        features: int,
        action_size: int,
        hidden: Sequence[int],
        count: int = 2,
        coordinates: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(features, action_size, hidden, count, coordinates)
        self.convolutions, self.reading = convolutions, features_of(convolutions.size, features)

    def forward(self, observations: Tensor, actions: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return all values ``[K, ...]``; ``frozen`` as for `Critics`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.reading(self.convolutions(observations))
        return super().forward(features, actions, frozen=frozen)


class DrQ(SoftActorCritic):
    """Soft actor-critic of an `ImagePolicy`, with random shifts of the images.

    Each update sees every image shifted ``copies`` times, by up to ``pixels`` pixels to each side, the edge repeated.
    With s~ and s~' such shifts, the target of one transition is the mean over its shifts s~',

        y = r + gamma (1 - terminated) mean_m (min_k Qbar_k(s~'_m, a'_m) - alpha [log pi(a'_m | s~'_m) - log p(a'_m)]),

    and every critic is drawn towards it at every s~. (I. Kostrikov, D. Yarats and R. Fergus, "Image Augmentation Is All
    You Need" (2020), algorithm 1, with K = M = 2.) The policy learns at one shift of each. The replay holds single
    images, as bytes; F of them are put together when a batch is drawn. The F - 1 first steps of an episode are not
    learnt from.

    Args:
        policy: an `ImagePolicy`.
        observation_size: O; see `SoftActorCritic`, as for what follows. The paper has ``hidden`` of (1024, 1024), an
            ``lr`` of 1e-3, and a learned temperature from 0.1.
        action_size: as there.
        temperature: as there.
        gradient: as there.
        **options: as there.

    Raises:
        TypeError: if the policy is no `ImagePolicy`; and as `SoftActorCritic`.
        ValueError: as `SoftActorCritic`.
    """

    #: Pixels to each side.
    pixels: ClassVar[int] = 4
    #: How many shifts of each image.
    copies: ClassVar[int] = 2

    _remembered: Frames | None = None

    def make_critics(self, hidden: Sequence[int], coordinates: Callable[[Tensor], Tensor] | None) -> ImageCritics:
        """Return critics that share the policy's convolutions.

        Raises:
            TypeError: if the policy has none.
            ValueError: if a latent is to be kept.
        """
        if not isinstance(self.policy, ImagePolicy):
            raise TypeError(f"{type(self).__name__} learns an ImagePolicy, not a {type(self.policy).__name__}")
        if self.fixed_latent:
            raise ValueError(f"{type(self).__name__} draws a latent at each step: fixed_latent must be False")
        sizes = self.policy.features, self.action_size
        return ImageCritics(self.policy.convolutions, *sizes, hidden, self.critic_count, coordinates)

    @property
    def observation_space(self) -> Any:
        """Of single images: what `learn` is to give."""
        return self.policy.observation_space

    def make_replay(self, capacity: int, **options: Unpack[ReplayOptions]) -> SequenceReplay:
        """Return a replay of windows of F + 1 images."""
        return SequenceReplay(capacity, self.observation_space, self.action_size, self.policy.frames + 1, **options)

    def begin(self, seed: int) -> None:
        """Forget the images of the episode before; `learn` calls this where an episode begins."""
        super().begin(seed)
        self._remembered = None

    @torch.no_grad()
    def act(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Return the normalised action ``[A]`` at the next image of an episode, ``[H, W, C]``."""
        inputs = torch.as_tensor(observation, device=self.policy.low.device).to(self.policy.low.dtype).reshape(1, -1)
        state = self.policy.begin(1) if self._remembered is None else self._remembered
        distribution, self._remembered = self.policy.step(inputs, state, deterministic)
        action = distribution.mode if deterministic else distribution.sample()
        return action[0].cpu().numpy()

    def update(self, batch: SequenceBatch) -> dict[str, Tensor]:  # type: ignore[override]  # of its own replay
        """Take a step on windows of F + 1 images."""
        images, last = batch.observations, self.policy.frames - 1
        steps = (batch.actions[:, last], batch.rewards[:, last])
        return super().update(ReplayBatch(images[:, :-1], *steps, images[:, 1:], batch.terminated[:, last]))  # type: ignore[index]

    def loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `SoftActorCritic` does, for all shifts of the images ``[B, F, H, W, C]`` at once."""
        observations, actions, rewards, following, terminated = (torch.cat([part] * self.copies) for part in batch)
        observations, following = (randomly_shifted(images, self.pixels) for images in (observations, following))
        return super().loss(ReplayBatch(observations, actions, rewards, following, terminated))

    def soft_target(self, batch: ReplayBatch, alpha: Tensor | None = None) -> Tensor:
        """Return the mean target of all shifts of a transition, for each of them."""
        targets = super().soft_target(batch, alpha).unflatten(0, (self.copies, -1))
        return targets.mean(0).repeat(self.copies)

    def policy_loss(self, observations: Tensor, alpha: Tensor) -> Estimate:
        """Return what `SoftActorCritic` does, at the first shift of each image."""
        return super().policy_loss(observations[: len(observations) // self.copies], alpha)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that is in no tensor of the modules, the images of the episode among it."""
        return super().get_extra_state() | {"remembered": None if self._remembered is None else (*self._remembered,)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`get_extra_state`, sharing nothing with it."""
        super().set_extra_state(state)
        device, images = self.policy.low.device, copy.deepcopy(state["remembered"])
        self._remembered = None if images is None else Frames(*(part.to(device) for part in images))


def randomly_shifted(images: Tensor, pixels: int) -> Tensor:
    """Return images ``[B, F, H, W, C]``, the frames of each row shifted by up to so many pixels, the edge repeated."""
    rows = torch.arange(len(images), device=images.device)[:, None, None]

    def places(side: int) -> Tensor:
        offsets = torch.randint(-pixels, pixels + 1, (len(images), 1), device=images.device)
        return (torch.arange(side, device=images.device) + offsets).clamp(0, side - 1)

    high, wide = places(images.shape[2]), places(images.shape[3])
    return images[rows, :, high[:, :, None], wide[:, None, :]].movedim(3, 1)
