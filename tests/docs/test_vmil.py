"""The page "VMIL" does what it says, in fewer steps and without a planner's demonstration."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import pyrocontrol as pc
from pyrocontrol.envs import experts

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "vmil.md").read_text()


def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("shimmy")
    monkeypatch.chdir(tmp_path)

    def shown(task: str, count: int, folder: str) -> pc.envs.Demonstrations:
        assert (task, folder) == ("walker-walk", "out/demonstrations/walker-walk")
        env = gymnasium.make("pyrocontrol/WalkerWalk-v0", max_episode_steps=60)
        env.action_space.seed(0)
        return pc.envs.collect(env, lambda _: env.action_space.sample(), count, seed=0, progress=False)

    monkeypatch.setattr(experts, "demonstrations", shown)
    first, other = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert "steps=30_000, " in first
    names: dict[str, Any] = {}
    exec(compile(first.replace("steps=30_000, ", "steps=42, start=40, progress=False, "), "vmil.md", "exec"), names)
    assert names["env"].action_space.contains(names["action"])
    assert names["learner"].updates == 2
    assert {path.name for path in tmp_path.glob("*")} == {"out", "walker.pt"}
    exec(compile(other, "vmil.md", "exec"), names)
    assert isinstance(names["learner"].evidence, pc.inference.CoupledRandomNetworks)
    replay = names["learner"].make_replay(100)
    assert names["smoothing"].process.dynamics is names["policy"].world.dynamics and replay is not None
