"""The ant in the cross maze, and on an open floor where all that counts is speed.

Both are built from the ant of Gymnasium's `Ant-v5`: its body, actuators, physics and starts. The maze adds the twelve
walls of `point_maze`, the open floor nothing.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium
import numpy as np
from gymnasium import spaces

from .._verify import verify_options
from .point_maze import GOAL_RADIUS, GOAL_REWARD, WALLS, goal_of, motion_reward

__all__ = ["AntMaze", "AntMove", "maze_xml"]

_HEIGHT = 1.0  # of the walls (m)
_HEALTHY = (0.2, 1.0)  # heights of the torso between which the ant is said to stand (m)
_ABOVE, _FOLLOW, _BESIDE = "above", "follow", "track"  # cameras, the last is Gymnasium's

Result = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def maze_xml(text: str, goal: int) -> str:
    """Return the MuJoCo model of the ant with the walls, a mark at a goal, and cameras that see into the maze.

    Args:
        text: Gymnasium's `ant.xml`.
        goal: which of the three.

    Raises:
        ValueError: if there is no such goal, or the text describes no ant.
    """
    x, y = goal_of(goal)
    root = ElementTree.fromstring(text)
    world, asset, torso = root.find("worldbody"), root.find("asset"), root.find("worldbody/body[@name='torso']")
    if world is None or asset is None or torso is None:
        raise ValueError("the model has no worldbody, no asset or no torso in it")
    for number, (wall_x, wall_y, half_x, half_y) in enumerate(WALLS):
        # contype and conaffinity 1, as the floor: the ant's own geoms collide with whatever asks for it.
        box = {"name": f"wall_{number}", "type": "box", "contype": "1", "conaffinity": "1", "condim": "3"}
        place = {
            "pos": f"{wall_x} {wall_y} {_HEIGHT / 2}",
            "size": f"{half_x} {half_y} {_HEIGHT / 2}",
            "material": "wall",
            "rgba": "0.24 0.27 0.3 1",
        }
        ElementTree.SubElement(world, "geom", box | place)
    mark = {"name": "goal", "type": "cylinder", "pos": f"{x} {y} 0.01", "size": f"{GOAL_RADIUS} 0.01"}
    ElementTree.SubElement(world, "site", mark | {"rgba": "0.4 0.75 0.35 0.6"})
    above = {"name": _ABOVE, "pos": "6 0 23.5", "xyaxes": "1 0 0 0 1 0", "fovy": "45"}
    ElementTree.SubElement(world, "camera", above)
    # Over the walls, which hide the ant from the camera that Gymnasium's ant has beside it.
    follow = {"name": _FOLLOW, "mode": "trackcom", "pos": "0 -4 6", "xyaxes": "1 0 0 0 0.83 0.55", "fovy": "50"}
    ElementTree.SubElement(torso, "camera", follow)
    # From above, a floor of black and white squares hides the ant.
    for found in asset:
        if found.get("name") == "texplane":
            found.attrib |= {"rgb1": "0.46 0.48 0.46", "rgb2": "0.54 0.56 0.54"}
        elif found.get("name") == "MatPlane":
            found.attrib |= {"reflectance": "0", "specular": "0"}
    ElementTree.SubElement(asset, "material", {"name": "wall", "specular": "0"})
    return ElementTree.tostring(root, encoding="unicode")


class AntMove(gymnasium.Env[np.ndarray, np.ndarray]):
    """Be fast on an open floor, in any direction: what a low level is trained on.

    Observation: ``[29]`` float64: position of the torso (x, y; m), the other 13 positions (its height and quaternion,
    the angles of the joints), 14 velocities; without ``positions`` the first two are left out, with ``contacts`` the 78
    contact forces follow, each clipped to -1 to 1. Action: the torques, ``[8]`` float32, clipped to -1 to 1. Reward:
    `motion_reward` of the torso's velocity in the plane over the step (0.05 s), the action and the clipped contact
    forces,

        ``|v| + 0.05 - 0.005 |a|^2 - 0.0005 |c|^2``.

    The episode ends when the torso leaves the heights 0.2 to 1 m, or anything is no longer finite. That lets the ant
    lie on its back and be moved by waving its legs; with ``upright`` the episode ends there too.
    `pyrocontrol/AntMove-v0` is truncated after 1000 steps.

    `info` holds `position` (``[2]`` float64) and, after a step, `motion_reward`.

    Args:
        positions: whether x and y are observed.
        contacts: whether the contact forces are observed.
        upright: whether the episode also ends when the upper side of the torso points downwards.
        render_mode: `"rgb_array"` for a picture, or None. MuJoCo draws it with OpenGL; without a display,
            ``MUJOCO_GL=egl`` in the environment says how.
        camera: `"track"` goes with the ant.
        width: of the picture, in pixels.
        height: of the picture.

    Raises:
        ValueError: if the render mode or the camera make no sense.
        gymnasium.error.DependencyNotInstalled: without MuJoCo.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    _cameras: tuple[str, ...] = (_BESIDE,)

    def __init__(
        self,
        positions: bool = True,
        contacts: bool = False,
        upright: bool = False,
        render_mode: str | None = None,
        camera: str = _BESIDE,
        width: int = 480,
        height: int = 480,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if camera not in self._cameras:
            raise ValueError(f"camera must be one of {', '.join(map(repr, self._cameras))}, got {camera!r}")
        self.positions, self.contacts, self.upright, self.render_mode = positions, contacts, upright, render_mode
        given: dict[str, Any] = dict(render_mode=render_mode, camera_name=camera, width=width, height=height)
        # MuJoCo's own environment takes a path; the file is read once.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ant.xml"
            path.write_text(self._xml(_ant_xml()))
            made = gymnasium.make("Ant-v5", xml_file=str(path), terminate_when_unhealthy=False, **given)
        self.simulator: Any = made.unwrapped
        size = 29 - 2 * (not positions) + 78 * contacts
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (8,), np.float32)
        self._running = False

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self.simulator.model

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return self.simulator.data

    def _xml(self, ant: str) -> str:
        """The model, given that of the ant on its floor."""
        return ant

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin near the origin, about at rest, as in `Ant-v5`."""
        verify_options(options)
        super().reset(seed=seed)
        self.simulator.np_random = self.np_random
        self.simulator.reset()
        self._running = True
        return self._observe(), self._info()

    def step(self, action: Any) -> Result:
        """Apply the torques for one step; see the class for the reward."""
        if not self._running:
            raise RuntimeError("call reset before step: no episode has begun, or it is over")
        if np.shape(action) != (8,):
            raise ValueError(f"an action must have shape [8], got shape {[*np.shape(action)]}")
        torques = np.clip(np.asarray(action, np.float64), -1, 1)
        if not np.isfinite(torques).all():
            raise ValueError(f"an action must be finite, got {action!r}")
        ant = self.simulator
        before = ant.get_body_com("torso")[:2].copy()
        ant.do_simulation(torques, ant.frame_skip)
        after = ant.get_body_com("torso")[:2]
        speed = math.hypot(after[0] - before[0], after[1] - before[1]) / ant.dt
        forces = ant.contact_forces.ravel()
        motion = motion_reward(speed, float(torques @ torques), float(forces @ forces))
        reward, done = self._judge(motion)
        fallen = not (_HEALTHY[0] <= ant.data.qpos[2] <= _HEALTHY[1] and math.isfinite(motion))
        if self.upright:
            _, along_x, along_y, _ = ant.data.qpos[3:7]
            fallen |= bool(along_x**2 + along_y**2 > 0.5)  # the torso's own z axis has the height 1 - 2 (x^2 + y^2)
        self._running = not (done or fallen)
        return self._observe(), reward, done or fallen, False, self._info() | {"motion_reward": motion}

    def _judge(self, motion: float) -> tuple[float, bool]:
        """The reward of the step that was just made, given that for motion, and whether it has reached its end."""
        return motion, False

    def _observe(self) -> np.ndarray:
        data = self.simulator.data
        parts = [data.qpos if self.positions else data.qpos[2:], data.qvel]
        if self.contacts:
            parts.append(self.simulator.contact_forces[1:].ravel())
        return np.concatenate(parts)

    def _info(self) -> dict[str, Any]:
        return {"position": self.simulator.data.qpos[:2].copy()}

    def render(self) -> Any:
        """The world from the camera, `[height, width, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if self.simulator.data.time == 0 and not self._running:
            raise RuntimeError("call reset before render")
        return self.simulator.render()

    def close(self) -> None:
        """Free what was used for rendering."""
        self.simulator.close()


class AntMaze(AntMove):
    """Find one of three goals in the cross maze, on four legs.

    The ant is that of `AntMove`, and observed as there, with its position; nothing tells which goal it is. Reward: 1000
    for a step after which the torso is less than 2 m from the goal in the plane, which ends the episode, else 0; and
    ``motion`` times `motion_reward`. The episode also ends when the torso leaves the heights 0.2 to 1 m.
    `pyrocontrol/AntMaze-v0` is truncated after 1000 steps.

    `info` holds `position` (``[2]`` float64), `distance` to the goal (m), `is_success` and, after a step,
    `motion_reward`.

    Args:
        goal: which of `GOALS`: 0, 1 or 2.
        motion: how much of the reward for motion is added, 0 for none.
        contacts: whether the contact forces are observed.
        render_mode: as in `AntMove`.
        camera: `"above"` sees the whole maze, `"follow"` goes with the ant.
        width: of the picture, in pixels.
        height: of the picture.

    Raises:
        ValueError: if there is no such goal, ``motion`` is not finite, or the render mode or camera make no sense.
        gymnasium.error.DependencyNotInstalled: without MuJoCo.
    """

    _cameras = (_ABOVE, _FOLLOW)

    def __init__(
        self,
        goal: int = 0,
        motion: float = 0.0,
        contacts: bool = False,
        render_mode: str | None = None,
        camera: str = _ABOVE,
        width: int = 480,
        height: int = 480,
    ) -> None:
        self.goal, self.motion, self._aim = goal, motion, goal_of(goal)
        if not math.isfinite(motion):
            raise ValueError(f"motion must be finite, got {motion}")
        super().__init__(contacts=contacts, render_mode=render_mode, camera=camera, width=width, height=height)

    def _xml(self, ant: str) -> str:
        return maze_xml(ant, self.goal)

    def _judge(self, motion: float) -> tuple[float, bool]:
        reached = self._distance() < GOAL_RADIUS
        return GOAL_REWARD * reached + self.motion * motion, reached

    def _distance(self) -> float:
        x, y = self.simulator.data.qpos[:2]
        return math.hypot(x - self._aim[0], y - self._aim[1])

    def _info(self) -> dict[str, Any]:
        distance = self._distance()
        return super()._info() | {"distance": distance, "is_success": distance < GOAL_RADIUS}


def _ant_xml() -> str:
    """The ant that Gymnasium brings."""
    return (Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml").read_text()
