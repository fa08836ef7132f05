"""Small pictures of a MuJoCo world, drawn fast: by a processor a picture of 64 x 64 takes about a millisecond.

Shadows, reflections and multi-sampling, which take ten times as long and show little at that size, are always off, so
that demonstrations and learners see the same world.
"""

from __future__ import annotations

import atexit
import warnings
import weakref
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

__all__ = ["NO_RENDERER", "MujocoCamera"]

NO_RENDERER = (
    "pictures need OpenGL, which MuJoCo cannot find: on Debian or Ubuntu install libegl1 and libgl1-mesa-dri and set "
    "MUJOCO_GL=egl before Python starts, or libosmesa6 and MUJOCO_GL=osmesa"
)


class MujocoCamera:
    """Draws square pictures, by a renderer for each size, which is made when it is needed. Copies make their own.

    Args:
        camera: name or number of one of the model's cameras.
    """

    def __init__(self, camera: int | str) -> None:
        self._camera = camera
        self._renderers: dict[int, Any] = {}

    def ready(self, model: Any, size: int) -> Any:
        """Return MuJoCo's renderer for pictures of a size.

        Args:
            model: MuJoCo's `MjModel`; its multi-sampling is switched off.
            size: H = W, in pixels.

        Raises:
            gymnasium.error.DependencyNotInstalled: without OpenGL, saying what to install.
        """
        if size not in self._renderers:
            import mujoco

            model.vis.quality.offsamples = 0
            model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
            model.vis.global_.offheight = max(size, model.vis.global_.offheight)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the window system that is not there
                    renderer = mujoco.Renderer.__new__(mujoco.Renderer)
                    renderer._mjr_context = None  # without which a renderer that could not be made complains later
                    renderer.__init__(model, size, size)
            except Exception as error:  # what is raised is the platform's
                raise DependencyNotInstalled(NO_RENDERER) from error
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
            self._renderers[size] = renderer
            _open.add(self)
            atexit.unregister(_close_all)
            atexit.register(_close_all)  # later than OpenGL did, and so before it is gone
        return self._renderers[size]

    def picture(self, model: Any, data: Any, size: int) -> np.ndarray:
        """The world of MuJoCo's `MjModel` and `MjData`, `[H, W, 3]` uint8."""
        renderer = self.ready(model, size)
        renderer.update_scene(data, self._camera)
        return np.array(renderer.render())

    def close(self) -> None:
        """Free what is used for drawing."""
        for renderer in self._renderers.values():
            # MuJoCo frees by number, in the context that is current: another renderer's things, were it not this one.
            if context := getattr(renderer, "_gl_context", None):
                context.make_current()
            renderer.close()
        self._renderers.clear()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_camera": self._camera, "_renderers": {}}


_open: weakref.WeakSet[MujocoCamera] = weakref.WeakSet()


def _close_all() -> None:
    for camera in [*_open]:
        camera.close()
