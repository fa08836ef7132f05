"""Remake results/speed.json: what a training update of HVIL on BubbleSort costs, and the plot beside it.

    python benchmarks/speed.py                     # six minutes on two CPU cores
    python benchmarks/speed.py --only processes    # of these rows alone; the others stay
    python benchmarks/speed.py --device cuda --batches 4 64 1024 4096 --only throughput    # adds rows for a GPU

Measured are the program, guide and loss that `examples/bubble_sort.py` trains, on one thread:

* one update of four traces of the paper's mix (lists of 2 to 9 digits), `hvil`, beside the same model and guide as a
  plain Pyro loop of sites under `Trace_ELBO`, `site-loop`, and beside walks of the call stack in tensor code: step by
  step, `hvil-tensor-walk`, and compiled, `hvil-compiled`; before and after a short training;
* its growth with the number of PHP steps, from lists of three digits to lists of nine;
* its throughput at several batch sizes, and the peak memory of a training in a process of its own;
* the same updates in two processes, each on half of every batch of 64, and the learning curves of both ways
  (`speed_processes.py`; needs the extra scale);
* at several batch sizes, the same updates by every engine, the twins in NumPyro among them, also of six seeds at once,
  and how far ELBO and gradients agree (`speed_engines.py`; needs the extra numpyro).

What is compared is interleaved in one process: repeat by repeat, one update each, on the same traces and weights. Every
repeat is a row, its seed the number of the repeat; the printed numbers are medians.
"""

from __future__ import annotations

import json
import resource
import runpy
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.envs.data.demonstrations import Demonstrations
from pyrocontrol.inference import read_rows, write_results
from pyrocontrol.inference.training.results import revision

try:
    import speed_engines
except ModuleNotFoundError as missing:  # that part needs the extra numpyro
    if missing.name not in ("jax", "numpyro"):
        raise
from training_runs import command_line, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
PAGE, TWINS_PAGE = HERE.parent / "docs" / "scaling.md", HERE.parent / "docs" / "numpyro.md"
TASK = "BubbleSort"
BATCH = 4
DATA_SEED = 2_000
TARGET_SECONDS = 0.064  # for an update of four traces
LARGE_BATCH, LARGE_REPEATS = 256, 3  # larger batches are repeated that often
# Processor time says on a shared machine what wall-clock time says on a quiet one; on a GPU it says nothing.
CLOCKS = {"wall": "update_seconds", "processor": "update_cpu_seconds"}
Part = Literal["methods", "growth", "throughput", "memory", "processes", "engines"]
METHODS = ("hvil", "hvil-tensor-walk", "hvil-compiled", "site-loop")


@dataclass
class Arguments:
    """Measure training updates."""

    device: str = "cpu"
    """where to train; rows of another kind of device are kept in the file"""
    out: Path = HERE / "results" / "speed.json"
    """results file; the plot goes beside it"""
    repeats: int = 15
    """updates of each kind"""
    demos: int = 40
    """training traces of the short training"""
    updates: int = 200
    """updates of the short training, after which the posterior's call traces have a realistic length"""
    lengths: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9)
    """list lengths for the growth with PHP steps, three or more"""
    max_length: int = 9
    """longest list of the mix of lengths for the other parts (9 in the paper)"""
    batches: tuple[int, ...] = (4, 64, 1024)
    """batch sizes for the throughput"""
    memory_updates: int = 50
    """updates of the process whose memory is measured"""
    shared: int = 64
    """traces of a batch that two processes share"""
    curve: int = 100
    """updates of the learning curves of one process and of two"""
    only: tuple[Part, ...] = ()
    """which parts to measure; all if none is named"""
    compile: bool = False
    """also measure the compiled walk (a minute of compilation)"""
    memory_probe: bool = False
    """only make those updates and print the peak memory in bytes: what the benchmark runs as that process"""


# -- the same model and guide as a Pyro loop of sites ------------------------------------------------------------------


def walk_sites(calls: pc.models.Sequence) -> Tensor:
    """Sample PHP steps ``call_0, call_1, ...`` as Pyro sites until all traces have ended; ``[B, I, 1 + W]``."""
    process, context = calls.process, calls.context
    state = process.initial(context)
    steps: list[Tensor] = []
    live = process.live(state, context)
    while len(steps) < calls.horizon and bool(live.any()):
        with poutine.mask(mask=live):  # type: ignore[call-overload]  # a tensor of bools
            z = pyro.sample(f"call_{len(steps)}", process.conditional(state, context))
        steps.append(z)
        state = process.advance(state, z, context)
        live = live & process.live(state, context)
    if bool(live.any()):
        raise ValueError(f"horizon exhausted: a trace has not ended after {calls.horizon} steps")
    return torch.stack(steps, 1)


class SiteLoopModel(nn.Module):
    """The model of a control program, one Pyro site a PHP step."""

    def __init__(self, program: pc.models.ControlProgram):
        super().__init__()
        self.program = program

    def forward(self, traces: Demonstrations) -> None:
        """Pyro model."""
        program = self.program
        pyro.module("program", program)
        if program.sparsity and program.num_traces:
            share = len(traces) / program.num_traces
            pyro.factor("sparsity", -program.sparsity * share * program.penalty())
        with pyro.plate("traces", len(traces), dim=-1):
            calls = walk_sites(program.prior(traces))
            actions, _ = program.taken(calls, traces.actions.shape[-1])
            pyro.sample("actions", dist.Delta(actions, event_dim=1), obs=traces.actions.to(actions.dtype))


class SiteLoopGuide(nn.Module):
    """The guide of a control program, one Pyro site a PHP step."""

    def __init__(self, guide: pc.guides.CallStackGuide):
        super().__init__()
        self.guide = guide

    def forward(self, traces: Demonstrations) -> Tensor:
        """Pyro guide."""
        pyro.module("guide", self.guide)
        with pyro.plate("traces", len(traces), dim=-1):
            return walk_sites(self.guide.posterior(traces))


# -- what is measured --------------------------------------------------------------------------------------------------


class Trainer:
    """The program and guide of the example, and an update of them by each method."""

    def __init__(self, arguments: Arguments):
        example = runpy.run_path(str(HERE.parent / "examples" / "bubble_sort.py"))
        self.device = torch.device(arguments.device)
        self.compiles = self.device.type != "cpu"  # as the example has it
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        settings = example["Arguments"](method="hvil", demos=arguments.demos, device=arguments.device)
        loss = example["build"](settings)
        self.program, self.guide = loss.model, loss.guide
        loss.to(self.device)
        twin = Trace_ELBO()(SiteLoopModel(self.program), SiteLoopGuide(self.guide))
        self.losses: dict[str, nn.Module] = {
            name: twin if name == "site-loop" else loss
            for name in METHODS
            if name != "hvil-compiled" or arguments.compile
        }
        self.optimizers = {name: self._optimizer() for name in self.losses}
        self.php_steps = 0
        for guide in (loss.guide, twin.guide):
            guide.register_forward_hook(self._count)

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(self.losses)

    def train(self, demos: Demonstrations, updates: int) -> None:
        """Make updates of ours, on batches drawn at random."""
        optimizer, generator = self._optimizer(), np.random.default_rng(0)
        for _ in range(updates):
            batch = demos[torch.from_numpy(generator.permutation(len(demos))[:BATCH])]
            self._update(self.losses["hvil"], optimizer, batch.to(self.device))

    def warm_up(self, method: str, batches: list[Demonstrations]) -> None:
        """Make an update, or one of each batch where a walk is compiled: new shapes may compile it again."""
        compiles = method == "hvil-compiled" or (method == "hvil" and self.compiles)
        for batch in batches if compiles else batches[:1]:
            self.measure(method, batch, 0)

    def measure(self, method: str, batch: Demonstrations, seed: int) -> dict[str, float]:
        """Make one update and take it back; return its wall-clock and processor seconds, and its PHP steps."""
        batch = batch.to(self.device)
        modules = nn.ModuleList([self.program, self.guide])
        before = {name: value.clone() for name, value in modules.state_dict().items()}
        pyro.set_rng_seed(seed)
        with self._walk_of(method):
            self._synchronize()
            wall, processor = time.perf_counter(), time.process_time()
            self._update(self.losses[method], self.optimizers[method], batch)
            self._synchronize()
            seconds, processor = time.perf_counter() - wall, time.process_time() - processor
        modules.load_state_dict(before)
        measured = {"update_seconds": seconds, "php_steps": self.php_steps}
        return measured | ({"update_cpu_seconds": processor} if self.device.type == "cpu" else {})

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [*self.program.parameters(), *self.guide.parameters()]
        return torch.optim.Adam(parameters, lr=1e-3)

    def _update(self, loss: nn.Module, optimizer: torch.optim.Optimizer, batch: Demonstrations) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    @contextmanager
    def _walk_of(self, method: str) -> Iterator[None]:
        process = self.guide.process
        held = process.native, process.compile_walk
        process.native = method == "hvil"
        process.compile_walk = method == "hvil-compiled" or (method == "hvil" and self.compiles)
        yield
        process.native, process.compile_walk = held

    def _count(self, _module: nn.Module, _inputs: Any, calls: Tensor) -> None:
        self.php_steps = calls.shape[1]  # of the longest call trace of the batch

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Rows:
    """Collects rows of one device."""

    def __init__(self, device: torch.device):
        self.rows: list[dict[str, Any]] = []
        self.common: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads()}
        if device.type == "cuda":
            # These stay in the file when others are made anew.
            found = {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, "revision": revision()}
            self.common |= found

    def add(self, method: str, metric: str, value: float, seed: int | None, seconds: float, **setting: Any) -> None:
        """Add one row."""
        line = pc.inference.row(method, TASK, metric, value, seed=seed or 0, seconds=seconds, **self.common, **setting)
        self.rows.append(line | {"seed": seed})

    def median(self, method: str, metric: str, **setting: Any) -> float:
        """Return the median over repeats."""
        return float(np.median(select(self.rows, method, metric, **setting)))


def select(rows: list[dict[str, Any]], method: str, metric: str, **setting: Any) -> list[float]:
    """Return the values of one metric in the order of the rows."""
    return [
        item["value"]
        for item in rows
        if (item["method"], item["metric"]) == (method, metric)
        and all(item["setting"].get(key) == value for key, value in setting.items())
    ]


def batches_of(count: int, size: int, min_length: int = 2, max_length: int = 9) -> list[Demonstrations]:
    """Return ``count`` batches of ``size`` traces, from a stream of lists that no training sees."""
    drawn = demonstrations(count * size, DATA_SEED, stream="validation", min_length=min_length, max_length=max_length)
    return [drawn[torch.arange(size) + n * size] for n in range(count)]


def compare_methods(trainer: Trainer, rows: Rows, repeats: int, weights: str, max_length: int) -> None:
    """Add an update by each method, a repeat at a time, and the ratio of the site loop to ours."""
    setting: dict[str, Any] = {"part": "methods", "batch": BATCH, "weights": weights}
    batches = batches_of(repeats, BATCH, max_length=max_length)
    for method in trainer.methods:
        trainer.warm_up(method, batches)
    for repeat, batch in enumerate(batches):
        found = {method: trainer.measure(method, batch, repeat) for method in trainer.methods}
        for method, measured in found.items():
            for metric, value in measured.items():
                rows.add(method, metric, value, repeat, measured["update_seconds"], **setting)
        ours, twin = found["hvil"], found["site-loop"]
        for clock, metric in CLOCKS.items():
            if metric in ours:
                ratio, seconds = twin[metric] / ours[metric], twin["update_seconds"] + ours["update_seconds"]
                rows.add("site-loop", "speed_ratio", ratio, repeat, seconds, clock=clock, **setting)
    for method in trainer.methods:
        seconds, steps = (rows.median(method, m, **setting) for m in ("update_seconds", "php_steps"))
        print(f"{weights:>8} {method:>17} {1e3 * seconds:9.1f} ms an update, {steps:5.0f} PHP steps", flush=True)
    ratio = rows.median("site-loop", "speed_ratio", clock="wall", **setting)
    print(f"{weights:>8} {'site-loop / hvil':>17} {ratio:9.1f}", flush=True)


def measure_growth(trainer: Trainer, rows: Rows, repeats: int, lengths: tuple[int, ...]) -> None:
    """Add updates on lists of one length, a repeat of every length at a time, and how time grows with PHP steps."""
    setting: dict[str, Any] = {"part": "growth", "batch": BATCH, "weights": "trained"}
    data = {n: batches_of(repeats, BATCH, min_length=n, max_length=n) for n in lengths}
    for n in lengths:
        trainer.warm_up("hvil", data[n])
    for repeat in range(repeats):
        for n in lengths:
            measured = trainer.measure("hvil", data[n][repeat], repeat)
            for metric, value in measured.items():
                rows.add("hvil", metric, value, repeat, measured["update_seconds"], length=n, **setting)
    steps = np.array([rows.median("hvil", "php_steps", length=n, **setting) for n in lengths])
    for n, step in zip(lengths, steps, strict=True):
        seconds = rows.median("hvil", "update_seconds", length=n, **setting)
        print(f"lists of {n}: {step:5.0f} PHP steps, {1e3 * seconds:7.1f} ms an update")
    for clock, metric in CLOCKS.items():
        if not select(rows.rows, "hvil", metric, **setting):
            continue
        times = np.array([rows.median("hvil", metric, length=n, **setting) for n in lengths])
        fits = {"linearity_r2": linear_fit(steps, times)[2], "linearity_exponent": power_fit(steps, times)}
        for name, value in fits.items():
            rows.add("hvil", name, value, None, times.sum(), clock=clock, lengths=list(lengths), **setting)
        print(f"{clock} time: " + ", ".join(f"{name} {value:.4f}" for name, value in fits.items()), flush=True)


def linear_fit(steps: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Fit ``seconds = a + b steps``; return a, b and R^2."""
    slope, intercept = np.polyfit(steps, seconds, 1)
    residual = seconds - intercept - slope * steps
    return float(intercept), float(slope), float(1 - residual.var() / seconds.var())


def power_fit(steps: np.ndarray, seconds: np.ndarray) -> float:
    """Fit ``seconds = a + b steps^c`` by least squares of the relative error, a and b positive; return c.

    The intercept is fitted together with the exponent: that of a linear fit would draw the exponent to one.
    """

    def error(exponent: float) -> float:
        columns = np.stack([np.ones_like(steps), (steps / steps.max()) ** exponent], 1) / seconds[:, None]
        both = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)[0]
        if both[0] < 0:  # the best with no intercept
            both = np.array([0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()])
        return float(((columns @ both - 1) ** 2).sum())

    return float(min(np.linspace(0.2, 3.0, 561), key=error))


def measure_throughput(trainer: Trainer, rows: Rows, repeats: int, sizes: tuple[int, ...], max_length: int) -> None:
    """Add updates and traces a second at several batch sizes."""
    for size in sizes:
        setting: dict[str, Any] = {"part": "throughput", "batch": size, "weights": "trained"}
        count = repeats if size <= LARGE_BATCH else min(repeats, LARGE_REPEATS)
        batches = batches_of(count, size, max_length=max_length)
        trainer.warm_up("hvil", batches)
        for repeat, batch in enumerate(batches):
            measured = trainer.measure("hvil", batch, repeat)
            seconds = measured["update_seconds"]
            rates = {"updates_per_second": 1 / seconds, "traces_per_second": size / seconds}
            if trainer.device.type == "cuda":
                rates["kernel_share"] = kernel_seconds(trainer, batch, repeat) / seconds
            for metric, value in (measured | rates).items():
                rows.add("hvil", metric, value, repeat, seconds, **setting)
        updates, traces = (rows.median("hvil", f"{what}_per_second", **setting) for what in ("updates", "traces"))
        print(f"batches of {size:4}: {updates:7.2f} updates, {traces:8.1f} traces a second", flush=True)


def kernel_seconds(trainer: Trainer, batch: Demonstrations, seed: int) -> float:
    """Return how long the kernels of an update run on a GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        trainer.measure("hvil", batch, seed)
    return 1e-6 * sum(event.self_device_time_total for event in profiled.key_averages())


def measure_memory(rows: Rows, arguments: Arguments) -> None:
    """Add the peak memory of a training in a process of its own.

    A process inherits the peak of the one that starts it: to be called while that one is small.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-probe", "--allow-dirty"]
    command += ["--demos", str(arguments.demos), "--memory-updates", str(arguments.memory_updates)]
    start = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = time.perf_counter() - start, int(output.split()[-1])
    setting = {"part": "memory", "batch": BATCH, "updates": arguments.memory_updates}
    rows.add("hvil", "peak_memory_bytes", peak, 0, seconds, **setting)
    print(f"peak memory of a training: {peak / 1e6:.0f} MB", flush=True)


def probe_memory(arguments: Arguments) -> None:
    """Train, and print the peak memory in bytes."""
    Trainer(arguments).train(demonstrations(arguments.demos, 0), arguments.memory_updates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else 1024 * peak)


def measure_processes(rows: Rows, arguments: Arguments) -> None:
    """Add what two processes make of it."""
    script = Path(__file__).with_name("speed_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += ["--allow-dirty"]
    for name in ("repeats", "updates", "max_length", "shared", "curve"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    start = time.perf_counter()
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    seconds = time.perf_counter() - start
    for item in found:
        rows.add("hvil", item["metric"], item["value"], item["seed"], seconds / len(found), **item["setting"])
    print(processes_table(rows.rows), flush=True)


def processes_table(rows: list[dict[str, Any]]) -> str:
    """Return what two processes make of it as a table of docs/scaling.md."""
    found = [item for item in rows if item["setting"].get("part") == "processes"]

    def median(metric: str, **setting: Any) -> float:
        return float(np.median(select(found, "hvil", metric, **setting)))

    lines = ["| | one process | two processes | ratio |", "|---|---|---|---|"]
    for clock, metric in CLOCKS.items():
        one, two = (1e3 * median(metric, processes=count) for count in (1, 2))
        ratio = median("speed_ratio", clock=clock)
        lines.append(f"| update of 64 traces, {clock} time | {one:.0f} ms | {two:.0f} ms | {ratio:.2f} |")
    last = max(item["setting"].get("step", 0) for item in found)
    ends = [np.mean(select(found, "hvil", "loss_per_trace", processes=count, step=last)) for count in (1, 2)]
    lines.append(f"| loss a trace, up to update {last} | {ends[0]:.2f} | {ends[1]:.2f} | |")
    curves = [np.array(select(found, "hvil", "loss_per_trace", processes=count)) for count in (1, 2)]
    mean, error = mean_and_error(curves[1] - curves[0])
    lines.append(f"| loss a trace, difference of whole curves | | {mean:+.3f} ± {error:.3f} | |")
    for numbers in sorted({item["setting"]["numbers"] for item in found if "numbers" in item["setting"]}):
        lines.append(f"| sum of {numbers:,} numbers | | {1e3 * median('sum_seconds', numbers=numbers):.2f} ms | |")
    return "\n".join(lines)


def measure_engines(trainer: Trainer, rows: Rows, arguments: Arguments) -> None:
    """Add what the twins in NumPyro make of it."""

    def make() -> tuple[Any, Any]:
        fresh = Trainer(arguments)
        return fresh.program, fresh.guide

    def update(method: str) -> Callable[[Demonstrations, int], float]:
        return lambda batch, seed: trainer.measure(method, batch, seed)["update_seconds"]

    longest, few = arguments.max_length, max(arguments.repeats // 3, 3)
    small = batches_of(few, BATCH, max_length=longest)
    found = [*speed_engines.agreement(make, batches_of(1, BATCH, max_length=min(4, longest))[0])]
    found += speed_engines.updates(trainer.program, trainer.guide, {}, small, speed_engines.SEEDS)
    engines = {method: update(method) for method in trainer.methods}
    for size in arguments.batches:
        count = arguments.repeats if size == BATCH else few if size <= LARGE_BATCH else LARGE_REPEATS
        batches = batches_of(count, size, max_length=longest)
        for method in engines:
            trainer.warm_up(method, batches)
        found += speed_engines.updates(trainer.program, trainer.guide, engines, batches)
    for item in found:
        rows.add(item.method, item.metric, item.value, item.seed, item.seconds, **item.setting)
    print(engines_table(rows.rows), flush=True)


def engines_table(rows: list[dict[str, Any]]) -> str:
    """Return what the twins make of it as a table of docs/numpyro.md."""
    found = [item for item in rows if item["setting"].get("part") == "engines"]

    def median(method: str, metric: str, **setting: Any) -> float:
        return float(np.median(select(found, method, metric, **setting)))

    sizes = sorted({item["setting"]["batch"] for item in found if item["setting"].get("seeds") == 1})
    names = {
        "site-loop": "a Pyro site a PHP step, `Trace_ELBO`",
        "hvil-tensor-walk": "torch, walk in tensor code",
        "hvil": "torch, native walk",
        "numpyro": "NumPyro, native walk",
    }
    lines = ["| ms a trace, in batches of | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines += ["|---" * (1 + len(sizes)) + "|"]
    for method, name in names.items():
        times = [1e3 * median(method, "update_seconds", batch=size, seeds=1) / size for size in sizes]
        lines.append(f"| {name} | " + " | ".join(f"{time:,.1f}" for time in times) + " |")
    blank = " |" * (len(sizes) - 1)
    many = max(item["setting"]["seeds"] for item in found if "seeds" in item["setting"])
    ratio = median("numpyro", "seeds_ratio", seeds=many)
    lines.append(f"| {many} seeds by `vmap`, against one | {ratio:.1f} times as long |{blank}")
    for precision in ("double", "single"):
        errors = [median("numpyro", f"{what}_difference", precision=precision) for what in ("elbo", "gradient")]
        lines.append(
            f"| {precision} precision, ELBO and gradients apart by | {errors[0]:.0e}, {errors[1]:.0e} |{blank}"
        )
    return "\n".join(lines)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return a mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


# -- the plot ----------------------------------------------------------------------------------------------------------


def plot(path: Path, rows: list[dict[str, Any]], device: str) -> None:
    """Draw time against PHP steps with its line, and the methods' times."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    growth = {"part": "growth", "device": device}
    lengths = sorted({item["setting"]["length"] for item in rows if "length" in item["setting"]})
    steps = np.array([np.median(select(rows, "hvil", "php_steps", length=n, **growth)) for n in lengths])
    times = [1e3 * np.array(select(rows, "hvil", "update_seconds", length=n, **growth)) for n in lengths]
    medians = np.array([np.median(time) for time in times])
    every = [np.array(select(rows, "hvil", "php_steps", length=n, **growth)) for n in lengths]
    left.plot(np.concatenate(every), np.concatenate(times), ".", color="C0", alpha=0.25, label="updates")
    left.plot(steps, medians, "o", color="C0", label="medians, a list length each")
    intercept, slope, r2 = linear_fit(steps, medians)
    ends = np.array([0, steps.max()])
    left.plot(
        ends,
        intercept + slope * ends,
        color="C1",
        label=f"{intercept:.1f} ms + {1e3 * slope:.1f} µs a step, $R^2$ = {r2:.3f}",
    )
    left.set(xlabel="PHP steps", ylabel="update of 4 traces (ms)", xlim=(0, None))
    left.set_ylim(0, 1.5 * max(medians.max(), intercept + slope * steps.max()))
    left.legend(fontsize="small", loc="upper left")
    left.set_title(f"Growth with call traces, lists of {lengths[0]} to {lengths[-1]}", loc="left")

    shown: dict[str, list[float]] = defaultdict(list)
    for method in METHODS:
        shown[method] = select(rows, method, "update_seconds", part="methods", weights="trained", device=device)
    names = [method for method in METHODS if shown[method]][::-1]
    bars = right.barh(names, [1e3 * np.median(shown[name]) for name in names], color="C0")
    right.bar_label(bars, fmt="{:.0f} ms", padding=3)
    right.axvline(1e3 * TARGET_SECONDS, color="C3", linestyle="--", label=f"target, {1e3 * TARGET_SECONDS:.0f} ms")
    right.set(xlabel="update of 4 traces (ms)", xscale="log")
    right.set_xlim(1, 5 * max(1e3 * max(values) for values in shown.values() if values))
    right.legend(fontsize="small", loc="upper right")
    right.set_title(f"Methods, on the same traces ({device})", loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Measure, write the results, plot."""
    torch.set_num_threads(1)
    with pyro.validation_enabled(False):
        if arguments.memory_probe:
            probe_memory(arguments)
            return
        device, chosen = torch.device(arguments.device), arguments.only or get_args(Part)
        rows, demos = Rows(device), demonstrations(arguments.demos, 0)
        if device.type == "cpu" and "memory" in chosen:
            measure_memory(rows, arguments)
        if device.type == "cpu" and "processes" in chosen:
            measure_processes(rows, arguments)
        trainer = Trainer(arguments)
        few = max(1, arguments.repeats // 3)
        repeats, longest = arguments.repeats, arguments.max_length
        parts: list[tuple[Part | None, str, Callable[[], None]]] = [
            ("methods", "initial weights", lambda: compare_methods(trainer, rows, few, "initial", longest)),
            (None, "short training", lambda: trainer.train(demos, arguments.updates)),
            ("methods", "trained weights", lambda: compare_methods(trainer, rows, repeats, "trained", longest)),
            ("growth", "growth", lambda: measure_growth(trainer, rows, repeats, arguments.lengths)),
            (
                "throughput",
                "throughput",
                lambda: measure_throughput(trainer, rows, repeats, arguments.batches, longest),
            ),
            ("engines", "engines", lambda: measure_engines(trainer, rows, arguments)),
        ]
        needed = {part for part, _, _ in parts} & {*chosen}
        for part, name, measure in parts:
            if needed and (part is None or part in chosen):
                start = time.perf_counter()
                measure()
                print(f"-- {name}: {time.perf_counter() - start:.0f} s", flush=True)
    others = [item for item in read_rows(arguments.out) if item["setting"]["device"] != device.type]
    command = shlex.join(["python", *sys.argv])
    if arguments.only and arguments.out.exists():  # what stays says which revision it is of
        old = json.loads(arguments.out.read_text())
        stay = [item for item in old["rows"] if item["setting"]["device"] == device.type]
        for item in stay:
            if item["setting"].get("part") not in chosen:
                others.append(item | {"setting": {"revision": old["revision"]} | item["setting"]})
        command = old["command"] if command in old["command"].split("; ") else f"{old['command']}; {command}"
    both = sorted(others + rows.rows, key=lambda item: item["setting"]["device"])
    write_results(arguments.out, "speed", both, command=command)
    shown = "cpu" if any(item["setting"]["device"] == "cpu" for item in both) else device.type
    if any(item["setting"].get("part") == "growth" for item in both):
        plot(arguments.out.with_suffix(".png"), both, shown)
    if arguments.out == Arguments.out and device.type == "cpu":
        for part, page, table in (("processes", PAGE, processes_table), ("engines", TWINS_PAGE, engines_table)):
            if part in chosen:
                page.write_text(with_table(page.read_text(), table(both)))


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
