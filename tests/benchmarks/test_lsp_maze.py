"""What the benchmark of the maze makes of its runs, and that the page shows it."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro


def item(method: str, seed: int, goal: int, step: int, value: float, metric: str = "final_distance") -> dict[str, Any]:
    return {
        "method": method,
        "task": "PointMaze",
        "setting": {"steps": step, "goal": goal, "pretrain": 9, "budget": 70},
        "seed": seed,
        "metric": metric,
        "value": value,
        "seconds": 1.0,
    }


def test_runs_are_collected_by_their_folders(benchmark: ModuleType, tmp_path: Path) -> None:
    for folder, goal, seed in (
        ("finetune-motion-2-9-70-1", 2, 1),
        ("lsp-0-9-70-3+10/seed-10", 0, 10),
        ("somebody's-0-9-70-0", 0, 0),
    ):
        out = tmp_path / "PointMaze" / folder
        out.mkdir(parents=True)
        content = {"revision": "abc", "rows": [item("sac", seed, goal, 5, 1.0)]}
        (out / "result.json").write_text(json.dumps(content))
    (tmp_path / "PointMaze" / "floor-one-1").mkdir()
    rows = benchmark.collected(tmp_path)
    expected = [("PointMaze", "lsp", 0, 9, 70, 10), ("PointMaze", "finetune-motion", 2, 9, 70, 1)]
    assert [benchmark.run_of(row) for row in rows] == expected
    assert {row["setting"]["revision"] for row in rows} == {"abc"}


def test_methods_that_go_on_from_one_floor_are_made_one_after_the_other(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(benchmark, "make", lambda script, given, name, log: made.append(given))
    monkeypatch.setattr(benchmark, "read_rows", lambda path: [item("lsp", seed, 0, 5, 1.0) for seed in (0, 1)])
    monkeypatch.setattr(benchmark, "write_results", lambda *given, **options: None)
    monkeypatch.setattr(benchmark, "plot", lambda *given: None)
    benchmark.main(benchmark.Arguments(goals=(0, 1), seeds=(0, 1), jobs=1, runs=tmp_path, steps=70, pretrain=9))
    assert len(made) == 11  # one is there
    floors = [given[given.index("--pretrained") + 1] for given in made if "--pretrained" in given]
    names = ["floor-lsp-9-0+1", *["floor-sql-9-0+1"] * 2, *["floor-one-9-0+1"] * 4]
    assert [Path(floor).name for floor in floors] == names
    for given in made:
        assert given[given.index("--pretrain") + 1] == ("9" if "--pretrained" in given else "0")
        assert given[given.index("--evaluate-every") + 1] == "7"
        assert given[-3:] == ["--seed", "0", "1"]


@pytest.mark.parametrize("example", ["lsp_maze"], indirect=True)
def test_the_example_takes_every_run(
    benchmark: ModuleType, example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(benchmark, "make", lambda script, given, name, log: made.append(given))
    for task in benchmark.TASKS:
        for method in benchmark.METHODS:
            floor = benchmark.Arguments.pretrain if method in benchmark.FLOORS else 0
            benchmark.run(tmp_path, "cpu", [[(task, method, 2, floor, benchmark.Arguments.steps, 0)]])
    assert len(made) == len(benchmark.TASKS) * len(benchmark.METHODS)
    for given in made:
        example.checked(tyro.cli(example.Arguments, args=given))


def test_the_ant_learns_to_walk_at_a_greater_rate_and_its_values_are_bounded(benchmark: ModuleType) -> None:
    several = ["--floor-lr", "1e-3", "--value-range", "0", "1000"]
    assert benchmark.besides("AntMaze", "lsp") == benchmark.besides("AntMaze", "lsp-sql") == several
    assert benchmark.besides("AntMaze", "finetune") == benchmark.besides("AntMaze", "scratch") == ["--lr", "1e-3"]
    assert [benchmark.METHODS["lsp-lr-1e-3"], benchmark.besides("AntMaze", "lsp-lr-1e-3")] == [["--lr", "1e-3"], []]
    assert not any(benchmark.besides("PointMaze", method) for method in benchmark.METHODS)


def test_a_device_that_is_not_there_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="nowhere"):
        benchmark.main(benchmark.Arguments(device="nowhere"))


def test_every_goal_has_its_curves_and_rows(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = [
        item("lsp", seed, goal, step, seed + goal + step) for seed in range(3) for goal in (0, 2) for step in (5, 10)
    ]
    rows += [item("lsp", seed, goal, step, step / 10, "success") for seed, goal, step in _keys(rows)]
    assert benchmark.curves(rows, "PointMaze", 2, "lsp", "final_distance")[1] == {5: 8.0, 10: 13.0}
    assert benchmark.table(rows).splitlines()[2:] == [
        "| PointMaze | 0 | lsp (3) | 11.00 ± 2.48 | 1.00 ± 0.00 | 0.75 ± 0.00 |",
        "| PointMaze | 2 | lsp (3) | 13.00 ± 2.48 | 1.00 ± 0.00 | 0.75 ± 0.00 |",
    ]
    assert benchmark.summary(rows).splitlines()[2:] == [
        "| PointMaze, goal 0 | 11.0 m, 0.75 (3) |  |  |  |  |  |",
        "| PointMaze, goal 2 | 13.0 m, 0.75 (3) |  |  |  |  |  |",
    ]
    benchmark.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def _keys(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(row["seed"], row["setting"]["goal"], row["setting"]["steps"]) for row in rows]


def test_the_page_holds_the_tables_of_the_results(benchmark: ModuleType) -> None:
    page = benchmark.PAGE.read_text()
    assert benchmark.with_tables(page, json.loads(benchmark.RESULTS.read_text())["rows"]) == page
