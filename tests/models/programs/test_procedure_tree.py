"""Declaring, printing, parsing and refusing call graphs; and that masked walks meet no dead end."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.models import (
    Action,
    CallStack,
    CallStackContext,
    Field,
    Procedure,
    ProcedureTree,
    Sequence,
)

PATROL = """\
actions: left, right
patrol(laps: real[1]) counts -> lap
lap -> left, right
"""


# -- text and plain data --------------------------------------------------------------------------------------


def test_plain_data_and_text_declare_the_same_tree() -> None:
    plain = ProcedureTree(
        [
            Procedure("patrol", ("lap",), argument=(Field("laps", "real", 1),), counts=True),
            Procedure("lap", ("left", "right")),
        ],
        [Action("left"), Action("right")],
    )
    parsed = ProcedureTree.parse(PATROL)
    assert plain == parsed and hash(plain) == hash(parsed)
    assert str(plain) == PATROL.strip()
    assert plain.choices == ("patrol", "lap", "left", "right", "return")
    assert plain.root.name == "patrol" and plain.null == 4 and plain.depth == 2
    assert plain.index("right") == 3
    assert eval(repr(plain), {"ProcedureTree": ProcedureTree}) == plain
    assert plain != ProcedureTree.parse(PATROL.replace("counts ", ""))
    assert plain != PATROL


@pytest.mark.parametrize(
    "text",
    [
        PATROL,
        BUBBLE_SORT_TREE,
        BUBBLE_SORT_MOVE_TREE,
        "actions: a(x: real[2], y: onehot[3]), b\n"
        "root(goal: real[4], mode: onehot[2]) counts -> a, sub\n"
        "sub(z: onehot[2]) -> a, b returns (seen: onehot[2], where: real[1])",
    ],
)
def test_print_and_parse_round_trip(text: str) -> None:
    tree = ProcedureTree.parse(text)
    assert str(tree) == text.strip()
    assert ProcedureTree.parse(str(tree)) == tree


def test_comments_spaces_and_several_lines_of_actions() -> None:
    tree = ProcedureTree.parse(
        """
        # a guard
        actions: left
        actions:   right( speed :real[1] )

        patrol(laps: real[1])   counts   ->  lap   # the root
        lap->left,right returns(tired: onehot[2])
        """
    )
    assert tree.choices == ("patrol", "lap", "left", "right", "return")
    assert tree.procedures[0].counts and not tree.procedures[1].counts
    assert tree.actions[1].argument == (Field("speed", "real", 1),)
    assert tree.procedures[1].returns == (Field("tired", "onehot", 2),)


def test_widths() -> None:
    move = ProcedureTree.parse(BUBBLE_SORT_MOVE_TREE)
    assert (move.arg_size, move.action_arg_size, move.depth) == (4, 4, 4)
    plain = ProcedureTree.parse(BUBBLE_SORT_TREE)
    assert (plain.arg_size, plain.action_arg_size, plain.depth) == (1, 0, 4)
    bare = ProcedureTree.parse("actions: a\nroot -> a")
    assert (bare.arg_size, bare.action_arg_size, bare.depth, bare.max_steps(3)) == (0, 0, 1, 4)
    assert Field("f", "real", 3).parameters == 6 and Field("f", "onehot", 3).parameters == 3


# -- what is refused ------------------------------------------------------------------------------------------


BAD_TREES = [
    ("actions: a\nroot -> sub, a\nroot -> a\nsub -> a", "duplicate name 'root'"),
    ("actions: a, a\nroot -> a", "duplicate name 'a'"),
    ("actions: a\na -> a", "duplicate name 'a'"),
    ("actions: a\nroot -> b", "procedure 'root' calls 'b', which is not declared"),
    ("actions: a\nroot -> a, a", "procedure 'root' lists a call twice"),
    ("actions: a\nroot -> x, a\nx -> y\ny -> z, a\nz -> x", "in a cycle: x -> y -> z -> x"),
    ("actions: a\nroot -> root, a", "in a cycle: root -> root"),
    ("actions: a\nroot -> sub\nsub -> root, a", "in a cycle: root -> sub -> root"),
    ("actions: a\nroot -> a\nisland -> a", "the root 'root' never reaches procedure 'island'"),
    ("actions: a", "at least one procedure"),
    ("root -> root", "at least one action"),
    ("", "at least one procedure"),
    ("actions: return\nroot -> return", "'return' cannot be a name"),
    ("actions: a\nactions -> a", "'actions' cannot be a name"),
    ("actions: counts\nroot -> counts", "'counts' cannot be a name"),
    ("actions: a\nroot a", r"line 2, 'root a': a procedure is written 'name -> child, child'"),
    ("actions: a\n\nroot ->  # nothing", "line 3, 'root ->  # nothing': a procedure must be able to call"),
    ("actions: a!\nroot -> a", "line 1, 'actions: a!': expected a name"),
    ("actions: a(x: real)\nroot -> a", r"line 1.*a field is written 'name: onehot\[k\]'"),
    ("actions: a(x: image[3])\nroot -> a", "line 1.*kind must be one of onehot, real, got 'image'"),
    ("actions: a(x: real[0])\nroot -> a", r"line 1.*real\[0\] holds no choice"),
    ("actions: a(x: onehot[1])\nroot -> a", r"line 1.*onehot\[1\] holds no choice"),
    ("actions: a\nroot -> a returns (x: real[1]) returns (y: real[1])", "line 2.*one list of returns"),
    ("actions: a\nroot(x: real[1] -> a", "line 2.*expected a name"),
]


def test_bad_trees_are_refused() -> None:
    for text, message in BAD_TREES:
        with pytest.raises(ValueError, match=message):
            ProcedureTree.parse(text)
            pytest.fail(f"taken: {text}")


def test_bad_plain_data_is_refused() -> None:
    with pytest.raises(ValueError, match="'idle' reaches no action: a call to it could never return"):
        ProcedureTree([Procedure("root", ("idle", "a")), Procedure("idle", ())], [Action("a")])
    with pytest.raises(ValueError, match="at least one procedure"):
        ProcedureTree([], [Action("a")])
    with pytest.raises(ValueError, match="'two words' cannot be a name"):
        ProcedureTree([Procedure("root", ("two words",))], [Action("two words")])
    with pytest.raises(ValueError, match="'a b' cannot be the name of a field"):
        Field("a b", "real", 1)
    with pytest.raises(ValueError, match="kind must be one of"):
        Field("x", "vector", 1)
    with pytest.raises(ValueError, match="no procedure or action is called 'c'"):
        ProcedureTree.parse(PATROL).index("c")


def test_a_stack_deeper_than_declared_is_refused() -> None:
    assert ProcedureTree.parse(BUBBLE_SORT_TREE, max_depth=4).depth == 4
    with pytest.raises(ValueError, match="need a stack of 4 frames, deeper than max_depth=3"):
        ProcedureTree.parse(BUBBLE_SORT_TREE, max_depth=3)


# -- masks: brute force on random trees -----------------------------------------------------------------------


def random_tree(seed: int) -> ProcedureTree:
    """An acyclic graph of up to six procedures over up to four actions, every procedure reached and useful."""
    rng = random.Random(seed)
    count, actions = rng.randint(1, 6), [f"a{i}" for i in range(rng.randint(1, 4))]
    calls: list[list[str]] = [[] for _ in range(count)]
    for child in range(1, count):
        for parent in rng.sample(range(child), rng.randint(1, min(child, 2))):
            calls[parent].append(f"p{child}")
    for own in calls:
        least = 0 if own else 1
        own += rng.sample(actions, rng.randint(least, len(actions)))
        rng.shuffle(own)
    return ProcedureTree([Procedure(f"p{i}", tuple(own)) for i, own in enumerate(calls)], [Action(a) for a in actions])


def descendants(tree: ProcedureTree, procedure: str) -> set[str]:
    """Actions that a procedure or anything it calls can take, by plain recursion."""
    named = {p.name: p for p in tree.procedures}
    found = set()
    for call in named[procedure].calls:
        found |= descendants(tree, call) if call in named else {call}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_those_of_a_plain_search(seed: int) -> None:
    tree = random_tree(seed)
    actions = [a.name for a in tree.actions]
    procedures = {p.name for p in tree.procedures}
    for h, procedure in enumerate(tree.procedures):
        assert {tree.choices[k] for k in tree.available[h].nonzero()[:, 0]} == {*procedure.calls, "return"}
        below = descendants(tree, procedure.name)
        assert {actions[a] for a in tree.reachable[h].nonzero()[:, 0]} == below
        for a, action in enumerate(actions):
            expected = {
                call
                for call in procedure.calls
                if call == action or (call in procedures and action in descendants(tree, call))
            }
            if h > 0:
                expected.add("return")
            assert {tree.choices[k] for k in tree.consistent[h, a].nonzero()[:, 0]} == expected
        assert tree.consistent[h, len(actions)].nonzero()[:, 0].tolist() == [tree.null]


@pytest.mark.parametrize(("seed", "native"), [(seed, seed % 2 == 0) for seed in range(8)])
def test_posterior_walks_meet_no_dead_end(seed: int, native: bool) -> None:
    """Whatever the weights, a walk takes exactly the observed actions and ends within max_steps."""
    torch.manual_seed(seed)
    tree = random_tree(seed)
    reach = tree.reachable[0].nonzero()[:, 0]
    batch, times = 20, 7
    actions = reach[torch.randint(len(reach), (batch, times))]
    lengths = torch.randint(2, times + 1, (batch,))
    actions[torch.arange(times) >= (lengths - 1).unsqueeze(1)] = len(tree.actions)
    process = CallStack(tree, 3, posterior=True)
    process.native = native
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.mul_(10.0)
    context = CallStackContext(torch.randn(batch, times, 3), torch.zeros(batch, 0), actions)
    posterior = Sequence(process, context, tree.max_steps(times - 1))
    z = posterior.sample()
    state, live = process.unroll(z, context)
    allowed = process.consistent[state.frame[..., 0].long(), actions.gather(1, state.time)]
    first = state.frame[..., 1] == 0
    allowed[..., tree.null] &= ~first
    assert allowed.any(-1)[live].all()
    chosen = allowed.gather(-1, z[..., :1].long()).squeeze(-1)
    assert chosen[live].all()
    assert (posterior.log_prob(z) > -1e8).all()
    least = tree.least_steps(actions)
    for row in range(batch):
        own = z[row, live[row], 0].long().tolist()
        h = len(tree.procedures)
        assert [c - h for c in own if h <= c < tree.null] == actions[row, : lengths[row] - 1].tolist()
        assert least[row] <= len(own) <= tree.max_steps(int(lengths[row]) - 1)
        assert own[-1] == tree.null


def test_max_steps_is_attained_on_a_chain() -> None:
    text = "actions: a\n" + "\n".join(f"p{i} -> p{i + 1}" for i in range(3)) + "\np3 -> a"
    tree = ProcedureTree.parse(text)
    process = CallStack(tree, 1, posterior=True)
    with torch.no_grad():  # returns whenever it may
        process.choose.biases[-1][:, tree.null] = 1e4
    for count in (1, 2, 5):
        actions = torch.tensor([[0] * count + [1]])
        context = CallStackContext(torch.zeros(1, count + 1, 1), torch.zeros(1, 0), actions)
        steps = tree.max_steps(count)
        assert Sequence(process, context, steps).sample().shape[1] == steps
        with pytest.raises(ValueError, match="horizon exhausted"):
            Sequence(process, context, steps - 1).sample()


def test_least_steps_is_attained() -> None:
    tree = ProcedureTree.parse("actions: a, b, c\nroot -> a, mid\nmid -> b, low\nlow -> a, c")
    actions = torch.tensor([[0, 0, 3], [0, 1, 3], [2, 3, 3], [2, 0, 3]])
    # a, a, return; a, mid, b, return, return; mid, low, c, three returns; mid, low, c, a, three returns
    assert tree.least_steps(actions).tolist() == [3, 5, 6, 7]


# -- traces ---------------------------------------------------------------------------------------------------

SIGNALS = """\
actions: go, push(force: real[1], side: onehot[2]), stop
root(goal: real[1], mode: onehot[2]) -> go, sub
sub -> push
"""


def signal_traces(**changes: object) -> Demonstrations:
    """Two traces that fit the tree, with one thing changed."""
    settings = {"actions": [0, 1, 1], "task": [0.5, 0.0, 1.0], "argument": [2.0, 1.0, 0.0], "num_actions": 3}
    settings.update(changes)
    width = len(settings["argument"])  # type: ignore[arg-type]

    def episode(actions: list[int], argument: list[float], task: list[float]) -> Episode:
        arguments = np.zeros((len(actions), width), np.float32)
        arguments[np.array(actions) == 1] = argument
        return Episode(np.zeros((len(actions) + 1, 2), np.float32), np.array(actions), np.array(task), arguments)

    good = episode([0, 1], [2.0, 1.0, 0.0][:width] + [0.0] * (width - 3), [0.0, 1.0, 0.0][: len(settings["task"])])  # type: ignore[arg-type]
    bad = episode(settings["actions"], settings["argument"], settings["task"])  # type: ignore[arg-type]
    return Demonstrations.from_episodes([good, bad], settings["num_actions"])  # type: ignore[arg-type]


def test_good_traces_pass() -> None:
    ProcedureTree.parse(SIGNALS).check(signal_traces())
    ProcedureTree.parse(BUBBLE_SORT_TREE).check(demonstrations(2, 0, max_length=3))
    ProcedureTree.parse(BUBBLE_SORT_MOVE_TREE).check(demonstrations(2, 0, max_length=3, move=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": [0, 1, 2]}, "trace 1, step 2: no procedure can reach the action 'stop'"),
        ({"num_actions": 4}, "the traces have 4 actions, the tree has 3"),
        ({"task": [0.5]}, "the root 'root' takes an argument of width 3, the traces' task has width 1"),
        ({"task": [0.5, 0.5, 0.5]}, r"trace 1: the argument of the root 'root' must hold mode: onehot\[2\]"),
        ({"argument": [2.0, 1.0]}, "the actions take arguments of width 3, the traces hold width 2"),
        (
            {"argument": [2.0, 0.5, 0.5]},
            r"trace 1, step 1: the argument of 'push' must hold side: onehot\[2\], got \[0.5, 0.5\]",
        ),
        ({"argument": [2.0, 1.0, 1.0]}, r"trace 1, step 1: .* side: onehot\[2\], got \[1.0, 1.0\]"),
        ({"argument": [2.0, 0.0, 0.0]}, "trace 1, step 1: .* side"),
    ],
)
def test_bad_traces_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcedureTree.parse(SIGNALS).check(signal_traces(**changes))


def test_depth_counts_the_longest_path() -> None:
    tree = ProcedureTree.parse("actions: a\nroot -> x, y\ny -> z\nx -> y, a\nz -> a")
    assert tree.depth == 4


def test_a_layered_tree() -> None:
    tree = ProcedureTree.layered(["go", "lift(side: onehot[2])"], (2, 1), argument="n: real[1]")
    assert str(tree).splitlines() == [
        "actions: go, lift(side: onehot[2])",
        "main(n: real[1]) counts -> first1, first2",
        "first1 counts -> second1, go, lift",
        "first2 counts -> second1, go, lift",
        "second1 counts -> go, lift",
    ]
    for widths in ([], [2, 0], [1] * 6):
        with pytest.raises(ValueError, match="levels of 1 procedure or more"):
            ProcedureTree.layered(["go"], widths)
