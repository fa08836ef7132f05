"""Scores of segments against counts made by hand, and names against all permutations."""

import itertools

import pytest
import torch

from pyrocontrol.inference import match_labels, segmentation_scores


def test_labels_get_the_names_with_which_most_steps_agree() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        found, true = [torch.randint(5, (n,)) for n in (7, 20)], [torch.randint(4, (n,)) for n in (7, 20)]
        a, b = torch.cat(found), torch.cat(true)
        best = max(int((torch.tensor(names)[a] == b).sum()) for names in itertools.permutations(range(5)))
        names = match_labels(found, true)
        assert sorted(names.tolist()) == list(range(len(names)))
        assert int((names[a] == b).sum()) == best
        assert segmentation_scores(found, true)["accuracy"] == pytest.approx(best / 27)


@pytest.mark.parametrize(
    ("found", "true", "tolerance", "f1"),
    [
        ([0, 0, 1, 1, 1], [1, 1, 0, 0, 0], 0, 1.0),
        ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0], 0, 0.0),
        ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0], 1, 1.0),
        ([0, 1, 0, 1, 1], [1, 1, 0, 0, 0], 1, 0.5),  # one true boundary serves one of three found
        ([0, 1, 2, 2, 2], [0, 0, 1, 2, 2], 1, 1.0),  # 1 and 2 fit 2 and 3, in this order only
        ([0, 0, 0, 0, 0], [0, 0, 1, 1, 1], 1, 0.0),
        ([0, 0], [0, 0], 1, 0.0),
    ],
)
def test_each_boundary_counts_once(found: list[int], true: list[int], tolerance: int, f1: float) -> None:
    scores = segmentation_scores([torch.tensor(found)], [torch.tensor(true)], tolerance=tolerance)
    assert scores["boundary_f1"] == pytest.approx(f1)


def test_boundaries_do_not_reach_into_the_next_demonstration() -> None:
    found, true = [torch.tensor([0, 0]), torch.tensor([1, 1])], [torch.tensor([0, 0]), torch.tensor([1, 1])]
    assert segmentation_scores(found, true) == {"accuracy": 1.0, "boundary_f1": 0.0}


@pytest.mark.parametrize("true", [[], [torch.zeros(3)], [torch.zeros(2), torch.zeros(2)]])
def test_labels_of_other_demonstrations_are_refused(true: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="the same demonstrations"):
        segmentation_scores([torch.zeros(2)], true)
