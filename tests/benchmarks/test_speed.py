"""The speed benchmark: its site loop is the same model and guide, and a tiny run writes a valid file."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor


def test_the_site_loop_is_the_same_model_and_guide(benchmark: ModuleType, float64: None) -> None:
    # Ours at the z that the site loop drew: one loss and one gradient under one ELBO.
    trainer = benchmark.Trainer(benchmark.Arguments(demos=4))
    trainer.program.double(), trainer.guide.double()
    batch = benchmark.demonstrations(3, 7, max_length=3).to(dtype=torch.float64)
    twin = trainer.losses["site-loop"]
    sites = poutine.trace(twin.guide).get_trace(batch)
    whole = poutine.trace(trainer.guide).get_trace(batch)
    calls = torch.stack([node["value"] for name, node in sites.nodes.items() if name.startswith("call_")], 1)
    whole.nodes["calls"]["value"] = calls
    assert len({int(n) for n in batch.lengths}) > 1, "rows that end early are to be masked"
    parameters = [*trainer.program.parameters(), *trainer.guide.parameters()]

    def loss_and_gradient(model: Any, guide: Any) -> tuple[Tensor, Tensor]:
        loss = Trace_ELBO().differentiable_loss(model, guide, batch)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return loss.detach(), torch.cat([g.flatten() for g in filled])

    ours = loss_and_gradient(trainer.program, poutine.replay(trainer.guide, trace=whole))
    theirs = loss_and_gradient(twin.model, poutine.replay(twin.guide, trace=sites))
    torch.testing.assert_close(ours, theirs)
    assert ours[1].abs().max() > 0


def test_an_update_is_taken_back(benchmark: ModuleType) -> None:
    trainer = benchmark.Trainer(benchmark.Arguments(demos=4))
    batch = benchmark.demonstrations(2, 7, max_length=3)
    before = [p.detach().clone() for p in trainer.program.parameters()]
    measured = [trainer.measure("hvil", batch, 3) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.program.parameters(), strict=True))
    assert measured[0]["php_steps"] == measured[1]["php_steps"] > 0
    trainer.train(batch, 1)
    assert not all(torch.equal(p, q) for p, q in zip(before, trainer.program.parameters(), strict=True))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("intercept", [0.0, 5.0])
def test_the_exponent_of_growth_is_recovered(benchmark: ModuleType, exponent: float, intercept: float) -> None:
    steps = np.array([60.0, 110, 190, 280, 390, 520, 680])
    assert benchmark.power_fit(steps, intercept + 0.1 * steps**exponent) == pytest.approx(exponent, abs=0.01)
    assert benchmark.linear_fit(steps, 3 + 0.1 * steps) == pytest.approx((3, 0.1, 1))


def test_a_tiny_run_writes_its_file_and_keeps_rows_of_other_devices(
    benchmark: ModuleType, tmp_path: Path, check_results: Callable[[dict[str, Any]], None]
) -> None:
    out = tmp_path / "speed.json"
    other = benchmark.pc.inference.row("hvil", "BubbleSort", "update_seconds", 1.0, seed=0, seconds=1.0, device="cuda")
    stale = other | {"setting": {"device": "cpu"}}
    benchmark.write_results(out, "speed", [other, stale], command="before")
    tiny = benchmark.Arguments(
        out=out,
        repeats=1,
        demos=4,
        updates=1,
        lengths=(2, 3, 4),
        max_length=2,
        batches=(1, 2),
        memory_updates=1,
        shared=3,
        curve=1,
    )
    benchmark.main(tiny)
    results = json.loads(out.read_text())
    check_results(results)
    assert other in results["rows"] and stale not in results["rows"]
    found = {(item["method"], item["metric"]) for item in results["rows"]}
    assert {(m, "update_seconds") for m in ("hvil", "hvil-tensor-walk", "site-loop")} <= found
    assert {
        ("site-loop", "speed_ratio"),
        *(
            ("hvil", metric)
            for metric in (
                "peak_memory_bytes",
                "php_steps",
                "linearity_r2",
                "linearity_exponent",
                "updates_per_second",
                "traces_per_second",
                "speed_ratio",
                "loss_per_trace",
            )
        ),
    } <= found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.png"]
    benchmark.main(dataclasses.replace(tiny, only=("memory",)))
    again = json.loads(out.read_text())["rows"]

    def but_memory(rows: list[dict[str, Any]], **setting: str) -> list[dict[str, Any]]:
        kept = [item for item in rows if item["setting"].get("part") != "memory" and item != other]
        return [item | {"setting": item["setting"] | setting} for item in kept]

    assert but_memory(again) == but_memory(results["rows"], revision=results["revision"]) and other in again
    assert len(again) == len(results["rows"])
