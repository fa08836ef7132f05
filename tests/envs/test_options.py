"""No environment passes over an option of its reset that it does not know."""

import gymnasium
import pytest
from gymnasium.error import DependencyNotInstalled

import pyrocontrol  # noqa: F401  (registers the environments)

NAMES = sorted(name for name, spec in gymnasium.registry.items() if spec.namespace == "pyrocontrol")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused(name: str) -> None:
    try:
        env = gymnasium.make(name, disable_env_checker=True)
    except (ModuleNotFoundError, DependencyNotInstalled) as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="unknown options nubmers; known are (none|[a-z]+(, [a-z]+)*)$"):
        env.reset(options={"nubmers": [[1], [2]]})
    env.close()
