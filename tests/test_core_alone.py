"""The core works in an environment that has its own dependencies alone: no extra, no JAX, no compiler."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import sys

sys.path.append(sys.argv[1])
import numpy as np
import torch
import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import demonstrations

demos = demonstrations(6, 0, max_length=3)
program = pc.models.ControlProgram(pc.envs.BUBBLE_SORT_TREE, 22)
loss = pc.inference.StepwiseKL_ELBO()(program, pc.guides.CallStackGuide(program))
optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
result = pc.inference.fit((loss, optimizer), demos, steps=3, batch_size=2, out="run", progress=False)
assert result.step == 3 and all(np.isfinite(value) for _, value in result.losses)
program.save("program.pt")
assert pc.load("program.pt").tree == program.tree

env = pc.envs.PointMaze()
sizes = env.observation_space.shape[0], env.action_space.shape[0]
learner = pc.inference.SoftActorCritic(pc.guides.GaussianPolicy(*sizes), *sizes)
found = pc.inference.learn(learner, env, steps=20, start=10, batch_size=8, progress=False)
assert not found.interrupted
try:
    from pyrocontrol.inference import twins
except ModuleNotFoundError as error:
    print(error)
"""


def environment(folder: Path) -> set[str]:
    """Link into a folder this package, and what its dependencies and theirs have installed; return their names."""
    (folder / "pyrocontrol").symlink_to(ROOT)
    found: set[str] = set()
    left = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    while left:
        wanted = Requirement(left.pop())
        if wanted.name in found or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(wanted.name)
        installed = distribution(wanted.name)
        left += installed.requires or ()
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed.locate_file(top))
    return found


def test_everything_of_the_core_runs_without_extras_and_without_a_compiler(tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    out.mkdir()
    found = environment(site)
    assert "torch" in found and not found & {"jax", "numpyro", "mujoco", "pytest"}
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", "-c", PROGRAM, str(site)],  # without this one's packages
        cwd=out,
        env=os.environ | {"PYROCONTROL_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == (
        "pyrocontrol.inference.twins needs numpyro: pip install 'pyrocontrol-ppl[numpyro]'"
    )
