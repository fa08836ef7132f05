"""What every causal network obeys: stepped, it gives what it gives of all positions at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrocontrol.models import Causal, WaveNet
from pyrocontrol.models.causal import GRU, LSTM, joined
from pyrocontrol.models.networks import mlp

MEMBERS: dict[str, Any] = {
    "feed-forward": lambda: mlp(3, (5, 4)),
    "no layer": lambda: mlp(3, ()),
    "conditioned feed-forward": lambda: mlp(5, (4,)),
    "lstm": lambda: LSTM(3, 4),
    "two-layer lstm": lambda: LSTM(3, 4, 2),
    "gru": lambda: GRU(3, 4, 2),
    **{
        f"{'conditioned ' if condition else ''}wavenet {dilations}": lambda condition=condition, dilations=dilations: (
            WaveNet(3, 5, condition=condition, channels=4, dilations=dilations)
        )
        for condition in (0, 2)
        for dilations in ((1,), (1, 2, 4), (4, 1), (16, 16))
    },
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MEMBERS)
def test_in_turn_is_all_at_once(name: str) -> None:
    net: Causal = MEMBERS[name]()
    x, condition = torch.randn(2, 11, 3), torch.randn(2, 2) if name.startswith("conditioned") else None
    state, outputs = net.begin(2, condition), []
    for t in range(11):
        output, state = net.step(x[:, t], state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), net(x, condition), rtol=0, atol=1e-12)
    if condition is not None:
        assert not torch.allclose(net(x, condition), net(x, condition + 1))


def test_two_side_by_side_have_one_batch() -> None:
    assert joined(torch.zeros(4, 1, 3), torch.ones(5, 2)).shape == (4, 5, 5)
