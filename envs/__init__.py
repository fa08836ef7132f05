"""Gymnasium environments, their teachers, and demonstrations.

Importing this package registers the environments.
"""

import gymnasium as _gymnasium

from ..guides.policies.hierarchy import Hierarchy, HierarchyState
from .acting.collect import CollectionError, CollectionInterrupted, collect
from .acting.evaluate import evaluate_policy
from .acting.video import save_video
from .addition import ADDITION_ACTIONS, ADDITION_TREE, AdditionEnv
from .ant_maze import AntMaze, AntMove
from .baoding import Baoding
from .bubble_sort import (
    ACTIONS,
    BUBBLE_SORT_MOVE_TREE,
    BUBBLE_SORT_TREE,
    MOVE_ACTIONS,
    BubbleSortEnv,
    BubbleSortMoveEnv,
)
from .cart_pole import CartPoleTeacher
from .data.demonstrations import Demonstrations, Episode, StoredDemonstrations, StoredTransitions
from .data.readers.arrays import from_arrays
from .data.readers.d4rl import from_d4rl
from .data.readers.imitation import from_imitation, to_imitation
from .data.readers.lerobot import from_lerobot
from .data.readers.minari import from_minari, to_minari
from .data.readers.npz import from_npz
from .data.readers.robomimic import from_robomimic
from .data.transitions import Transitions
from .dm_control import TASKS as _TASKS
from .dm_control import DMControl
from .humanoid.deep_mimic import DeepMimicEnv
from .humanoid.motion import HumanoidMotion
from .lane import LaneEnv, LaneTeacher
from .latent_action import LatentActionEnv
from .machine import Machine, MachineEnv
from .nano_craft import NANO_CRAFT_ACTIONS, NANO_CRAFT_TREE, NanoCraftEnv
from .planning.mppi import MPPITeacher
from .point_maze import PointMaze, PointMove
from .point_skills import PointSkillsEnv, PointTeacher
from .reacher_goal import GoalReacher
from .sawyer import SawyerPeg, sawyer_peg_expert
from .t_maze import T_MAZE_ACTIONS, TMazeEnv, TMazeTeacher
from .teaching import CallRecorder, taught

__all__ = [
    "ACTIONS",
    "ADDITION_ACTIONS",
    "ADDITION_TREE",
    "BUBBLE_SORT_MOVE_TREE",
    "BUBBLE_SORT_TREE",
    "MOVE_ACTIONS",
    "NANO_CRAFT_ACTIONS",
    "NANO_CRAFT_TREE",
    "T_MAZE_ACTIONS",
    "AdditionEnv",
    "AntMaze",
    "AntMove",
    "Baoding",
    "BubbleSortEnv",
    "BubbleSortMoveEnv",
    "CallRecorder",
    "CartPoleTeacher",
    "CollectionError",
    "CollectionInterrupted",
    "DMControl",
    "DeepMimicEnv",
    "Demonstrations",
    "Episode",
    "GoalReacher",
    "Hierarchy",
    "HierarchyState",
    "HumanoidMotion",
    "LaneEnv",
    "LaneTeacher",
    "LatentActionEnv",
    "MPPITeacher",
    "Machine",
    "MachineEnv",
    "NanoCraftEnv",
    "PointMaze",
    "PointMove",
    "PointSkillsEnv",
    "PointTeacher",
    "SawyerPeg",
    "StoredDemonstrations",
    "StoredTransitions",
    "TMazeEnv",
    "TMazeTeacher",
    "Transitions",
    "collect",
    "evaluate_policy",
    "from_arrays",
    "from_d4rl",
    "from_imitation",
    "from_lerobot",
    "from_minari",
    "from_npz",
    "from_robomimic",
    "save_video",
    "sawyer_peg_expert",
    "taught",
    "to_imitation",
    "to_minari",
]

_gymnasium.register("pyrocontrol/Addition-v0", entry_point="pyrocontrol.envs.addition:AdditionEnv")
_gymnasium.register("pyrocontrol/NanoCraft-v0", entry_point="pyrocontrol.envs.nano_craft:NanoCraftEnv")
_gymnasium.register("pyrocontrol/BubbleSort-v0", entry_point="pyrocontrol.envs.bubble_sort:BubbleSortEnv")
_gymnasium.register("pyrocontrol/BubbleSortMove-v0", entry_point="pyrocontrol.envs.bubble_sort:BubbleSortMoveEnv")
_gymnasium.register(
    "pyrocontrol/ReacherGoal-v0", entry_point="pyrocontrol.envs.reacher_goal:GoalReacher", max_episode_steps=50
)
_gymnasium.register("pyrocontrol/TMaze-v0", entry_point="pyrocontrol.envs.t_maze:TMazeEnv")
# pybullet is imported when a DeepMimicEnv is made.
_gymnasium.register("pyrocontrol/DeepMimic-v0", entry_point="pyrocontrol.envs.humanoid.deep_mimic:DeepMimicEnv")
_gymnasium.register("pyrocontrol/HumanoidJoints-v0", entry_point="pyrocontrol.envs.humanoid.joints:JointsEnv")
_gymnasium.register("pyrocontrol/Lane-v0", entry_point="pyrocontrol.envs.lane:LaneEnv")
_gymnasium.register("pyrocontrol/PointSkills-v0", entry_point="pyrocontrol.envs.point_skills:PointSkillsEnv")
_gymnasium.register(
    "pyrocontrol/PointMaze-v0", entry_point="pyrocontrol.envs.point_maze:PointMaze", max_episode_steps=300
)
_gymnasium.register(
    "pyrocontrol/PointMove-v0", entry_point="pyrocontrol.envs.point_maze:PointMove", max_episode_steps=300
)
# mujoco is imported when one of these is made.
_gymnasium.register("pyrocontrol/AntMaze-v0", entry_point="pyrocontrol.envs.ant_maze:AntMaze", max_episode_steps=1000)
_gymnasium.register("pyrocontrol/AntMove-v0", entry_point="pyrocontrol.envs.ant_maze:AntMove", max_episode_steps=1000)
# What these need, the hand of gymnasium-robotics and Meta-World, is looked for when one is made.
_gymnasium.register("pyrocontrol/Baoding-v0", entry_point="pyrocontrol.envs.baoding:Baoding")
_gymnasium.register("pyrocontrol/SawyerPeg-v0", entry_point="pyrocontrol.envs.sawyer:SawyerPeg")
# dm_control is imported when one of these is made.
for _task in _TASKS:
    _gymnasium.register(
        f"pyrocontrol/{_task.title().replace('-', '')}-v0",
        entry_point="pyrocontrol.envs.dm_control:DMControl",
        kwargs={"task": _task},
    )
