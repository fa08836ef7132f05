"""What the benchmark of skills compares: the same samples with and without a cache, and which run a row is of."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_timed_samples_the_same(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    skills, _ = benchmark.skills_for(benchmark.random_demonstrations(3))
    z, first = torch.randn(2, skills.latent), torch.randn(2, benchmark.STATE)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    with torch.no_grad():
        slow = benchmark.evaluating_the_prefix(skills, z, first, 5)[:, 1:]
    torch.testing.assert_close(skills.dynamics_of(z, first, 5).greedy(), slow)


def test_rows_of_runs(benchmark: ModuleType, tmp_path: Path) -> None:
    def item(method: str) -> dict[str, object]:
        setting = {"embedding": "sum", "step": 7}
        return {"method": method, "task": "toy", "setting": setting, "seed": 3, "metric": "state_mse", "value": 0.5}

    for name in ("toy-tied-10-3", "toy-off-3", "toy-somebody's-3"):
        (tmp_path / name).mkdir()
        content = {"revision": "abc", "rows": [item(name.split("-")[1]), item("teacher")]}
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    rows = benchmark.collect(benchmark.Arguments(runs=tmp_path))
    assert [benchmark.run_of(row) for row in rows] == [("toy", m, 3) for m in ("off", "off", "tied-10")]
    assert [row["method"] for row in rows] == ["off", "teacher", "tied-10"]  # the teacher is the same for all
    assert benchmark.last_step(rows, "toy", "tied-10") == 7


def test_of_earlier_evaluations_only_what_is_plotted_is_kept(benchmark: ModuleType) -> None:
    def kept(metric: str, **setting: object) -> bool:
        return benchmark._is_kept({"metric": metric, "setting": setting}, 5)

    assert kept("state_mse", step=2, embedding="sum") and kept("state_mse", step=5, embedding="own")
    assert kept("mutual_information") and not kept("state_mse", step=2, embedding="own")
    assert not kept("dynamics_nats", step=2, embedding="own")


def test_the_table_keeps_what_is_compared_apart(benchmark: ModuleType) -> None:
    def item(method: str, value: float, step: int | None, kind: str | None) -> dict[str, object]:
        setting = {name: given for name, given in (("step", step), ("embedding", kind)) if given is not None}
        metric = "tracking_error" if kind is None else "state_mse"
        return {"method": method, "task": "toy", "setting": setting, "seed": 0, "metric": metric, "value": value}

    rows = [item("off", 4, 1, "sum"), item("off", 2, 2, "sum"), item("mean-state", 5, None, "composite")]
    rows += [item("tied", 2, 1, "sum"), item("tied", 1, 2, "sum"), item("teacher", 7, None, None)]
    lines = benchmark.table(rows).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[2:5]] for line in lines]
    assert cells[0] == ["off (1)", "", "2"]
    assert cells[1] == ["tied (1)", "1.5", "1"]
    assert cells[2] == ["mean-state", "", "5"] and cells[3][0] == "teacher" and " 7 " in lines[3]


def test_the_page_holds_the_table_of_the_results(benchmark: ModuleType) -> None:
    page = benchmark.PAGE.read_text()
    assert benchmark.with_table(page, benchmark.table(benchmark.read_rows(benchmark.RESULTS))) == page


def test_the_runs_are_those_of_the_results(benchmark: ModuleType) -> None:
    apart = {benchmark.SPEED, benchmark.PAIRS, *benchmark.CLIPS}
    rows = [row for row in benchmark.read_rows(benchmark.RESULTS) if row["task"] not in apart]
    made = {(row["task"], row["method"]) for row in rows if row["method"] not in benchmark.REFERENCES}
    assert made <= {(task, method) for task, methods in benchmark.RUNS.items() for method in methods}
    kinds = {"sum", "mean", "encoded", "part", "own", "composite", None}
    assert {row["setting"].get("embedding") for row in rows} <= kinds


def test_unknown_names_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="there is no method foo; there are additive, additive-off"):
        benchmark.main(benchmark.Arguments(methods=("off", "foo")))
    with pytest.raises(SystemExit, match="there is no composite flip; there are spinkick"):
        benchmark.main(benchmark.Arguments(composites=("flip",)))


def test_pairs_that_are_held_out_are_never_shown(benchmark: ModuleType) -> None:
    pairs = benchmark.pairs_of(1)
    assert len(set(pairs)) == 21 and max(benchmark.SHOWN) + 6 == 21
    assert pairs != benchmark.pairs_of(2)
    rows = benchmark.with_pairs("additive", 2, 1, updates=10)
    assert [item["setting"]["embedding"] for item in rows] == ["sum", "part"]
    assert all(item["setting"]["shown"] == 2 and item["value"] > 0 for item in rows)


def test_one_repeat_of_speed(benchmark: ModuleType) -> None:
    ticks: list[str] = []
    timed = {(name, "seconds", ()): lambda name=name: ticks.append(name) for name in ("a", "b")}
    rows = list(benchmark.measured(timed, 2))
    assert ticks == ["a", "b"] * 3
    assert [(row["method"], row["seed"]) for row in rows] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.parametrize("kind", ["off", "tied"])
def test_an_update(benchmark: ModuleType, kind: str) -> None:
    update = benchmark.update_of(benchmark.random_demonstrations(3), kind)
    losses = [update() for _ in range(6)]
    assert losses[-1] < losses[0]
