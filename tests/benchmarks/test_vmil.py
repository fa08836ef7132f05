"""The benchmarks of VMIL: the Kalman filter, the table and the plot, and the loops that are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrocontrol.inference import StepwiseKL_ELBO, row
from scripts import load_script

vmil, vmil_speed = load_script("benchmarks/vmil.py"), load_script("benchmarks/vmil_speed.py")
linear_gaussian = vmil.linear_gaussian


@pytest.mark.usefixtures("float64")
def test_on_a_linear_system_the_elbo_of_the_posterior_is_the_kalman_filters_evidence() -> None:
    x, actions = linear_gaussian.data(3, 6)
    evidence = linear_gaussian.evidence(x, actions)

    def elbo(particles: int, ahead: bool, analytic: bool = True) -> float:
        many = StepwiseKL_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
        return -many.loss(*linear_gaussian.system(ahead, analytic), x, actions)

    # By sampled log-ratios, every sample of the posterior gives the evidence; by analytic KLs, their mean does.
    assert elbo(1, ahead=True, analytic=False) == pytest.approx(evidence, abs=1e-9)
    assert elbo(4000, ahead=True) == pytest.approx(evidence, abs=0.1)
    assert elbo(4000, ahead=False) < evidence - 0.3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["world model", "latent", "observed"])
def test_the_loops_that_are_compared_with_compute_the_same(kind: str) -> None:
    arguments = vmil_speed.Arguments(sequences=2, steps=3, starts=4)
    part = vmil_speed.world_model(arguments) if kind == "world model" else vmil_speed.imagination(arguments, kind, 2)
    assert max(vmil_speed.differences(part)) < 1e-12


def test_table_and_plot_say_what_the_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def content(method: str, values: dict[int, float]) -> list[dict[str, Any]]:
        common: dict[str, Any] = {"seed": 0, "seconds": 1.0, "demos": 1}
        rows = [row(method, "walker-walk", "expert", 900.0, **common)]
        rows += [row(method, "walker-walk", "return", v, frames=n, **common) for n, v in values.items()]
        if method == "bc":  # 20 of 50 episodes succeed
            return rows + [row(method, "walker-walk", "test_success", float(n < 20), **common) for n in range(50)]
        return [*rows, row(method, "walker-walk", "training_return", 450.0, frames=9, **common)]

    for method, values in {"observed": {30_000: 90.0, 60_000: 810.0, 90_000: 720.0}, "bc": {0: 45.0}}.items():
        out = tmp_path / "walker-walk" / f"{method}-1-0" / "result.json"
        out.parent.mkdir(parents=True)
        out.write_text(json.dumps({"revision": "r", "rows": content(method, values)}))
    monkeypatch.setattr(vmil, "RESULTS", tmp_path / "vmil.json")
    monkeypatch.setattr(vmil, "bounds", lambda: [])
    vmil.main(vmil.Arguments(train=False, runs=tmp_path))
    rows = json.loads((tmp_path / "vmil.json").read_text())["rows"]
    assert (tmp_path / "vmil.png").exists()
    lines = vmil.table(rows).splitlines()
    assert lines[2] == "| walker-walk | 1 | observed | 0.90 | 0.85 | 0.94 | 0.50 | 90,000 | 1 |  |"
    assert lines[3] == "| walker-walk | 1 | bc |  | 0.05 | 1.00 |  | 0 | 1 | 0.40 (0.28 to 0.54) |"


def test_bounds_are_rows() -> None:
    found = {item["method"]: item["value"] for item in vmil.bounds(particles=10)}
    assert found["exact posterior, one sampled log-ratio"] == pytest.approx(found["kalman-filter"], abs=1e-8)
    assert torch.get_default_dtype() == torch.float32
