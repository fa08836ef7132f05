"""What two processes make of the updates that `speed.py` measures: it runs this file by torchrun, once in each process.

The updates are those of `pyrocontrol.inference.fit`. Block by block, process 0 trains alone while the other waits, and
then both do on the same batches. What process 0 prints are rows: a JSON list of the method, metric, value, seed and
setting of each.
"""

from __future__ import annotations

import json
import runpy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from lightning_fabric import Fabric
from torch import distributed

import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.inference.training.processes import Processes
from training_runs import command_line

DATA_SEED = 2_000


@dataclass
class Arguments:
    """Measure."""

    processes: int = 2
    """how many torchrun starts"""
    shared: int = 64
    """traces in a batch"""
    repeats: int = 15
    """blocks of each kind"""
    block: int = 4
    """updates in a block, after a first one that is not counted"""
    updates: int = 200
    """updates of four traces before the blocks, after which call traces have a realistic length"""
    max_length: int = 9
    """longest list"""
    curve: int = 100
    """updates of each learning curve, alone and together"""
    seeds: int = 3
    """learning curves of each kind"""


def main(arguments: Arguments) -> None:
    """Measure, and print the rows."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=arguments.processes)
    fabric.launch()
    rows: list[dict[str, Any]] = []

    def add(metric: str, value: float, seed: int, **setting: Any) -> None:
        rows.append({"metric": metric, "value": value, "seed": seed, "setting": setting})

    with pyro.validation_enabled(False):
        measure_blocks(arguments, fabric, add)
        measure_curves(arguments, fabric, add)
    measure_messages(arguments, fabric, add)
    if fabric.is_global_zero:
        print(json.dumps(rows))


def made(seed: int) -> tuple[Any, torch.optim.Optimizer]:
    """Return the loss of the example and an optimiser."""
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "bubble_sort.py"))
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    loss = example["build"](example["Arguments"](method="hvil", demos=40))
    return loss, torch.optim.Adam(loss.parameters(), lr=1e-3)


def measure_blocks(arguments: Arguments, fabric: Fabric, add: Any) -> None:
    """Add the seconds of an update alone and together, and their ratio, by the wall and by the processor.

    The processor's seconds together are those of the process that had most.
    """
    trained, size = made(0), arguments.shared
    short = demonstrations(40, 0, max_length=arguments.max_length)
    pc.inference.fit(trained, short, steps=arguments.updates, batch_size=4, progress=False)
    weights = {name: value.clone() for name, value in trained[0].state_dict().items()}
    data = demonstrations(size * arguments.block, DATA_SEED, stream="validation", max_length=arguments.max_length)

    clocks: list[tuple[float, float]] = []  # when an update was over
    trained[1].register_step_post_hook(lambda *_: clocks.append((time.perf_counter(), time.process_time())))

    def block(seed: int, by: Fabric | None) -> tuple[float, float]:
        trained[0].load_state_dict(weights)
        clocks.clear()
        given: Any = {"batch_size": size, "seed": seed, "progress": False, "fabric": by}
        pc.inference.fit(trained, data, steps=1 + arguments.block, **given)
        wall, processor = ((last - first) / arguments.block for first, last in zip(clocks[0], clocks[-1], strict=True))
        return wall, processor

    for repeat in range(-1, arguments.repeats):  # the first is not counted
        alone = block(repeat + 1, None) if fabric.is_global_zero else (0.0, 0.0)
        fabric.barrier()
        wall, processor = block(repeat + 1, fabric)
        most = torch.tensor(processor)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if repeat >= 0:
            setting = {"part": "processes", "batch": size, "weights": "trained"}
            for count, (seconds, busy) in {1: alone, arguments.processes: (wall, float(most))}.items():
                add("update_seconds", seconds, repeat, processes=count, **setting)
                add("update_cpu_seconds", busy, repeat, processes=count, **setting)
            if fabric.is_global_zero:
                for clock, ratio in {"wall": alone[0] / wall, "processor": alone[1] / float(most)}.items():
                    add("speed_ratio", ratio, repeat, processes=arguments.processes, clock=clock, **setting)


def measure_curves(arguments: Arguments, fabric: Fabric, add: Any) -> None:
    """Add learning curves alone and together, each pair from the same weights and on the same batches."""
    every = max(1, arguments.curve // 10)
    for seed in range(arguments.seeds):
        data = demonstrations(2 * arguments.shared, seed, max_length=arguments.max_length)
        given: Any = {"steps": arguments.curve, "batch_size": arguments.shared, "seed": seed, "log_every": every}
        for count, by in {1: None, arguments.processes: fabric}.items():
            if by is not None or fabric.is_global_zero:
                result = pc.inference.fit(made(seed), data, progress=False, fabric=by, **given)
                for step, loss in result.losses:
                    setting = {"part": "processes", "batch": arguments.shared, "step": step}
                    add("loss_per_trace", loss / arguments.shared, seed, processes=count, **setting)
            fabric.barrier()


def measure_messages(arguments: Arguments, fabric: Fabric, add: Any) -> None:
    """Add what it takes to sum numbers over the processes."""
    processes = Processes(fabric)
    for count in (10_000, 100_000, 1_000_000, 10_000_000):
        numbers = [torch.ones(count)]
        for repeat in range(-1, arguments.repeats):
            fabric.barrier()
            before = time.perf_counter()
            processes.add(numbers)
            if repeat >= 0:
                setting = {"part": "processes", "processes": arguments.processes, "numbers": count}
                add("sum_seconds", time.perf_counter() - before, repeat, **setting)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
