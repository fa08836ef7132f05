"""The core works where there is nothing but its own dependencies: no extra, no JAX, no compiler."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the extras bring, by the names that are imported.
EXTRAS = "jax jaxlib numpyro optax lightning_fabric submitit mujoco dm_control shimmy gymnasium_robotics metaworld"
EXTRAS += " pybullet imageio_ffmpeg minari h5py pyarrow av zuko stable_baselines3 imitation pytest"

PROGRAM = f"""
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
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


def test_everything_of_the_core_runs_without_extras_and_without_a_compiler(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYROCONTROL_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == (
        "pyrocontrol.inference.twins needs numpyro: pip install 'pyrocontrol-ppl[numpyro]'"
    )


def test_the_list_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = EXTRAS.replace("_", "-").split()
    for name in ("mujoco", "dm-control", "robotics", "metaworld", "bullet", "data", "flows", "numpyro", "scale"):
        for requirement in extras[name]:
            package = requirement.partition(">")[0].partition("[")[0]
            assert package in (*known, "gymnasium"), package
