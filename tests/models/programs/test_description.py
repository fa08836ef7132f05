"""A program as text: exactly what is expected of one whose weights are set by hand."""

from __future__ import annotations

import pytest
import torch

from pyrocontrol.envs import Demonstrations
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, teacher
from pyrocontrol.models import CallTrace, ControlProgram, FieldEncoder, ProcedureTree
from pyrocontrol.models.programs.description import bodies

TREE = """\
actions: left, lift(side: onehot[2])
main counts -> pair, lift
pair(side: onehot[2]) -> left
"""
MAIN, PAIR, LEFT, LIFT, RETURN = range(5)
# Inputs of the networks: what the encoder makes of an observation, of which two are its numbers, and the rest.
NUMBERS, COUNTER, LAST, ARGUMENT = 1, 4, 5, 10


def by_hand() -> ControlProgram:
    """main: pair twice, then lift a side, and return; pair: left until the first number is 1 and the second 0."""
    program = ControlProgram(TREE, 8, hidden=(), encoder=FieldEncoder([("way", 3), (None, 2), ("way", 3)]))
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.zero_()
        (weight,), (bias,) = program.process.choose.weights, program.process.choose.biases
        bias[MAIN, PAIR] = 1.0
        weight[MAIN, COUNTER, LIFT] = 0.75  # 1.5 at the third step
        weight[MAIN, LAST + LIFT, RETURN] = 9.0
        bias[PAIR, LEFT] = 1.0
        weight[PAIR, NUMBERS, RETURN], weight[PAIR, NUMBERS + 1, RETURN] = 3.0, -4.0
        weight[PAIR, ARGUMENT, LEFT] = 0.5
        weight[MAIN, ARGUMENT, PAIR] = 7.0  # of no consequence, as main has no argument
        weight[PAIR, COUNTER, LEFT] = 7.0  # pair does not see its counter
        assert program.process.argue is not None
        program.process.argue.biases[-1].view(2, -1)[:, 1::2] = 1.0  # always the second side
    return program


def test_a_program_set_by_hand() -> None:
    program = by_hand()
    observations = torch.zeros(1, 5, 8)
    observations[0, :, 3] = torch.tensor(
        [0.0, 1, 0, 1, 0]
    )  # the first pair ends after one action, the second after two
    actions = torch.tensor([[0, 0, 0, 1, 2]])
    arguments = torch.tensor([[[0.0, 0], [0, 0], [0, 0], [0, 1], [0, 0]]])
    traces = Demonstrations(observations, actions, torch.tensor([5]), 2, arguments=arguments)
    program.check(traces)
    assert program.describe(traces, inputs=["where from", "at the end", "where to"]) == (
        "main counts -> pair, lift\n"
        "  reads its last call 9.00, its counter 0.75\n"
        "  does  pair(side 1)+, lift(side 1)  (100% of 1)\n"
        "pair(side: onehot[2]) -> left\n"
        "  reads at the end 5.00, its argument 0.50\n"
        "  does  left  (50% of 2)\n"
        "    or  left+  (50% of 2)"
    )
    assert program.describe(least=1.0).splitlines() == [
        "main counts -> pair, lift",
        "  reads its last call 9.00",
        "pair(side: onehot[2]) -> left",
        "  reads number 1 5.00",
    ]
    with pytest.raises(ValueError, match="read 3 inputs of an observation, got 1 names"):
        program.describe(inputs=["where from"])


def test_what_cannot_be_read_is_not_described_and_arguments_are_read_too() -> None:
    tree = """\
    actions: a, b, lift(side: onehot[2])
    main(n: onehot[4]) -> sub, pick
    sub(k: onehot[2]) -> a
    pick -> b, lift
    """
    program = ControlProgram(tree, 2, argument_hidden=(3,))
    choose, argue = (networks.weights[0].data for networks in (program.process.choose, program.process.argue))  # type: ignore[union-attr]
    main, sub, pick, a, b, lift, null = range(7)
    last, argument, returned = 2 + 1, 2 + 1 + 7, 2 + 1 + 7 + 4
    for weight in (choose, argue):
        weight.zero_()
        weight[sub] = 9.0  # of which it can use the observation, a as its last call, and half of the argument
        weight[sub, :2] = weight[sub, last + a] = weight[sub, last + null] = weight[sub, argument : argument + 2] = 0.0
    argue[pick, 1, 0], argue[pick, returned, 1], choose[pick, 1, 0], choose[pick, last + lift, 0] = 3.0, 5.0, 4.0, 1.0
    assert program.describe(inputs=["same", "same"]).splitlines() == [
        "main(n: onehot[4]) -> sub, pick",
        "  reads nothing",
        "sub(k: onehot[2]) -> a",
        "  reads nothing",
        "pick -> b, lift",
        "  reads same 5.00, what came back 5.00, its last call 1.00",
    ]


@pytest.mark.parametrize("move", [False, True])
def test_bodies_of_the_teacher_read_like_its_program(move: bool) -> None:
    calls = torch.from_numpy(teacher([3, 1, 2, 0], move=move).calls).unsqueeze(0)
    found = bodies(CallTrace.batch(ProcedureTree.parse(BUBBLE_SORT_MOVE_TREE if move else BUBBLE_SORT_TREE), calls))
    right = "shift(direction 1)" if move else "rshift"
    assert found["bubblesort"] == {"(bubble, resetptr)+": 1}
    assert found["bubble"] == {f"{'move(pointer 1, direction 1)' if move else 'ptr2right'}, bstep+": 3}
    assert found["bstep"] == {f"swap, {right}": 5, right: 4}


def test_folding_and_runs_that_do_not_return() -> None:
    tree = ProcedureTree.parse("actions: a, b\nmain -> sub, a, b\nsub -> a, b")
    a, b, back = 2, 3, 4
    done = bodies([CallTrace(tree, [(choice, ()) for choice in [a, a, b, a, a, b, a, back]])])
    assert done == {"main": {"(a+, b)+, a": 1}}
    cut = bodies([CallTrace(tree, [(choice, ()) for choice in [1, b, back, 1, a]])])
    assert cut == {"sub": {"b": 1}}
