"""Remake results/programs.json: programs found in two more domains of the authors, beside recurrent networks.

    python benchmarks/programs.py                        # everything; runs that are already there are kept
    python benchmarks/programs.py --domains NanoCraft --methods hvil --demos 16 --seeds 0 --updates 500
    python benchmarks/programs.py --jobs 0               # only draw the plot and print the table

Long-hand addition and NanoCraft of Fox et al. (ICLR 2018), learnt from traces of which none is annotated unless the
method says so. Scored on held-out traces of the same kind and on larger instances than any seen in training:
`exact_match`, and `boundary_f1` against the teacher's, of the program's own greedy calls and of the likeliest given the
trace. A program has several starts, in every second of which procedures begin as short ones; the one of the least
training loss goes on. A run that was stopped goes on from its checkpoint under RUNS; several runs at once are several
processes of one thread.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
import tyro
from torch import nn

import pyrocontrol as pc
from pyrocontrol._files import replacing
from pyrocontrol.envs import (
    ADDITION_ACTIONS,
    ADDITION_TREE,
    NANO_CRAFT_ACTIONS,
    NANO_CRAFT_TREE,
    Demonstrations,
    addition,
    nano_craft,
)
from pyrocontrol.inference import read_rows, row, select, summary, write_results
from training_runs import command_line, verify_known

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
# One test set for every seed and setting, drawn apart from all training sets.
TEST_SEED, TEST_TRACES = 1_000, 100


@dataclass
class Domain:
    """What is learnt.

    Attributes:
        draw: `demonstrations` of its module.
        tree: the teacher's procedures.
        generic: a call graph with as many levels that is not tuned to the task.
        obs_size: numbers of an observation.
        larger: what `draw` is told for instances beyond those of training, by the setting of their rows.
        demos: numbers of demonstrations to learn from.
        encoder: what the procedures see of an observation.
        hidden: layers of each procedure.
        rates: learning rates of the encoder and of the rest.
    """

    draw: Callable[..., Demonstrations]
    tree: pc.models.ProcedureTree
    generic: pc.models.ProcedureTree
    obs_size: int
    larger: dict[int, dict[str, int]]
    demos: tuple[int, ...]
    encoder: Callable[[], nn.Module | None] = lambda: None
    hidden: tuple[int, ...] = (16,)
    rates: tuple[float, float] = (4e-3, 4e-3)


@dataclass
class Method:
    """A way of learning.

    Attributes:
        objective: of a program, a name in `OBJECTIVES`; None for a recurrent network.
        tree: the teacher's call graph, or the generic one.
        annotated: how many of the traces show the teacher's calls.
        sees_previous: whether the recurrent network sees the action before.
    """

    objective: str | None = None
    tree: str = "teacher"
    annotated: int = 0
    sees_previous: bool = False


DOMAINS = {
    "Addition": Domain(
        addition.demonstrations,
        pc.models.ProcedureTree.parse(ADDITION_TREE),
        pc.models.ProcedureTree.layered(ADDITION_ACTIONS, (2, 2)),
        44,
        {length: {"min_length": length, "max_length": length} for length in (20, 100)},
        (40, 80, 160),
        # A table of digit sums, 110 of which no two follow from each other, is more to learn than any procedure else.
        lambda: pc.models.FieldEncoder(addition.OBSERVATION, embed=2),
        (32, 32),
        (1e-2, 4e-3),
    ),
    "NanoCraft": Domain(
        nano_craft.demonstrations,
        pc.models.ProcedureTree.parse(NANO_CRAFT_TREE),
        pc.models.ProcedureTree.layered(NANO_CRAFT_ACTIONS, (4, 4)),
        5,
        {size: {"size": size} for size in (8, 12)},
        (8, 16, 32, 64),
    ),
}
METHODS = {
    "hvil": Method("stepwise"),
    "hvil-exact": Method("exact"),
    "hvil-generic": Method("stepwise", "generic"),
    "hvil-exact-generic": Method("exact", "generic"),
    "hvil-annotated": Method("stepwise", annotated=4),
    "hvil-exact-annotated": Method("exact", annotated=4),
    "all-annotated": Method("stepwise", annotated=1_000_000),
    "rnn": Method(),
    "rnn-full": Method(sees_previous=True),
}


@dataclass
class Arguments:
    """Which runs to make."""

    domains: tuple[str, ...] = ("NanoCraft", "Addition")
    """which domains"""
    methods: tuple[str, ...] = ("hvil", "rnn-full", "rnn", "all-annotated")
    """which methods"""
    demos: tuple[int, ...] = ()
    """numbers of demonstrations; by default those of each domain"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """of the training traces, the initial weights and the batches"""
    updates: int = 2_000
    """batches of 4 traces, of the start that goes on"""
    sparsity: float = 0.3
    """rate of the prior on what procedures see"""
    starts: int = 4
    """initial weights to try of a program; the one of the least loss goes on"""
    trial: int = 400
    """batches of every start"""
    jobs: int = 2
    """runs side by side; 0 makes none"""
    out: Path = HERE / "results" / "programs.json"
    """results file"""
    runs: Path = HERE / "runs" / "programs"
    """where runs keep their checkpoints"""


def stepwise(program: pc.models.ControlProgram) -> nn.Module:
    """Return the bound with an analytic KL for every step, and its guide."""
    return pc.inference.StepwiseKL_ELBO()(program, pc.guides.CallStackGuide(program))


def exact(program: pc.models.ControlProgram) -> nn.Module:
    """Return the exact likelihood, which needs no guide."""
    return pc.inference.ExactLikelihood()(program)


OBJECTIVES: dict[str, Callable[[pc.models.ControlProgram], nn.Module]] = {"stepwise": stepwise, "exact": exact}


@dataclass
class Run:
    """One run: its domain, method, number of demonstrations, seed, and what all runs share."""

    domain: str
    method: str
    demos: int
    seed: int
    shared: Arguments = field(repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What its rows are found by."""
        shared = self.shared
        return (
            self.domain,
            self.method,
            self.demos,
            self.seed,
            shared.updates,
            shared.sparsity,
            shared.starts,
            shared.trial,
        )


def key_of(item: dict[str, Any]) -> tuple[Any, ...]:
    """Return the key of the run that a row is of."""
    setting = item["setting"]
    chosen = setting["updates"], setting["sparsity"], setting["starts"], setting["trial"]
    return item["task"], item["method"], setting["demos"], item["seed"], *chosen


def make(run: Run) -> list[dict[str, Any]]:
    """Learn and score; return the rows, none if the run was stopped."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    domain, method, shared = DOMAINS[run.domain], METHODS[run.method], run.shared
    traces = training_traces(domain, method, run)

    def start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Initial weights; in every second program, procedures begin as short ones."""
        pyro.set_rng_seed(seed)
        policy, loss = build(domain, method, run, return_bias=2.0 * ((seed - run.seed) % 2))
        encoder = list(policy.encoder.parameters())
        rest = [p for p in loss.parameters() if not any(p is other for other in encoder)]
        groups = [{"params": part, "lr": lr} for part, lr in zip((encoder, rest), domain.rates, strict=True) if part]
        if method.objective is None:  # as the BubbleSort benchmark's networks
            groups = [{"params": list(loss.parameters()), "lr": 1e-3, "weight_decay": 1e-3}]
        return loss, torch.optim.Adam(groups)

    best = pc.inference.fit_best(
        start,
        traces,
        starts=shared.starts if method.objective else 1,
        trial_steps=shared.trial,
        steps=shared.updates,
        batch_size=min(4, run.demos),
        seed=run.seed,
        out=shared.runs / "-".join(map(str, run.key)),
        progress=False,
    )
    result, pair = best.result, best.trained
    assert isinstance(pair, tuple)
    policy: Any = pair[0].model
    if result.interrupted:
        return []
    setting = {
        "demos": run.demos,
        "updates": shared.updates,
        "sparsity": shared.sparsity,
        "starts": shared.starts,
        "trial": shared.trial,
        "tree": method.tree if method.objective else None,
        "annotated": min(method.annotated, run.demos),
    }

    def line(metric: str, value: float, **more: Any) -> dict[str, Any]:
        return row(run.method, run.domain, metric, value, seed=run.seed, seconds=result.seconds, **setting, **more)

    rows = []
    kinds: list[tuple[dict[str, int], dict[str, int]]] = [({}, {})]
    kinds += [({"larger": number}, options) for number, options in domain.larger.items()]
    for more, options in kinds:
        test = domain.draw(TEST_TRACES, TEST_SEED, stream="test", annotate=True, **options)
        rows.append(line("exact_match", pc.inference.exact_match(policy, test), **more))
        if isinstance(policy, pc.models.ControlProgram) and method.tree == "teacher":
            found = {"own": policy.greedy_calls(test)}
            if not more:  # the sums over long traces take long
                found["posterior"] = pc.inference.CallStackPosterior(policy, test).likeliest()
            for of, calls in found.items():
                scores = pc.inference.boundary_f1(calls, teacher_calls(policy, test))
                rows += [line(metric, value, of=of, **more) for metric, value in scores.items()]
    if result.losses:
        rows.append(line("loss", result.losses[-1][1]))
    return rows


def training_traces(domain: Domain, method: Method, run: Run) -> Demonstrations:
    """Return the training traces, the first few of them annotated with their calls if the method says so."""
    traces = domain.draw(run.demos, run.seed, annotate=method.annotated > 0)
    if traces.calls is None:
        return traces
    calls = traces.calls.clone()
    calls[method.annotated :] = torch.tensor([-1.0] + [0.0] * (calls.shape[-1] - 1))
    return traces.replace(calls=calls)


def build(domain: Domain, method: Method, run: Run, return_bias: float) -> tuple[Any, nn.Module]:
    """Return what acts, a program or a recurrent network, and its loss."""
    if method.objective is None:
        actions = len(domain.tree.actions)
        network = pc.models.RecurrentController(domain.obs_size, actions, see_previous_action=method.sees_previous)
        loss: Any = pyro.infer.Trace_ELBO()
        return network, loss(network, network.guide)
    program = pc.models.ControlProgram(
        domain.tree if method.tree == "teacher" else domain.generic,
        domain.obs_size,
        hidden=domain.hidden,
        activation="tanh",
        encoder=domain.encoder(),
        sparsity=run.shared.sparsity,
        unpenalized=("last",),
        num_traces=run.demos,
        return_bias=return_bias,
    )
    return program, OBJECTIVES[method.objective](program)


def teacher_calls(program: pc.models.ControlProgram, traces: Demonstrations) -> list[pc.models.CallTrace]:
    """Return the teacher's own calls."""
    assert traces.calls is not None
    return pc.models.CallTrace.batch(program.tree, traces.calls.clamp(min=0))


def table(rows: list[dict[str, Any]]) -> str:
    """Return exact matches, on the kind trained on and on larger instances, and boundaries, as a Markdown table."""
    lines = [
        "| domain | method | demonstrations | exact match | larger | boundary F1, own calls | posterior |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, domain in DOMAINS.items():
        for method in METHODS:
            for demos in sorted({item["setting"]["demos"] for item in rows if item["method"] == method}):
                cells = []
                for metric, setting in (
                    ("exact_match", {"larger": None}),
                    ("exact_match", {"larger": min(domain.larger)}),
                    ("boundary_f1", {"larger": None, "of": "own"}),
                    ("boundary_f1", {"larger": None, "of": "posterior"}),
                ):
                    mean, half, seeds = summary(rows, method, metric, task=name, demos=demos, **setting)
                    interval = f" ± {half:.2f}" if seeds >= 4 else ""
                    cells.append(f"{mean:.2f}{interval} ({seeds})" if seeds else "")
                if any(cells):
                    lines.append(f"| {name} | {method} | {demos} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw exact match and boundary F1 against demonstrations, a row a domain, with 95% intervals over seeds."""
    names = [name for name in DOMAINS if any(item["task"] == name for item in rows)]
    figure, grid = plt.subplots(len(names), 2, figsize=(10, 3.4 * len(names)), layout="constrained", squeeze=False)
    shown = [method for method in METHODS if any(item["method"] == method for item in rows)]
    for axes_row, name in zip(grid, names, strict=True):
        counts = sorted({item["setting"]["demos"] for item in rows if item["task"] == name})
        for axes, metric in zip(axes_row, ("exact_match", "boundary_f1"), strict=True):
            setting = {"larger": None} | ({"of": "own"} if metric == "boundary_f1" else {})
            for number, method in enumerate(shown):
                points: list[tuple[float, float, float]] = []
                for demos in counts:
                    mean, half, seeds = summary(rows, method, metric, task=name, demos=demos, **setting)
                    if seeds:
                        place = demos * 1.02 ** (number - len(shown) / 2)
                        # An interval from fewer than four seeds says nothing; the seeds themselves are shown.
                        points.append((place, mean, half if seeds >= 4 else float("nan")))
                        values = select(rows, method, metric, task=name, demos=demos, **setting)
                        axes.scatter([place] * seeds, values, s=6, color=f"C{number}", alpha=0.5)
                if points:
                    places, means, halves = zip(*points, strict=True)
                    axes.errorbar(places, means, halves, marker="o", capsize=3, label=method, color=f"C{number}")
            axes.set(xscale="log", ylim=(-0.03, 1.05), xlabel="demonstrations", ylabel=metric.replace("_", " "))
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_xlim(counts[0] / 1.5, counts[-1] * 1.5)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
        axes_row[0].legend(fontsize=8)
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Make the runs that are missing, writing the results file after each; then the plot and the table."""
    verify_known("domain", arguments.domains, [*DOMAINS])
    verify_known("method", arguments.methods, [*METHODS])
    rows = read_rows(arguments.out)
    there = {key_of(item) for item in rows}
    # Seed by seed, so that what there is at any time is balanced.
    runs = [
        Run(domain, method, demos, seed, replace(arguments))
        for seed in arguments.seeds
        for domain in arguments.domains
        for demos in arguments.demos or DOMAINS[domain].demos
        for method in arguments.methods
    ]
    runs = [run for run in runs if run.key not in there]
    if arguments.jobs:
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(make, run): run for run in runs}
            for done in as_completed(waiting):
                found = done.result()
                main_metrics = [item for item in found if "larger" not in item["setting"]]
                scores = ", ".join(f"{item['metric']} {item['value']:.2f}" for item in main_metrics)
                seconds = f"{found[0]['seconds']:.0f} s" if found else "stopped"
                print(f"{waiting[done]}: {scores} ({seconds})", flush=True)
                if found:
                    rows += found
                    write_results(arguments.out, "programs", rows, command="python benchmarks/programs.py")
    if rows:
        plot(rows, arguments.out.with_suffix(".png"))
        print(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
