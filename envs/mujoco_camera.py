"""Small pictures of a MuJoCo world, drawn fast: by a processor a picture of 64 x 64 takes about a millisecond.

Shadows, reflections and multi-sampling, which take ten times as long and show little at that size, are always off, so
that demonstrations and learners see the same world.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

__all__ = ["NO_RENDERER", "MujocoCamera"]

NO_RENDERER = (
    "pictures need OpenGL, which MuJoCo cannot find: on Debian or Ubuntu install libegl1 and libgl1-mesa-dri and set "
    "MUJOCO_GL=egl before Python starts, or libosmesa6 and MUJOCO_GL=osmesa"
)


class MujocoCamera:
    """Draws square pictures.

    Args:
        model: MuJoCo's `MjModel`; its multi-sampling is switched off.
        camera: name or number of one of its cameras.
        size: H = W, in pixels.

    Raises:
        gymnasium.error.DependencyNotInstalled: without OpenGL, saying what to install.
    """

    def __init__(self, model: Any, camera: int | str, size: int) -> None:
        import mujoco

        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self._camera = camera
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the window system that is not there
                self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # what is raised is the platform's
            raise DependencyNotInstalled(NO_RENDERER) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0

    def picture(self, data: Any) -> np.ndarray:
        """The world of MuJoCo's `MjData`, `[H, W, 3]` uint8."""
        self._renderer.update_scene(data, self._camera)
        return np.array(self._renderer.render())

    def close(self) -> None:
        """Free what is used for drawing."""
        self._renderer.close()
