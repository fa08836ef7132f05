"""Call the native walk of the call-stack process.

The sampling walk of :mod:`call_stack` is sequential: in tensor code a step costs a third of a
millisecond, nearly all of it in starting operations. `call_stack_walk.c` does the same in about a microsecond on a
CPU, and on a GPU in one kernel for the whole walk; where it cannot be compiled, the tensor code walks. C looks nothing
up twice: whatever it indexes by is checked here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._native import kernel, library

if TYPE_CHECKING:
    from .call_stack import CallStack, CallStackContext, ProcedureNetworks

__all__ = ["ready", "walk"]

_Layers = list[tuple[Tensor, Tensor]]  # weights and biases
# A tensor, its type (any if None) and its shape.
_Wanted = tuple[Tensor | None, torch.dtype | None, tuple[int, ...]]
_SOURCE, _FUNCTION = Path(__file__).with_name("call_stack_walk.c"), "pyrocontrol_walk"


def walk(
    process: CallStack,
    context: CallStackContext,
    horizon: int,
    greedy: bool,
    *,
    weights: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return call traces ``[B, horizon, 1 + W]`` and their numbers of steps, or None where it cannot.

    It walks on a CPU or an NVIDIA GPU, in single precision, with discrete arguments. A trace that has not ended at
    the horizon counts ``horizon + 1`` steps.

    Args:
        process: the call stack.
        context: leaves ``[B, ...]``.
        horizon: most steps.
        greedy: take the likeliest choice at every step.
        weights: by parameter name; None for the process's own.
        seed: of the random numbers, at least 0; None draws one from torch's generator.

    Raises:
        ValueError: naming the trace and the step, where no choice is possible, or an action is none of the tree's.
    """
    features = context.features
    weights = dict(process.named_parameters()) if weights is None else weights
    choose, argue = (_layers(weights, name) for name in ("choose", "argue"))
    if not _fits(process, context, choose, argue):
        return None
    _check_ranges(process, context, horizon)
    device, batch, times = features.device, features.shape[0], features.shape[1]
    native = _compiled(device)
    if native is None:
        return None
    tree, kept = process.tree, []

    def place(tensor: Tensor | list[Any] | None, dtype: torch.dtype = torch.long) -> int:
        """Where a tensor is in the device's memory, in one piece and of that type."""
        if tensor is None:
            return 0
        held = torch.as_tensor(tensor, device=device).detach().to(dtype).resolve_neg().contiguous()
        kept.append(held)
        return held.data_ptr()

    def networks(held: ProcedureNetworks | None, layers: _Layers) -> list[int]:
        if held is None:
            return [0, 0, 0, 0, 0]
        weights, biases = ([place(p, torch.float32) for p in group] for group in zip(*layers, strict=True))
        return [len(layers), int(held.activation == "tanh"), place(_sizes(layers)), place(weights), place(biases)]

    if seed is None:
        seed = 0 if greedy else int(torch.randint(2**62, ()))
    inputs, widest = choose[0][0].shape[1], max(_sizes(choose) + _sizes(argue))
    room = inputs + 2 * widest + tree.depth * (3 + 2 * tree.arg_size)
    z = features.new_zeros(batch, horizon, 1 + tree.arg_size)
    steps = torch.empty(batch, dtype=torch.long, device=device)
    observed = context.arguments if process.argue is not None else None
    # The structure of the C file, word by word.
    words = [
        *(len(tree.procedures), len(tree.actions), len(tree.choices), tree.arg_size, tree.depth),
        *(features.shape[2], times, inputs, batch, horizon, int(process.posterior), int(greedy), seed, widest),
        *networks(process.choose, choose),
        *networks(process.argue, argue),
        len(tree.placed_fields),
        place([(f.slot, f.parameter, f.place, f.field.size) for f in tree.placed_fields]),
        place(process.consistent if process.posterior else process.available, torch.uint8),
        place(process._counts, torch.float32),
        place(features, torch.float32),
        place(context.task, torch.float32),
        place(context.actions),
        place(observed, torch.float32),
        place(features.new_empty(room if device.type == "cpu" else batch * room), torch.float32),
        z.data_ptr(),
        steps.data_ptr(),
    ]
    native(torch.tensor(words, device=device), batch)
    stuck = (steps < 0).nonzero()
    if len(stuck):
        row = int(stuck[0])
        raise ValueError(
            f"sequence {row}, step {-1 - int(steps[row])}: no choice is possible, because all are masked or the "
            "networks gave NaN"
        )
    return z, steps


def ready() -> bool:
    """Whether there is a compiled walk on a CPU."""
    return library(_SOURCE, _FUNCTION) is not None


def _compiled(device: torch.device) -> Callable[[Tensor, int], None] | None:
    """What walks that many rows on a device, as the words of a structure in its memory say; None where nothing does."""
    if device.type == "cuda":
        launch = kernel(_SOURCE, _FUNCTION, device)

        def on_gpu(words: Tensor, rows: int) -> None:
            if launch is not None and rows:  # a warp of 32 threads a row, four of them in a block
                launch((-(-rows // 4), 1, 1), (128, 1, 1), [words])

        return None if launch is None else on_gpu
    native = library(_SOURCE, _FUNCTION)
    return None if native is None else lambda words, rows: native.pyrocontrol_walk(ctypes.c_void_p(words.data_ptr()))


def _sizes(layers: _Layers) -> list[int]:
    """The widths of networks, that of the inputs first."""
    return [weight.shape[1] for weight, _ in layers[:1]] + [bias.shape[1] for _, bias in layers]


def _layers(weights: Mapping[str, Tensor], name: str) -> _Layers:
    """The layers of one of the process's networks, none if it is not there."""
    count = sum(key.startswith(f"{name}.weights.") for key in weights)
    return [(weights[f"{name}.weights.{n}"], weights[f"{name}.biases.{n}"]) for n in range(count)]


def _fits(process: CallStack, context: CallStackContext, choose: _Layers, argue: _Layers) -> bool:
    """Whether all that the walk reads is there, on one device, in single precision; tensor code says what is wrong."""
    device = context.features.device
    tree, (batch, times) = process.tree, context.features.shape[:2]
    h, a, k, width = len(tree.procedures), len(tree.actions), len(tree.choices), tree.arg_size
    inputs, parameters = process.feature_size + 1 + k + 2 * width, sum(f.field.parameters for f in tree.placed_fields)
    observed = process.posterior and context.arguments is not None
    wanted: list[_Wanted] = [
        (context.features, torch.float32, (batch, times, process.feature_size)),
        (context.task, None, (batch, width)),
        (process._counts, torch.float32, (h,)),
        *_wanted(choose, h, inputs, k),
        *_wanted(argue, h, inputs, parameters),
    ]
    if process.posterior:
        wanted += [(context.actions, None, (batch, times)), (process.consistent, torch.bool, (h, a + 1, k))]
    else:
        wanted += [(process.available, torch.bool, (h, k))]
    if observed:
        wanted += [(context.arguments, None, (batch, times, width))]
    return (
        device.type in ("cpu", "cuda")
        and all(f.field.kind == "onehot" or (f.of_action and observed) for f in tree.placed_fields)
        and all(
            x is not None and x.shape == shape and x.device == device and dtype in (None, x.dtype)
            for x, dtype, shape in wanted
        )
    )


def _wanted(layers: _Layers, procedures: int, inputs: int, outputs: int) -> list[_Wanted]:
    """The weights and biases of networks, with what they must be."""
    wanted: list[_Wanted] = []
    for number, (weight, bias) in enumerate(layers, 1):
        size = outputs if number == len(layers) else bias.shape[-1]
        wanted += [(weight, torch.float32, (procedures, inputs, size)), (bias, torch.float32, (procedures, size))]
        inputs = size
    return wanted


def _check_ranges(process: CallStack, context: CallStackContext, horizon: int) -> None:
    """Refuse what the compiled walk would index its tables out of bounds by: it looks nothing up twice."""
    if horizon < 1 or not context.features.shape[1]:
        raise ValueError(f"a walk needs a step and an observation, got {horizon} and {context.features.shape[1]}")
    if process.posterior and context.actions is not None:
        last = len(process.tree.actions)
        if context.actions.is_floating_point():
            raise ValueError(f"actions are whole numbers, got {context.actions.dtype}")
        bad = (context.actions < 0) | (context.actions > last)
        if bad.any():
            row, step = bad.nonzero()[0].tolist()
            action = int(context.actions[row, step])
            raise ValueError(f"trace {row}, step {step}: an action outside 0..{last} (it is {action})")
