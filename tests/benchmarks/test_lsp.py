"""What the benchmark of latent space policies makes of its runs, and that the page shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro

from pyrocontrol.inference import SeedBatch, row


def item(method: str, seed: int, step: int, value: float, budget: int = 100) -> dict[str, Any]:
    setting = {"steps": step, "budget": budget}
    return {
        "method": method,
        "task": "Ant-v5",
        "setting": setting,
        "seed": seed,
        "metric": "return",
        "value": value,
        "seconds": 1.0,
    }


def test_runs_are_collected_by_their_folders(benchmark: ModuleType, tmp_path: Path) -> None:
    for folder, seed, steps in (
        ("lsp-2-200-1", 1, 200),
        ("lsp-100-10", 10, 100),
        ("lsp-100-2+3/seed-2", 2, 100),
        ("lsp-100-2+3/seed-3", 3, 100),
        ("somebody's-100-0", 0, 100),
    ):
        out = tmp_path / "Ant-v5" / folder
        out.mkdir(parents=True)
        content = {"revision": "abc", "rows": [item("sac", seed, steps, 5.0, budget=steps)]}
        (out / "result.json").write_text(json.dumps(content))
    rows = benchmark.collected(tmp_path)
    assert [benchmark.run_of(row) for row in rows] == [
        ("Ant-v5", "lsp", 100, 2),
        ("Ant-v5", "lsp", 100, 3),
        ("Ant-v5", "lsp", 100, 10),
        ("Ant-v5", "lsp-2", 200, 1),
    ]
    assert {row["setting"]["revision"] for row in rows} == {"abc"}


def test_what_is_missing_is_made_soft_learners_in_one_batch(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(benchmark, "make", lambda *given: made.append(given))
    monkeypatch.setattr(benchmark, "read_rows", lambda path: [item("lsp", 1, 100, 5.0)])
    monkeypatch.setattr(benchmark, "write_results", lambda *args, **given: None)
    monkeypatch.setattr(benchmark, "plot", lambda *args: None)
    given: dict[str, Any] = {"tasks": ("Ant-v5",), "steps": 100, "runs": tmp_path, "jobs": 1}
    given |= {"speed": False, "still": False}
    benchmark.main(benchmark.Arguments(methods=("lsp", "ppo"), **given))
    names = [name for _, _, name, _ in made]
    assert names == ["Ant-v5/lsp-100-0+2", "Ant-v5/ppo-100-0", "Ant-v5/ppo-100-1", "Ant-v5/ppo-100-2"]
    script, arguments, _, log = made[0]
    assert script.exists() and log == tmp_path / "Ant-v5" / "lsp-100-0+2" / "log.txt"
    assert arguments[arguments.index("--seed") :] == ["--seed", "0", "2", "--compile"]
    assert arguments[arguments.index("--task") :][:4] == ["--task", "Ant-v5", "--steps", "100"]
    assert made[1][1][-2:] == ["--seed", "0"]


@pytest.mark.parametrize("example", ["lsp_benchmark"], indirect=True)
def test_the_example_takes_every_run(
    benchmark: ModuleType, example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(benchmark, "make", lambda script, given, name, log: made.append(given))
    for method in benchmark.METHODS:
        benchmark.run(tmp_path, "cpu", "Hopper-v5", method, benchmark.Arguments.steps, (0,))
    assert len(made) == len(benchmark.METHODS)
    for given in made:
        example.checked(tyro.cli(example.Arguments, args=given))


def test_what_begins_with_one_level_takes_it_on(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "make", lambda *given: None)
    task = tmp_path / "Ant-v5"
    for seed, finished in (("0", True), ("1", True), ("2", False)):
        level = task / f"lsp-100-{seed}" / ("level-0" if seed == "0" else f"seed-{seed}/level-0")
        level.mkdir(parents=True)
        (level / "checkpoint.pt").write_text(seed)
        if finished:
            (level.parent / "result.json").touch()
    half = task / "lsp-100-3" / "seed-3" / "level-0"  # of two seeds one is finished
    for level in (half, half.parents[1] / "seed-4" / "level-0"):
        level.mkdir(parents=True)
        (level / "checkpoint.pt").touch()
    (half.parent / "result.json").touch()
    for method in ("lsp-2", "lsp", "lsp-4-end-to-end"):
        for seed in range(4):
            benchmark.run(tmp_path, "cpu", "Ant-v5", method, 200, (seed,))
    taken = {f"{method}-200-{name}" for method in ("lsp", "lsp-2") for name in ("0/level-0", "1/seed-1/level-0")}
    assert {str(path.parent.relative_to(task)) for path in task.glob("*-200-*/**/checkpoint.pt")} == taken
    assert not [*task.glob("*.part")] and not [*task.glob("*-200-*/**/result.json")]
    # What has begun is left as it is.
    (task / "lsp-2-200-0" / "level-0" / "checkpoint.pt").write_text("further")
    benchmark.run(tmp_path, "cpu", "Ant-v5", "lsp-2", 200, (0,))
    assert (task / "lsp-2-200-0" / "level-0" / "checkpoint.pt").read_text() == "further"


def test_what_is_quoted_is_the_last_tenth(benchmark: ModuleType) -> None:
    rows = [item("lsp", 0, step, value) for step, value in ((50, 9.0), (90, 7.0), (95, 1.0), (100, 2.0))]
    rows += [item("lsp", 1, 100, 4.0), item("lsp", 0, 100, 99.0, budget=200), item("ppo", 0, 100, 0.0)]
    assert benchmark.ends(rows, "Ant-v5", "lsp", 100) == {0: 1.5, 1: 4.0}
    assert benchmark.curves(rows, "Ant-v5", "lsp", 200) == {0: {100: 99.0}}


def test_the_table_has_an_interval_from_three_seeds_on(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = [item("lsp", seed, 100, 1000.0 * seed) for seed in range(3)]
    rows += [item("ppo", seed, 100, 5.0) for seed in range(2)]
    rows += [item("lsp-2", 0, 200, 7.0, budget=200)]
    rows += [item("lsp", 0, 100, 1234.5) | {"metric": "return_mode"}]
    assert benchmark.table(rows).splitlines()[2:] == [
        "| Ant-v5 | 100 | lsp (3) | 1,000 ± 2,484 | 1,234 |",
        "| Ant-v5 | 100 | ppo (2) | 5 |  |",
        "| Ant-v5 | 200 | lsp-2 (1) | 7 |  |",
    ]
    rows += [row("still", "Ant-v5", "return", 3.0, seed=seed, seconds=1.0) for seed in range(3)]
    assert benchmark.table(rows).splitlines()[2] == "| Ant-v5 | 0 | still (3 episodes) | 3 ± 0 |  |"
    assert len(benchmark.table(rows).splitlines()) == 6
    assert "| 3 ± 0 |" in benchmark.summary(rows)
    benchmark.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_the_summary_compares_at_the_usual_number_of_steps(benchmark: ModuleType) -> None:
    steps = benchmark.Arguments.steps
    rows = [item("lsp", seed, steps, 1000.0 * seed, budget=steps) for seed in range(3)]
    rows += [item("ppo", 0, steps, 5.0, budget=steps), item("ppo", 1, 100, 7.0), item("lsp-2", 0, steps, 1.0, steps)]
    lines = benchmark.summary(rows).splitlines()
    assert lines[0] == "| | lsp | sac-gmm | sql | ddpg | ppo | still |"
    assert "| Ant-v5 | 1,000 ± 2,484 (3) |  |  |  | 5 (1) |  |" in lines


def test_the_page_holds_the_tables_of_the_results(benchmark: ModuleType) -> None:
    page = benchmark.PAGE.read_text()
    assert benchmark.with_tables(page, json.loads(benchmark.RESULTS.read_text())["rows"]) == page


def test_speed_is_a_ratio_to_that_of_stable_baselines(
    benchmark: ModuleType, check_row: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    rows = benchmark.speed(1, updates=1, compiled=False)
    found = {(row["method"], row["metric"]): row["value"] for row in rows}
    base = found["sac-sb3", "updates_per_second"]
    assert ("sac-sb3", "speed_ratio") not in found
    for method in ("lsp", "sac-gaussian"):
        assert found[method, "speed_ratio"] == pytest.approx(found[method, "updates_per_second"] / base)
    for line in rows:
        check_row(line)
    monkeypatch.setattr(benchmark.pc.inference, "SeedBatch", lambda learners, **_: SeedBatch(learners))
    many = {row["method"] for row in benchmark.speed(1, updates=1)}
    assert many == {"sac-sb3", "lsp", "sac-gaussian", "lsp-compiled", "lsp-3-seeds", "lsp-8-seeds"}


def test_actions_are_made_again_of_their_latents(
    benchmark: ModuleType, check_row: Callable[[dict[str, Any]], None]
) -> None:
    (row,) = benchmark.inversion(1, steps=50)
    check_row(row)
    assert 0 < row["value"] <= 1e-5


def test_standing_still_is_measured_anew_or_kept(
    benchmark: ModuleType, check_row: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = benchmark.standing_still(("Pendulum-v1",), episodes=2)
    assert [(row["method"], row["seed"], row["value"] < 0) for row in rows] == [("still", 0, True), ("still", 1, True)]
    for found in rows:
        check_row(found)
    written: list[Any] = []
    old = [item("lsp", 0, 100, 5.0), row("still", "Ant-v5", "return", 1.0, seed=0, seconds=1.0)]
    monkeypatch.setattr(benchmark, "read_rows", lambda path: old)
    monkeypatch.setattr(benchmark, "write_results", lambda path, name, rows, **given: written.append(rows))
    monkeypatch.setattr(benchmark, "plot", lambda *given: None)
    new = row("still", "Ant-v5", "return", 2.0, seed=0, seconds=1.0)
    monkeypatch.setattr(benchmark, "standing_still", lambda: [new])
    for still in (False, True):
        given: dict[str, Any] = {"train": False, "speed": False, "still": still, "runs": tmp_path}
        benchmark.main(benchmark.Arguments(**given))
    assert written == [old, [old[0], new]]
