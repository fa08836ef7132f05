"""Discover the program behind unlabelled traces of BubbleSort.

Reproduces the experiment of Fox, Shin, Paul, Zou, Song, Goldberg, Abbeel and Stoica, "Hierarchical Imitation Learning
via Variational Inference of Control Programs" (2018), Section 5: six procedures on four levels and a call stack that
nobody has labelled, learnt from observation-action traces, beside a recurrent network trained end to end.

    python examples/bubble_sort.py --method hvil-exact --demos 40 --out out/bubble_sort

writes OUT/result.json (accuracy on held-out traces, and whether the structure is the teacher's), OUT/checkpoint.pt,
OUT/learning_curve.png and, for programs, OUT/call_stack.png: what the posterior says of a test trace, the likeliest
call stack, and the teacher's own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import matplotlib
import pyro
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import ACTIONS, BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

# What an observation holds: the digits under the two pointers, one vocabulary, and whether each is at an edge.
OBSERVATION = (("digit", 10), (None, 1), ("digit", 10), (None, 1))
NAMES = ("digit 1", "edge 1", "digit 2", "edge 2")
SPARSITY = {"hvil": 0.3, "hvil-exact": 3.0}
UNPENALIZED = {"hvil": (), "hvil-exact": ("last",)}
RETURN_BIAS = {"hvil": 0.0, "hvil-exact": 2.0}
# Of the digits' table and of the rest. Exact gradients have no noise of sampled calls, and bear larger steps.
RATES = {"hvil": (4e-3, 1e-3), "hvil-exact": (1e-2, 3e-3)}

# A call graph that knows the number of levels and nothing else of the teacher's program. Exact sums take far less time
# if only the root counts its steps.
GENERIC_TREES = {
    method: pc.models.ProcedureTree.layered(ACTIONS, (2, 2, 2), argument="n: real[1]", counts=method == "hvil")
    for method in ("hvil", "hvil-exact")
}

# One test set for every seed and setting, drawn apart from all training sets.
TEST_SEED, TEST_TRACES = 1_000, 100
LONGER = (10, 15, 20)

ELBOS = {
    "stepwise": lambda: pc.inference.StepwiseKL_ELBO(),
    "stepwise-full": lambda: pc.inference.StepwiseKL_ELBO(score="full"),
    "trace": lambda: pyro.infer.Trace_ELBO(),
}


@dataclass
class Arguments:
    """Learn BubbleSort from demonstrations."""

    method: Literal["hvil", "hvil-exact", "rnn", "rnn-full"] = "hvil-exact"
    """hvil: a control program by a variational bound; hvil-exact: by its exact likelihood; rnn: the paper's baseline;
    rnn-full: it also sees n and the previous action"""
    task: Literal["BubbleSort", "BubbleSortMove"] = "BubbleSort"
    """BubbleSortMove (hvil only): one action move(pointer, direction), procedures that pass the direction on"""
    tree: Literal["teacher", "generic"] = "teacher"
    """the call graph of hvil: that of the teacher's program, or one that is not tuned to the task"""
    procedures: Literal["shared", "paper"] = "shared"
    """networks of hvil: shared digit embedding and sparse inputs, or one-hot inputs as in the paper"""
    guide: Literal["bilstm", "lstm", "transformer"] = "bilstm"
    """what the guide of hvil reads traces with"""
    elbo: Literal["stepwise", "stepwise-full", "trace"] = "stepwise"
    """the bound: analytic per-step KL with the sequential or the full score function, or Pyro's own"""
    demos: int = 40
    """training traces (10 to 160 in the paper)"""
    annotated: int = 0
    """how many of the training traces show the teacher's calls as well (hvil)"""
    seed: int = 0
    """of the training traces, the initial weights and the batches"""
    updates: int = 12_500
    """batches of 4 traces"""
    starts: int = 1
    """initial weights to try, for TRIAL updates on the shorter half of the traces; the one of the least loss goes on"""
    trial: int = 500
    """updates of every start, if there are several"""
    clip: float | None = None
    """greatest norm of the gradient; 1 steadies the recurrent networks, whose loss spikes late in training"""
    engine: Literal["pyro", "numpyro"] = "pyro"
    """what trains hvil with the stepwise bound; numpyro takes whole runs of updates in one compiled call"""
    device: str = "cpu"
    """where to train"""
    out: Path = Path("out/bubble_sort")
    """folder for results; a run that was stopped goes on from its checkpoint"""
    demo: bool = False
    """sort a fresh list at the end, printing the call tree"""


def main(arguments: Arguments) -> None:
    """Train, evaluate, plot."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    pyro.enable_validation(False)
    start = time.perf_counter()
    train = training_traces(arguments)
    result, (loss, _) = learn(arguments, train)
    if result.interrupted:
        print(f"stopped after {result.step} updates; the same command goes on from there")
        return
    policy = loss.cpu().model
    program = policy if arguments.method.startswith("hvil") else None
    rows = evaluate(arguments, policy, loss, result.seconds)
    pc.inference.write_results(arguments.out / "result.json", "bubble_sort", rows)
    if result.losses:
        plot_learning_curve(arguments.out / "learning_curve.png", result, arguments)
    for item in rows:
        print(f"{item['metric']:>20} {item['value']:6.3f}  {item['setting']}")
    if program is not None:
        if arguments.tree == "teacher":
            plot_call_stacks(arguments.out / "call_stack.png", program, arguments.task)
        if arguments.demo:
            print(f"\n{program.describe(train, inputs=NAMES if arguments.procedures == 'shared' else None)}")
            sort_a_list(program, arguments.task)
    print(f"done in {time.perf_counter() - start:.0f} s; results in {arguments.out}")


def learn(arguments: Arguments, train: pc.envs.Demonstrations) -> tuple[Any, Any]:
    """Return how the training went, and the loss and optimiser that it trained."""

    def make(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        pyro.set_rng_seed(seed)
        loss = build(arguments)
        return loss, torch.optim.Adam(parameter_groups(arguments, loss), lr=1e-3)

    given: dict[str, Any] = {
        "steps": arguments.updates,
        "batch_size": min(4, arguments.demos),
        "seed": arguments.seed,
        "out": arguments.out,
        "device": arguments.device,
        "clip": arguments.clip,
    }
    if arguments.engine == "numpyro":
        pair = make(arguments.seed)
        return learn_in_numpyro(arguments, pair[0], train), pair
    if arguments.starts == 1:
        pair = make(arguments.seed)
        return pc.inference.fit(pair, train, **given), pair
    shorter = train[train.lengths.argsort()[: max((len(train) + 1) // 2, given["batch_size"])]]
    given |= {"starts": arguments.starts, "trial_steps": arguments.trial, "trial_data": shorter}
    best = pc.inference.fit_best(make, train, **given)
    losses = ", ".join(f"{one:.2f}" for one in best.losses)
    print(
        f"start {best.start} of {arguments.starts} goes on; losses per trace after {arguments.trial} updates: {losses}"
    )
    return best.result, best.trained


def learn_in_numpyro(arguments: Arguments, loss: Any, train: pc.envs.Demonstrations) -> Any:
    """Train the twins of model and guide, with the same rates and batches, and give the weights back."""
    if arguments.method != "hvil" or arguments.elbo != "stepwise" or arguments.starts > 1 or arguments.clip:
        raise SystemExit("--engine numpyro trains --method hvil with --elbo stepwise, one start and no clipping")
    import optax
    from numpyro.infer import SVI
    from numpyro.optim import optax_to_numpyro

    from pyrocontrol.inference import twins

    program, guide = twins.to_numpyro(loss.model), twins.to_numpyro(loss.guide)
    table, rest = RATES["hvil"] if arguments.procedures == "shared" else (1e-3, 1e-3)
    decay = 1e-3 if arguments.procedures == "paper" else 0.0
    rates = {
        name: optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))
        for name, rate in {"table": table, "rest": rest}.items()
    }
    kinds = optax.multi_transform(
        rates, lambda found: {name: "table" if "encoder.tables" in name else "rest" for name in found}
    )
    svi = SVI(program.model, guide, optax_to_numpyro(kinds), twins.StepwiseKL_ELBO())
    batch = min(4, arguments.demos)
    found = twins.fit(
        svi,
        twins.as_arrays(train),
        steps=arguments.updates,
        batch_size=batch,
        seeds=(arguments.seed,),
        out=arguments.out,
    )
    twins.from_numpyro(found.params[0], loss.model, "program")
    twins.from_numpyro(found.params[0], loss.guide, "guide")
    means = [(step, float(found.losses[0, step - 50 : step].mean())) for step in range(50, arguments.updates + 1, 50)]
    return pc.inference.FitResult(arguments.updates, means, found.seconds, False, [])


def training_traces(arguments: Arguments) -> pc.envs.Demonstrations:
    """Return the training traces, the first few of them annotated with their calls if asked."""
    move = arguments.task == "BubbleSortMove"
    traces = demonstrations(arguments.demos, arguments.seed, move=move, annotate=arguments.annotated > 0)
    if traces.calls is None:
        return traces
    calls = traces.calls.clone()
    calls[arguments.annotated :] = torch.tensor([-1.0] + [0.0] * (calls.shape[-1] - 1))
    return traces.replace(calls=calls)


def build(arguments: Arguments) -> Any:
    """Return the loss as a module; its model is the program or the recurrent controller."""
    if arguments.method.startswith("hvil"):
        tree: str | pc.models.ProcedureTree = (
            BUBBLE_SORT_MOVE_TREE if arguments.task == "BubbleSortMove" else BUBBLE_SORT_TREE
        )
        if arguments.tree == "generic":
            if arguments.task != "BubbleSort":
                raise SystemExit("the generic call graph has actions without arguments: --task BubbleSort")
            tree = GENERIC_TREES[arguments.method]
        if arguments.procedures == "paper":
            program = pc.models.ControlProgram(tree, obs_size=22)
        else:
            program = pc.models.ControlProgram(
                tree,
                obs_size=22,
                argument_hidden=(16,),
                activation="tanh",
                encoder=pc.models.FieldEncoder(OBSERVATION),
                sparsity=SPARSITY[arguments.method],
                unpenalized=UNPENALIZED[arguments.method],
                num_traces=arguments.demos,
                return_bias=RETURN_BIAS[arguments.method],
            )
        if arguments.method == "hvil-exact":
            return pc.inference.ExactLikelihood()(program)
        guide = pc.guides.CallStackGuide(program, arguments.guide, compile=arguments.device != "cpu")
        return ELBOS[arguments.elbo]()(program, guide)
    if arguments.task != "BubbleSort":
        raise SystemExit("the recurrent baseline models actions without arguments: --task BubbleSort")
    full = arguments.method == "rnn-full"
    controller = pc.models.RecurrentController(22, len(ACTIONS), task_size=1, see_task=full, see_previous_action=full)
    elbo: Any = pyro.infer.Trace_ELBO()
    return elbo(controller, controller.guide)


def parameter_groups(arguments: Arguments, loss: Any) -> list[dict[str, Any]]:
    """Return all parameters with their weight decay and learning rate.

    The paper decays all weights. Where the digits share a table, the sparsity prior takes the place of that, and the
    table, of which every trace shows only a few relations, is learnt at a higher rate than the procedures that use it.
    """
    if not arguments.method.startswith("hvil") or arguments.procedures == "paper":
        return [{"params": list(loss.parameters()), "weight_decay": 1e-3}]
    encoder = list(loss.model.encoder.parameters())
    rest = [p for p in loss.parameters() if not any(p is other for other in encoder)]
    of_table, of_rest = RATES[arguments.method]
    return [{"params": encoder, "lr": of_table}, {"params": rest, "lr": of_rest}]


def evaluate(arguments: Arguments, policy: Any, loss: Any, seconds: float) -> list[dict[str, Any]]:
    """Return the rows: exact matches on the paper's mix of lengths and on longer lists, and boundaries."""
    setting: dict[str, Any] = {"demos": arguments.demos, "updates": arguments.updates}
    program = policy if arguments.method.startswith("hvil") else None
    if program is not None:
        setting |= {"tree": arguments.tree, "procedures": arguments.procedures, "annotated": arguments.annotated}
    if arguments.method == "hvil":
        setting |= {"guide": arguments.guide, "elbo": arguments.elbo}
    if arguments.starts > 1:
        setting |= {"starts": arguments.starts, "trial": arguments.trial}

    def line(metric: str, value: float, **more: Any) -> dict[str, Any]:
        return pc.inference.row(
            arguments.method,
            arguments.task,
            metric,
            value,
            seed=arguments.seed,
            seconds=seconds,
            **setting,
            **more,
        )

    move = arguments.task == "BubbleSortMove"
    test = demonstrations(TEST_TRACES, TEST_SEED, stream="test", annotate=True, move=move)
    rows = [line("exact_match", pc.inference.exact_match(policy, test))]
    for length in LONGER:
        longer = demonstrations(TEST_TRACES, TEST_SEED, stream="test", min_length=length, max_length=length, move=move)
        rows.append(line("exact_match", pc.inference.exact_match(policy, longer), length=length))
    if program is not None and arguments.tree == "teacher":
        # The program's own calls along the observations; the likeliest that take the actions; and what a guide says.
        found = {
            "own": program.greedy_calls(test),
            "posterior": pc.inference.CallStackPosterior(program, test).likeliest(),
        }
        if loss.guide is not None:
            found["guide"] = loss.guide.infer(test)
        teacher = teacher_calls(program, test)
        for of, calls in found.items():
            more = {} if of == "guide" else {"of": of}
            rows += [line(metric, value, **more) for metric, value in pc.inference.boundary_f1(calls, teacher).items()]
    return rows


def teacher_calls(program: Any, traces: Any) -> list[pc.models.CallTrace]:
    """Return the teacher's own call traces."""
    return pc.models.CallTrace.batch(program.tree, traces.calls.clamp(min=0))


def plot_learning_curve(path: Path, result: Any, arguments: Arguments) -> None:
    """Draw the negative ELBO of the training batches."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(*zip(*result.losses, strict=True), linewidth=1)
    positive = all(loss > 0 for _, loss in result.losses)
    axes.set(xlabel="update", ylabel="loss of 4 traces (nats)", yscale="log" if positive else "linear")
    axes.set_title(f"{arguments.method}, {arguments.demos} demonstrations, seed {arguments.seed}", loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_call_stacks(path: Path, program: Any, task: str) -> None:
    """Draw what the posterior says of a short test trace, its likeliest call stack, and the teacher's."""
    move = task == "BubbleSortMove"
    test = demonstrations(1, TEST_SEED, stream="test", min_length=4, max_length=4, annotate=True, move=move)
    posterior, teacher = pc.inference.CallStackPosterior(program, test), teacher_calls(program, test)[0]
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 7), sharex=True, layout="constrained")
    actions = int(test.lengths[0]) - 1
    pc.models.plot_posterior(top, program.tree, posterior.on_stack[0, :actions])
    top.set_title("how probable it is that a procedure runs, given observations and actions alone", loc="left")
    pc.models.plot_call_stack(middle, posterior.likeliest()[0], title="the likeliest call stack", legend=False)
    pc.models.plot_call_stack(bottom, teacher, title="the teacher's own")
    bottom.set_xlabel("environment step")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def sort_a_list(program: Any, task: str) -> None:
    """Run the learnt program in the environment."""
    env = gymnasium.make(f"pyrocontrol/{task}-v0")
    digits = [7, 3, 9, 1, 4]
    run = program.execute(env, options={"list": digits}, max_steps=2_000)
    after = run.info["list"].tolist()
    print(f"\n{run.calls.tree_text(max_lines=60)}\n")
    print(f"before: {digits}\nafter:  {after}  ({len(run.actions)} actions)")
    outcome = "sorted" if after == sorted(digits) else "not sorted"
    print(f"{outcome}; the program {'returned' if run.finished else 'did not return'} by itself")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
