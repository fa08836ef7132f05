"""What the examples of latent space policies refuse, and that they go on from where they were."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformReward

from pyrocontrol.envs.point_maze import PointMove
from scripts import load_script

TINY = {"start": 5, "evaluate_every": 10, "episodes": 1}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return unfilmed("examples/lsp_benchmark.py", monkeypatch)


@pytest.fixture
def maze(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return unfilmed("examples/lsp_maze.py", monkeypatch)


def unfilmed(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example that makes no films, which take longer than all else."""
    script = load_script(path)
    monkeypatch.setattr(script, "film", lambda *given: True)
    return script


@pytest.fixture
def short_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO learns from 64 steps at a time instead of 2048."""
    import stable_baselines3

    class Short(stable_baselines3.PPO):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **{"n_steps": 64} | options)

    monkeypatch.setattr(stable_baselines3, "PPO", Short)


BENCHMARK_REFUSES: list[tuple[str, dict[str, Any]]] = [
    ("--steps must be at least 3, got 2", {"levels": 3, "steps": 2}),
    ("--seed must be from 0 to 2.*, and several be different, got \\(-1,", {"seed": (-1,)}),
    ("--seed must be .* different, got \\(1, 1", {"seed": (1, 1)}),
    ("--seed must be", {"seed": ()}),
    ("--learner ddpg learns one seed at a time", {"learner": "ddpg", "seed": (0, 1)}),
    ("--learner ppo .* neither compiled nor captured", {"learner": "ppo", "capture": True}),
    ("--guide spline cannot be compiled", {"guide": "spline", "compile": True}),
    ("--lr must be positive, got nan", {"lr": float("nan")}),
    ("--components must be at least 1, got 0", {"components": 0}),
    ("--learner ppo .* has no use for --levels", {"learner": "ppo", "levels": 2}),
    ("--learner ddpg .* has no use for --lr", {"learner": "ddpg", "lr": 5.0}),
    ("--learner sql .* has no use for --gradient", {"learner": "sql", "gradient": "score"}),
    ("--learner sac-first .* has no use for --temperature", {"learner": "sac-first", "temperature": "fixed"}),
    ("--guide gaussian has no use for --couplings", {"guide": "gaussian", "couplings": 4}),
    ("--start 1000 leaves no update: each level has 750 steps", {"steps": 1500, "levels": 2}),
    ("--guide mixture has no latents", {"guide": "mixture", "levels": 2}),
    ("--particles must be at least 1, got 0", {"particles": 0}),
    ("^a MixturePolicy cannot be reparam.*: gradient", {"guide": "mixture", "gradient": "pathwise"}),
    ("device nowhere cannot be used", {"device": "nowhere"}),
    ("--task CartPole-v1 has actions Discrete.*, not a bounded Box of one row", {"task": "CartPole-v1"}),
    ("--task Nothing-v0: ", {"task": "Nothing-v0"}),
    ("--task nothing:at-all-v0: ", {"task": "nothing:at-all-v0"}),
    (".*/file/sub: .*/file is a file, not a folder", {"out": "file/sub"}),
]


def test_the_benchmark_refuses(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for message, given in BENCHMARK_REFUSES:
        whole = {"task": "pyrocontrol/PointMove-v0", "out": "out"} | given
        with pytest.raises(SystemExit, match=message):
            benchmark.main(benchmark.Arguments(**whole | {"out": tmp_path / whole["out"]}))
            pytest.fail(f"taken: {given}")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:.*maximum and minimum values are equal")
@pytest.mark.parametrize(
    ("low", "high", "kind", "message"),
    [
        ([0, 0], [5, 5], np.int64, "the actions must be a Box of floats in one row"),
        ([-1, 0], [1, 0], np.float32, "the actions have no bounds to scale to"),
        ([-3.4e38] * 2, [3.4e38] * 2, np.float32, "the actions have no bounds to scale to"),
    ],
    ids=["integers", "coinciding", "wide"],
)
@pytest.mark.parametrize("learner", ["sac", "ppo"])
def test_the_benchmark_refuses_actions(
    benchmark: ModuleType, tmp_path: Path, learner: str, low: Any, high: Any, kind: Any, message: str
) -> None:
    class Body(PointMove):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(np.array(low, kind), np.array(high, kind), dtype=kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gymnasium.registry, "Body-v0", gymnasium.envs.registration.EnvSpec("Body-v0", Body))
        with pytest.raises(SystemExit, match=message):
            benchmark.main(benchmark.Arguments(task="Body-v0", learner=learner, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*The reward is")
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_baselines_return_is_finite(benchmark: ModuleType, tmp_path: Path, reward: float) -> None:
    def body() -> Any:
        return TransformReward(TimeLimit(PointMove(), 10), lambda _: reward)

    given: dict[str, Any] = {"learner": "ddpg", "steps": 20, "evaluate_every": 10, "episodes": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gymnasium.registry, "Body-v0", gymnasium.envs.registration.EnvSpec("Body-v0", body))
        with pytest.raises(SystemExit, match=f"the reward is {reward}"):
            benchmark.main(benchmark.Arguments(task="Body-v0", out=tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_packages_that_are_missing_are_named(
    benchmark: ModuleType, maze: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("zuko", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, name, None)
    task = "pyrocontrol/PointMove-v0"
    for call in (
        lambda: benchmark.main(benchmark.Arguments(task=task, learner="ppo", out=tmp_path / "out")),
        lambda: benchmark.main(benchmark.Arguments(task=task, guide="spline", out=tmp_path / "out")),
        lambda: maze.main(maze.Arguments(guide="spline", out=tmp_path / "out")),
    ):
        with pytest.raises(SystemExit, match="zuko|stable_baselines3"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({}, 1.0),
        ({"temperature": "fixed"}, 3.0),
        ({"learner": "sac-first"}, 3.0),
        ({"learner": "sql"}, 300.0),
        ({"learner": "sql", "task": "pyrocontrol/PointMove-v0"}, 1.0),
    ],
    ids=["learned", "fixed", "sac-first", "sql", "another-task"],
)
def test_rewards_are_scaled_where_the_temperature_is_fixed(
    benchmark: ModuleType, given: dict[str, Any], scale: float
) -> None:
    arguments = benchmark.Arguments(**{"task": "Ant-v5"} | given)
    assert benchmark.make_learner(arguments, 0, 105, 8).reward_scale == scale


MAZE_REFUSES: list[tuple[str, dict[str, Any]]] = [
    ("--pretrain 0 leaves nothing to act through", {"pretrain": 0}),
    ("--pretrained is where", {"pretrain": 0, "levels": 1, "pretrained": "floor"}),
    ("--reward-scale must be positive, got -1", {"reward_scale": -1.0}),
    ("--temperature learned is soft actor-critic's", {"learner": "sql", "temperature": "learned"}),
    ("--no-upright is for an ant", {"upright": False}),
    ("--lr must be positive, got inf", {"lr": float("inf")}),
    ("--floor-lr must be positive, got 0", {"floor_lr": 0.0}),
    ("--floor-lr is for the lowest of several levels", {"floor_lr": 1e-3, "levels": 1}),
    ("--value-range is for levels above the lowest", {"value_range": (0.0, 1.0), "levels": 1}),
    ("--value-range must be the least and the greatest return, got \\(1.0, 0.0\\)", {"value_range": (1.0, 0.0)}),
    ("--value-range must be .* got \\(0.0, inf\\)", {"value_range": (0.0, float("inf"))}),
    ("--seed must be .*, and several be different, got \\(2, 2\\)", {"seed": (2, 2)}),
    ("--start 1000 leaves no update: --pretrain gives a level 1000 steps", {"pretrain": 1000}),
    ("--start 1000 leaves no update: --steps gives a level 750 steps", {"steps": 1500, "levels": 3}),
    ("--guide spline cannot be compiled", {"guide": "spline", "compile": True}),
    ("device nowhere cannot be used", {"device": "nowhere"}),
    ("goal must be 0 to 2, got 3", {"goal": 3}),
    ("motion must be finite, got inf", {"motion": float("inf")}),
    (".*/file: .*/file is a file, not a folder", {"pretrained": "file"}),
]


def test_the_maze_refuses(maze: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for message, given in MAZE_REFUSES:
        whole = given | ({"pretrained": tmp_path / given["pretrained"]} if "pretrained" in given else {})
        with pytest.raises(SystemExit, match=message):
            maze.main(maze.Arguments(**whole, out=tmp_path / "out"))
            pytest.fail(f"taken: {given}")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_in_the_maze_is_taken_up_and_not_taken_for_another(maze: ModuleType, tmp_path: Path) -> None:
    given: dict[str, Any] = {"pretrain": 20, "pretrained": tmp_path / "floor", **TINY}
    maze.main(maze.Arguments(steps=30, out=tmp_path / "a", **given))
    before = json.loads((tmp_path / "a" / "result.json").read_text())["rows"]
    maze.main(maze.Arguments(steps=30, out=tmp_path / "a", **given))
    assert json.loads((tmp_path / "a" / "result.json").read_text())["rows"] == before  # the seconds, too
    assert {(row["metric"], row["setting"]["steps"]) for row in before} == {
        (metric, step) for metric in ("final_distance", "success") for step in (9, 18, 27, 30)
    }
    with pytest.raises(SystemExit, match="a holds another run, with goal 0, not 1: choose another folder"):
        maze.main(maze.Arguments(goal=1, steps=30, out=tmp_path / "a", **given))
    # The open floor is shared; a level that was trained on is not trained further.
    maze.main(maze.Arguments(goal=1, steps=30, out=tmp_path / "b", **given))
    with pytest.raises(SystemExit, match="floor holds another run, with pretrain 20, not 25"):
        maze.main(maze.Arguments(steps=30, out=tmp_path / "c", **given | {"pretrain": 25}))
    assert not (tmp_path / "c").exists()


def test_an_ant_that_learns_to_move_has_to_stand(
    maze: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    given: dict[str, Any] = {"task": "AntMaze", "pretrain": 20, "steps": 30, "pretrained": tmp_path / "floor"}
    given |= TINY | {"evaluate_every": 30}
    maze.main(maze.Arguments(out=tmp_path / "a", **given))
    rows = json.loads((tmp_path / "a" / "result.json").read_text())["rows"]
    assert {(row["setting"]["upright"], row["setting"]["floor_reward_scale"]) for row in rows} == {(True, 30.0)}
    assert {row["setting"]["floor_lr"] for row in rows} == {3e-4}
    with pytest.raises(SystemExit, match="was made with env=.*'upright': True.*'upright': False"):
        maze.main(maze.Arguments(upright=False, out=tmp_path / "b", **given))
    assert not (tmp_path / "b").exists()


def test_the_lowest_of_several_levels_may_have_a_learning_rate_of_its_own(maze: ModuleType) -> None:
    given = maze.Arguments(floor_lr=1e-3)
    assert [maze.make_learner(given, level, 4, 2).lr for level in (0, 1)] == [1e-3, 3e-4]
    assert maze.make_learner(maze.Arguments(lr=1e-2), 0, 4, 2).lr == 1e-2


def test_a_level_makes_as_many_updates_as_environment_steps(
    maze: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(maze.pc.inference, "train_stagewise", lambda *_args, **given: found.update(given) or 1 / 0)
    given: dict[str, Any] = {"levels": 3, "pretrain": 20, "steps": 400, "start": 18, "evaluate_every": 45}
    with pytest.raises(ZeroDivisionError):
        maze.main(maze.Arguments(out=tmp_path, **given))
    names = ("start", "updates_per_step", "evaluate_every", "checkpoint_every")
    assert [tuple(own[name] for name in names) for own in found["of_level"]] == [(6, 3, 15, 3333), (2, 9, 5, 1111)]


def test_levels_above_the_lowest_may_have_bounds_of_their_values(maze: ModuleType, tmp_path: Path) -> None:
    given: dict[str, Any] = {"levels": 3, "value_range": (0.0, 1000.0)}
    learners = [maze.make_learner(maze.Arguments(**given), level, 4, 2) for level in range(3)]
    assert [learner.value_range for learner in learners] == [None, (0.0, 1000.0), (0.0, 1000.0)]
    maze.main(maze.Arguments(steps=30, pretrain=20, out=tmp_path, **TINY, **given))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert all(row["setting"]["value_range"] == [0.0, 1000.0] for row in rows)


@pytest.mark.parametrize("levels", [1, 2])
def test_several_seeds_find_the_way_at_once(maze: ModuleType, tmp_path: Path, levels: int) -> None:
    given: dict[str, Any] = {"pretrain": 20, "levels": levels, "seed": (3, 1), **TINY}
    maze.main(maze.Arguments(steps=30, out=tmp_path, **given))
    for seed in (3, 1):
        rows = json.loads((tmp_path / f"seed-{seed}" / "result.json").read_text())["rows"]
        assert {(row["seed"], row["setting"]["together"]) for row in rows} == {(seed, 2)}
        assert {row["metric"] for row in rows} == {"final_distance", "success"}
        assert (tmp_path / "open-floor" / f"seed-{seed}" / "checkpoint.pt").exists()
    one, other = ((tmp_path / f"seed-{seed}" / "hierarchy.pt").read_bytes() for seed in (3, 1))
    assert one != other


def test_a_folder_is_one_runs(benchmark: ModuleType, maze: ModuleType, tmp_path: Path) -> None:
    given: dict[str, Any] = {"task": "pyrocontrol/PointMove-v0", "steps": 20, "out": tmp_path / "run", **TINY}
    benchmark.main(benchmark.Arguments(**given))
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for message, other in (
        ("holds another run, with learner sac, not ppo", {"learner": "ppo", "start": 1000}),
        ("holds another run, with levels 1, not 2", {"levels": 2}),
        ("holds another run, with episodes 1, not 2", {"episodes": 2}),
        (r"holds another run, with seed \[0\], not \[1\]", {"seed": (1,)}),
    ):
        with pytest.raises(SystemExit, match=message):
            benchmark.main(benchmark.Arguments(**given | other))
    with pytest.raises(SystemExit, match="holds another run, .*task pyrocontrol/PointMove-v0, not PointMaze"):
        maze.main(maze.Arguments(steps=30, pretrain=20, out=tmp_path / "run", **TINY))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
    benchmark.main(benchmark.Arguments(**given | {"steps": 30}))  # more steps are the same run


@pytest.mark.usefixtures("short_rollouts")
@pytest.mark.parametrize("learner", ["ddpg", "ppo", "sac"])
def test_the_last_step_is_evaluated(benchmark: ModuleType, tmp_path: Path, learner: str) -> None:
    given: dict[str, Any] = {"task": "pyrocontrol/PointMove-v0", "learner": learner, **TINY, "evaluate_every": 1000}
    if learner != "sac":
        del given["start"]
    benchmark.main(benchmark.Arguments(steps=120, out=tmp_path, **given))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    last = 128 if learner == "ppo" else 120  # whole rollouts
    assert [(row["metric"], row["setting"]["steps"]) for row in rows] == [("return", last), ("return_mode", last)]


@pytest.mark.usefixtures("short_rollouts")
@pytest.mark.parametrize(("learner", "steps", "every"), [("ddpg", 120, 40), ("ppo", 135, 60)])
def test_a_baseline_goes_on_from_its_last_evaluation(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learner: str, steps: int, every: int
) -> None:
    given: dict[str, Any] = {"task": "pyrocontrol/PointMove-v0", "learner": learner, "evaluate_every": every}
    given |= {"steps": steps, "episodes": 1, "out": tmp_path}
    found = benchmark.mode_return
    values: list[float] = []

    def stop_at_the_third(arguments: Any, model: Any) -> float:
        if len(values) == 2:
            raise KeyboardInterrupt
        values.append(found(arguments, model))
        return values[-1]

    monkeypatch.setattr(benchmark, "mode_return", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(benchmark.Arguments(**given))
    (kept,) = tmp_path.glob("checkpoint-*")
    assert kept.name == ("checkpoint-80" if learner == "ddpg" else "checkpoint-128")  # a whole rollout
    seen: list[int] = []
    monkeypatch.setattr(benchmark, "mode_return", lambda _, model: seen.append(model.num_timesteps) or 7.0)
    for _ in range(2):  # the second time there is nothing to do
        benchmark.main(benchmark.Arguments(**given))
        rows = json.loads((tmp_path / "result.json").read_text())["rows"]
        curve = [(row["setting"]["steps"], row["value"]) for row in rows if row["metric"] == "return"]
        last = 192 if learner == "ppo" else 120
        assert curve == [(every, values[0]), (2 * every, values[1]), (last, 7.0)]
    assert seen == [last] * 3  # and the returns without noise
    with pytest.raises(SystemExit, match=f"holds another run, with steps {steps}, not {steps + 1}"):
        benchmark.main(benchmark.Arguments(**given | {"steps": steps + 1}))


def test_several_seeds_are_learnt_at_once(benchmark: ModuleType, tmp_path: Path) -> None:
    given: dict[str, Any] = {"task": "pyrocontrol/PointMove-v0", "levels": 2, "seed": (4, 2), **TINY}
    benchmark.main(benchmark.Arguments(steps=40, out=tmp_path, **given))
    found = {}
    for seed in (4, 2):
        rows = json.loads((tmp_path / f"seed-{seed}" / "result.json").read_text())["rows"]
        assert {(row["seed"], row["setting"]["together"]) for row in rows} == {(seed, 2)}
        found[seed] = [row["value"] for row in rows if row["metric"] == "return"]
        assert (tmp_path / f"seed-{seed}" / "hierarchy.pt").exists()
    assert len(found[4]) == 4 and found[4] != found[2]


def test_what_cannot_be_filmed_is_no_reason_to_lose_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, made = load_script("examples/lsp_benchmark.py"), gymnasium.make

    def make(task: str, **given: Any) -> Any:
        if "render_mode" in given:
            raise TypeError("there is no render_mode")
        return made(task)

    monkeypatch.setattr(gymnasium, "make", make)
    benchmark.main(benchmark.Arguments(task="pyrocontrol/PointMove-v0", steps=20, out=tmp_path, **TINY))
    assert "no film: there is no render_mode" in capsys.readouterr().out
    assert (tmp_path / "result.json").exists()
