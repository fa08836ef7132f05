"""Native walks and sums of random trees under the sanitizers of addresses and of undefined behaviour.

    python tests/helpers/sanitized_walks.py --count 300 --first 0      # three hundred trees

A child process, in which the library is compiled with the sanitizers, walks every tree several times: networks of
random sizes; contexts of no row, of one step, of strided, negated and NaN numbers; actions and tables out of range.
It also sums over the call stacks of traces of a random tree, and draws from them, some with NaN. The first thing that a
sanitizer finds ends it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from small_programs import random_case

import pyrocontrol
from pyrocontrol import _native
from pyrocontrol.models import CallStack, CallStackContext, ProcedureTree, Sequence
from pyrocontrol.models.programs import call_stack_native
from pyrocontrol.models.programs.procedure_tree import Action, Field, Procedure

_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC", "-lm")


def available() -> bool:
    """Whether there is a gcc with both sanitizers."""
    return sys.platform == "linux" and shutil.which("gcc") is not None and "/libasan.so" in _runtimes()


def campaign(count: int, first: int = 0, source: Path = call_stack_native._SOURCE) -> dict[str, int]:
    """Walk ``count`` trees, numbered from ``first``; return how many there were, and what came of their walks.

    Args:
        count: of trees.
        first: number of a tree, which it is drawn by.
        source: the C file; another than the library's own, to see that what is wrong in it is found.

    Returns:
        ``trees``; of their walks, those ``walked``, ``stuck`` without a possible choice, ``refused`` with an error
        and ``left`` to tensor code; traces ``summed`` over, and ``undrawn`` ones, of NaN; and ``reports`` of the
        sanitizers, at most 1, as it ends the campaign.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "PYTHONPATH": str(Path(pyrocontrol.__file__).resolve().parents[1]),
            "CC": "gcc",
            "LD_PRELOAD": _runtimes(),
            "ASAN_OPTIONS": "detect_leaks=0",  # those of Python
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "XDG_CACHE_HOME": cache,
            "OMP_NUM_THREADS": "1",
        }
        child = subprocess.run(
            [sys.executable, __file__, f"--count={count}", f"--first={first}", f"--child={source}"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    *begun, last = child.stdout.splitlines() or [""]
    if child.returncode == 0:
        return {**json.loads(last), "reports": 0}
    print(child.stderr, file=sys.stderr)
    if "Sanitizer" not in child.stderr and "runtime error" not in child.stderr:
        raise RuntimeError(f"the child of {last or first} ended with {child.returncode}: {child.stderr[-2000:]}")
    return {"trees": len(begun), "reports": 1}


def _runtimes() -> str:
    """What is loaded before anything else: the sanitizers, and C++, whose exceptions they wrap; names if missing."""
    commands = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    return " ".join(subprocess.check_output(command, text=True).strip() for command in commands)


def random_tree(draw: random.Random) -> ProcedureTree:
    """A tree of one to six procedures, whose arguments and return values are one-hot, and real of some actions."""

    def fields(kinds: list[str]) -> tuple[Field, ...]:
        return tuple(Field(f"f{i}", draw.choice(kinds), draw.randint(2, 4)) for i in range(draw.choice([0, 0, 1, 2])))

    kinds = draw.choice([["onehot"], ["onehot", "real"]])
    actions = [Action(f"a{i}", fields(kinds)) for i in range(draw.randint(1, 5))]
    number = draw.randint(1, 6)
    callers = {callee: draw.randrange(callee) for callee in range(1, number)}  # at least one, so that all are reached
    procedures = []
    for h in range(number):
        called = [c for c in range(h + 1, number) if callers[c] == h or draw.random() < 0.3]
        taken = draw.sample(actions, draw.randint(1, len(actions)))
        calls = (*(f"p{c}" for c in called), *(action.name for action in taken))
        procedures.append(Procedure(f"p{h}", calls, fields(["onehot"]), fields(["onehot"]), draw.random() < 0.5))
    return ProcedureTree(procedures, actions)


def random_walk(tree: ProcedureTree, draw: random.Random) -> str:
    """Walk a process of the tree in a context, whole or with a fault in either; return what came."""
    posterior = draw.random() < 0.6
    layers = [tuple(draw.randint(1, 9) for _ in range(draw.randint(0, 2))) for _ in range(2)]
    process = CallStack(
        tree,
        draw.randint(1, 6),
        hidden=layers[0],
        argument_hidden=layers[1],
        activation=draw.choice(["relu", "tanh"]),
        posterior=posterior,
    )
    size, batch, times = draw.choice([0.1, 1.0, 30.0]), draw.randint(0, 4), draw.randint(1, 9)
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.mul_(size)
    features = torch.randn(times, batch, process.feature_size).transpose(0, 1)
    if draw.random() < 0.2:
        features = torch.complex(features, -features).conj().imag  # a view that is negated where it is read
    context = CallStackContext(features, torch.randn(batch, tree.arg_size))
    if posterior:
        actions = torch.randint(len(tree.actions) + 1, (batch, times), dtype=draw.choice([torch.int32, torch.int64]))
        arguments = torch.randn(batch, times, tree.arg_size) if draw.random() < 0.7 else None
        context = context._replace(actions=actions, arguments=arguments)
    if draw.random() < 0.3:
        context = _spoilt(process, context, draw)
    try:
        walked = call_stack_native.walk(process, context, draw.choice([1, 2, 7, 300]), draw.random() < 0.5)
    except ValueError as error:
        return "stuck" if "no choice is possible" in str(error) else "refused"
    if walked is None:
        return "left"
    z, steps = walked
    complete = Sequence(process, CallStackContext(*(x if x is None else x[steps <= z.shape[1]] for x in context)), 300)
    with torch.no_grad():
        assert (complete.log_prob(z[steps <= z.shape[1]]) > -1e8).all()
    return "walked"


def random_sum(seed: int, draw: random.Random) -> str:
    """Sum over the call stacks of two traces, and draw from them; return what came."""
    spans = random_case(seed, longest=draw.randint(1, 9)).spans()
    if draw.random() < 0.2:
        spans.weights[draw.randrange(len(spans.weights))][:] = float("nan")
    spans.log_prob()
    spans.counts()
    try:
        spans.draw(3)
        spans.likeliest()
    except ValueError:
        return "undrawn"
    return "summed"


def _spoilt(process: CallStack, context: CallStackContext, draw: random.Random) -> CallStackContext:
    """Put one number or shape in the process or its context out of range."""
    fault = draw.randrange(5)
    if fault == 0 and context.actions is not None and context.actions.numel():
        context.actions.view(-1)[0] = draw.choice([-1, -(2**31), len(process.tree.actions) + 1, 2**31 - 1])
    elif fault == 1 and context.features.numel():
        with torch.no_grad():
            process.choose.biases[-1][:] = float("nan")
    elif fault == 2:
        table = process.consistent if process.posterior else process.available
        table.data = torch.ones_like(table)  # every procedure may call every other, also itself
    elif fault == 3:
        parameter = draw.choice(list(process.parameters()))
        parameter.data = parameter.data.narrow(-1, 0, parameter.shape[-1] - 1)
    else:
        leaf = draw.choice([name for name, value in context._asdict().items() if value is not None])
        return context._replace(**{leaf: getattr(context, leaf)[:, :-1]})
    return context


def _child(count: int, first: int, source: Path) -> None:
    """Print the number of every tree begun, then the counts."""
    _native._FLAGS, call_stack_native._SOURCE = _FLAGS, source
    torch.set_num_threads(1)
    came: collections.Counter[str] = collections.Counter(
        trees=0, walked=0, stuck=0, refused=0, left=0, summed=0, undrawn=0
    )
    for seed in range(first, first + count):
        print(seed, flush=True)
        draw = random.Random(seed)
        torch.manual_seed(seed)
        tree = random_tree(draw)
        came.update(random_walk(tree, draw) for _ in range(10))
        with torch.no_grad():
            came[random_sum(seed, draw)] += 1
        came["trees"] += 1
    print(json.dumps(came))


def main() -> int:
    """Walk as many trees as asked for; return 1 if a sanitizer found something."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(given.count, given.first, given.child)
        return 0
    counts = campaign(given.count, given.first)
    print(*(f"{value} {name}" for name, value in counts.items()), sep=", ")
    return int(counts["reports"] > 0)


if __name__ == "__main__":
    sys.exit(main())
