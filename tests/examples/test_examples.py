"""Every script in examples/ runs at its smallest size and writes a result of the common form."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from pyrocontrol.envs import collect
from pyrocontrol.envs.experts import EXPERTS
from scripts import load_script

BULLET = importlib.util.find_spec("pybullet") is not None
MUJOCO = importlib.util.find_spec("mujoco") is not None
SUITE = all(importlib.util.find_spec(name) for name in ("dm_control", "shimmy"))
ROOT = Path(__file__).resolve().parents[2]

# For every example, the ways of running it that are tried.
EXAMPLES: dict[str, list[list[str]]] = {
    "bubble_sort.py": [
        ["--demos", "2", *arguments, "--updates", "2"]
        for arguments in (
            ["--tree", "generic"],
            ["--method", "hvil", "--demos", "5", "--starts", "2", "--trial", "1"],
            ["--method", "hvil", "--procedures", "paper", "--guide", "transformer", "--elbo", "trace"],
            ["--task", "BubbleSortMove", "--guide", "lstm", "--annotated", "1"],
            ["--method", "rnn"],
            ["--method", "rnn-full"],
        )
    ],
    "imitation_basics.py": [
        [*arguments, "--updates", "2", "--test-episodes", "2"]
        for arguments in (
            ["--algo", "bc", "--env", "CartPole-v1", "--episodes", "2"],
            ["--algo", "rnn", "--env", "pyrocontrol/TMaze-v0", "--episodes", "4"],
            ["--algo", "latent", "--env", "pyrocontrol/TMaze-v0", "--episodes", "4"],
            ["--algo", "dagger", "--env", "pyrocontrol/Lane-v0", "--episodes", "2", "--rounds", "2"],
            ["--algo", "dart", "--env", "CartPole-v1", "--episodes", "2", "--rounds", "2"],
            *([["--algo", "gcbc", "--env", "pyrocontrol/ReacherGoal-v0", "--episodes", "2"]] if MUJOCO else []),
        )
    ],
    "lsp_benchmark.py": [
        ["--task", "pyrocontrol/PointMove-v0", *arguments, "--evaluate-every", "30", "--episodes", "1"]
        for arguments in (
            ["--levels", "2", "--steps", "60", "--start", "20"],
            ["--guide", "gaussian", "--temperature", "fixed", "--steps", "30", "--start", "20"],
            ["--guide", "mixture", "--learner", "sac-first", "--steps", "30", "--start", "20"],
            ["--learner", "sql", "--steps", "30", "--start", "20"],
            ["--learner", "ddpg", "--steps", "120"],
            ["--learner", "ppo", "--steps", "60"],
        )
    ],
    "lsp_maze.py": [
        [*arguments, "--start", "5", "--evaluate-every", "30", "--episodes", "1"]
        for arguments in (
            # MuJoCo that has found no OpenGL for a film ends the process when it is asked a second time: in its own.
            *([["--task", "AntMaze", "--pretrain", "20", "--goal", "2", "--steps", "30"]] if MUJOCO else []),
            ["--levels", "3", "--pretrain", "20", "--steps", "60"],
            ["--learner", "sql", "--guide", "gaussian", "--pretrain", "20", "--steps", "30"],
            ["--levels", "1", "--pretrain", "20", "--motion", "1", "--goal", "1", "--steps", "30"],
            ["--levels", "1", "--pretrain", "0", "--guide", "spline", "--steps", "30"],
        )
    ],
    "segment_skills.py": [["--demos", "5", "--updates", "2"]],
    "skills_humanoid.py": [
        ["--composite", "toy", *arguments, "--updates", "2", "--evaluate-every", "1"]
        for arguments in (
            ["--mi", "tied", "--beta", "0.5", "--warmup", "10", "--free-bits", "0.1"],
            ["--mi", "off", "--guide", "transformer"],
            ["--mi", "variational", "--axis", "components", "--guide", "mean", "--latent", "2"],
            ["--mi", "infonce", "--weight", "0.01", "--batch-size", "2"],
        )
    ]
    + ([["--composite", "backflip", "--mi", "tied", "--updates", "1"]] if BULLET else []),
    "vmil.py": [
        ["--task", "reacher-easy", *arguments, "--size", "debug", "--evaluate-every", "30", "--episodes", "1"]
        + ["--steps", "60", "--start", "40", "--batch", "3", "--tests", "1"]
        for arguments in (
            ["--method", "observed"],
            ["--method", "vmil", "--judged", "features", "--judge", "density"],
            ["--method", "dac"],
            ["--method", "sqil"],
            ["--method", "bc"],
        )
        if SUITE
    ],
}


def moved_at_random(task: str, count: int, *, folder: Path, observations: str) -> Any:
    """Demonstrations of nobody, which are made faster than an expert's."""
    env = EXPERTS[task].make(observations)
    return collect(env, lambda _: env.action_space.sample(), count, seed=0, progress=False)


# How much data some of them have where they are run in the process of the tests.
SMALLER: dict[str, dict[str, Any]] = {
    "bubble_sort.py": {"TEST_TRACES": 5, "LONGER": (10,)},
    "skills_humanoid.py": {"TRAIN": 8, "HELD_OUT": 2, "COMPOSITE": 2},
    "vmil.py": {"demonstrations": moved_at_random},
}


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} - {"plots.py"} == set(EXAMPLES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("example", "arguments"),
    [(example, arguments) for example, ways in EXAMPLES.items() for arguments in ways],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_example(
    example: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_row: Callable[[dict[str, Any]], None],
) -> None:
    """The first way of each from the command line, in a process of its own; the others in this one."""
    given = [*arguments, "--out", str(tmp_path / "out")]
    if arguments is EXAMPLES[example][0]:
        strict = ["-W", "error", "-W", "ignore:no C compiler was found"]
        command = [sys.executable, *strict, str(ROOT / "examples" / example), *given]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        monkeypatch.chdir(tmp_path)
        script = load_script(f"examples/{example}")
        for name, size in SMALLER.get(example, {}).items():
            monkeypatch.setattr(script, name, size)
        script.main(tyro.cli(script.Arguments, args=given))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for row in result["rows"] if "rows" in result else [result]:
        check_row(row)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "written outside of --out"
