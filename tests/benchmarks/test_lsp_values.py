"""What states are taken to be worth, read from the runs of the maze."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.mark.parametrize("example", ["lsp_maze"], indirect=True)
def test_rows_of_a_run(
    benchmark: ModuleType, example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "film", lambda *given: True)
    runs = tmp_path / "PointMaze"
    tiny: dict[str, Any] = {"pretrain": 20, "steps": 60, "start": 5, "evaluate_every": 60, "episodes": 1}
    given: dict[str, Any] = {"learner": "sql", "pretrained": runs / "floor-sql-20-3", "goal": 2, **tiny}
    example.main(example.Arguments(seed=(3,), out=runs / "lsp-sql-2-20-60-3", **given))
    more: dict[str, Any] = {"value_range": (0.0, 1000.0), "out": runs / "lsp-sql-bounded-2-20-60-3+5", "seed": (3, 5)}
    example.main(example.Arguments(**given | more | {"pretrained": runs / "floor-sql-20-3+5"}))
    out = tmp_path / "values.json"
    benchmark.main(benchmark.Arguments(runs=tmp_path, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert {benchmark.run_of(item) for item in rows} == {
        ("lsp-sql", 2, 3),
        ("lsp-sql-bounded", 2, 3),
        ("lsp-sql-bounded", 2, 5),
    }
    assert {item["metric"] for item in rows} == {"soft_value", "impossible"}
    assert all(0 <= item["value"] <= 1 for item in rows if item["metric"] == "impossible")
    # The point begins 12 m from the goal that is straight ahead.
    assert {item["setting"]["farthest"] for item in rows} >= {20.0}
    benchmark.main(benchmark.Arguments(runs=tmp_path, out=out))
    assert [item["value"] for item in json.loads(out.read_text())["rows"]] == [item["value"] for item in rows]
    # What is not finished, or not here any more, is not measured; its old rows stay.
    (runs / "lsp-sql-bounded-2-20-60-3+5" / "seed-5" / "result.json").unlink()
    assert len(benchmark.finished(tmp_path, "lsp-sql-bounded")) == 1
    benchmark.main(benchmark.Arguments(runs=tmp_path, out=out))
    assert len(json.loads(out.read_text())["rows"]) == len(rows)


def test_without_runs_it_says_so(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run lsp_maze.py first"):
        benchmark.main(benchmark.Arguments(runs=tmp_path, out=tmp_path / "x.json"))
    assert not [*tmp_path.iterdir()]
