"""The programs of the README and of the pages run as printed (with two updates for thousands, and shorter episodes)."""

import json
import re
import statistics
from pathlib import Path

import pytest

from pyrocontrol.inference import Summary, select, summary
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/your-data.md", "docs/methods/hvil.md", "docs/methods/imitation.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page)
    for block in blocks(page):
        shortened = re.sub(r"(\bfit\(.*)steps=[\d_]+", r"\1steps=2, progress=False", block)
        shortened = shortened.replace("horizon=200", "horizon=40")
        exec(compile(shortened, page, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}, "written elsewhere than asked for"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_numbers_of_the_readme_are_in_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("| [")]
    rows = {
        path.stem: json.loads(path.read_text())["rows"] for path in (ROOT / "benchmarks" / "results").glob("*.json")
    }

    def shown(found: Summary, digits: int) -> str:
        return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"

    def percent(method: str) -> str:
        found = summary(rows["bubble_sort"], method, "exact_match", demos=40, length=None)
        return shown(Summary(100 * found.mean, 100 * found.half, found.seeds), 0) + "%"

    def boundaries(method: str) -> str:  # of what a guide says
        return f"{summary(rows['bubble_sort'], method, 'boundary_f1', demos=40, of=None).mean:.2f}"

    def error(method: str) -> str:
        return shown(summary(rows["skills"], method, "state_mse", task="spinkick", embedding="sum", step=1500), 1)

    assert all(percent(method) in lines[0] for method in ("hvil-exact", "hvil", "rnn"))
    own = summary(rows["bubble_sort"], "hvil-exact", "boundary_f1", demos=40, of="own")
    assert f"F1 {shown(own, 2)}" in lines[0] and f"F1 {boundaries('hvil')}" in lines[0]
    longer = [summary(rows["bubble_sort"], "hvil", "exact_match", demos=40, length=n).mean for n in (15, 20)]
    assert "{:.0%} and {:.0%} of them".format(*longer) in lines[0]
    exact = [select(rows["bubble_sort"], "hvil-exact", "exact_match", demos=40, length=n) for n in (15, 20)]
    assert f"lists of 15 in {exact[0].count(1.0)} of {len(exact[0])} trials and none of 20" in lines[0]
    assert not any(exact[1])
    grown = [shown(summary(rows["imitation_basics"], method, "error_exponent"), 2) for method in ("bc", "dagger")]
    assert " and ".join(grown) in lines[1]
    assert f"{error('tied')} with the term, {error('off')} without" in lines[2]
    added, part = (
        summary(rows["skills"], "additive", "state_mse", task="toy", embedding=kind, step=1500)
        for kind in ("sum", "part")
    )
    assert f"{shown(added, 4)}, the best part {part.mean:.2f} ({added.seeds} seeds)" in lines[2]
    mean = summary(rows["skills"], "mean-state", "state_mse", task="spinkick", embedding="composite").mean
    assert f"({mean:.1f})" in lines[2]
    returns, distances = (
        load_script(f"benchmarks/{name}.py").summary(rows[name]).splitlines() for name in ("lsp", "lsp_maze")
    )
    cells = {line.split(" | ")[0]: line.split(" | ") for line in returns + distances}
    flow, mixture, ppo = (cells["| HalfCheetah-v5"][at].removesuffix(" (3)") for at in (1, 2, 5))
    assert f"{flow}; a mixture {mixture}; PPO {ppo} (3 seeds" in lines[3]
    vmil = load_script("benchmarks/vmil.py")
    walked = []
    for method, frames in {"observed": 60_000, "dac": 60_000, "bc": 0}.items():
        found = [curve[frames] for curve in vmil.score(rows["vmil"], "walker-walk", method, 1).values()]
        walked.append(f"{statistics.fmean(found):.2f} ({len(found)} seed{'s' * (len(found) > 1)})")
    assert "{} of the expert's return; DAC {}, cloning {}".format(*walked) in lines[5]
    latent = vmil.score(rows["vmil"], "walker-walk", "vmil", 1)[0][60_000]
    cheetah = vmil.score(rows["vmil"], "cheetah-run", "observed", 10)[0][150_000]
    assert f"latent dynamics {latent:.2f}, cheetah-run {cheetah:.2f} after 150,000 frames" in lines[5]
    pegs = [vmil.success(rows["vmil"], "sawyer-peg", method, 50)[:4] for method in ("observed", "bc")]
    assert pegs[0] == "0.00" and f"cloning succeeds in {float(pegs[1]):.0%}" in lines[5]
    still, moved = (cells["| Ant-v5"][at].removesuffix(" |").removesuffix(" (3)") for at in (6, 1))
    assert f"{still} against {moved}" in lines[3]
    point, ant = ([cells[f"| {task}, goal {goal}"][1] for goal in range(3)] for task in ("PointMaze", "AntMaze"))
    assert all(cell.startswith("1.9 m") and cell.endswith("(5)") for cell in point) and "ends 1.9 m" in lines[4]
    assert "{}, {} and {} m away".format(*(cell.split(" m")[0] for cell in ant)) in lines[4]
    update = [item["value"] for item in rows["speed"] if _is_update(item, "hvil", "update_seconds")]
    ratio = [item["value"] for item in rows["speed"] if _is_update(item, "site-loop", "speed_ratio")]
    assert f"{1000 * sorted(update)[len(update) // 2]:.0f} ms" in readme
    assert f"{sorted(ratio)[len(ratio) // 2]:.0f} times as long" in readme
    graph, ours = (
        [
            statistics.geometric_mean(select(rows["estimators"], method, metric, task="bubble_sort_loop"))
            for metric in ("gradient_variance", "gradient_cpu_seconds")
        ]
        for method in ("TraceGraph_ELBO", "StepwiseKL_ELBO")
    )
    assert 0.9 < graph[0] / ours[0] < 1.1 and f"for {graph[1] / ours[1]:.0f} times the time" in readme


def _is_update(item: dict, method: str, metric: str) -> bool:
    setting = item["setting"]
    at = {"device": "cpu", "part": "methods", "weights": "trained", "batch": 4}
    clock = setting.get("clock", "processor") == "processor"
    return (item["method"], item["metric"]) == (method, metric) and clock and at.items() <= setting.items()
