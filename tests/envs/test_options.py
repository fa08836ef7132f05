"""No environment passes over an option of its reset that it does not know."""

import gymnasium
import pytest

import pyrocontrol  # noqa: F401  (registers the environments)

NEEDS = {"AntMaze": "mujoco", "AntMove": "mujoco", "ReacherGoal": "mujoco", "DeepMimic": "pybullet"}
NEEDS |= dict.fromkeys(("CheetahRun", "WalkerWalk", "CartpoleSwingup", "ReacherEasy"), "dm_control")
NEEDS |= {"Baoding": "gymnasium_robotics", "SawyerPeg": "metaworld"}
NAMES = sorted(name for name, spec in gymnasium.registry.items() if spec.namespace == "pyrocontrol")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused(name: str) -> None:
    for domain, module in NEEDS.items():
        if domain in name:
            pytest.importorskip(module)
    env = gymnasium.make(name, disable_env_checker=True)
    with pytest.raises(ValueError, match="unknown options nubmers; known are (none|[a-z]+(, [a-z]+)*)$"):
        env.reset(options={"nubmers": [[1], [2]]})
    env.close()
