"""The WaveNet beyond what every causal network obeys: what one position sees, its layers by hand."""

from __future__ import annotations

import pytest
import torch

from pyrocontrol.models import WaveNet

pytestmark = pytest.mark.usefixtures("float64")


def test_a_position_sees_what_it_should() -> None:
    net = WaveNet(2, 3, channels=6, dilations=(1, 2, 4))
    x = torch.randn(1, 20, 2, requires_grad=True)
    for position in (0, 5, 19):
        (gradient,) = torch.autograd.grad(net(x)[0, position].sum(), x)
        seen = (gradient[0] != 0).any(-1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, position - net.receptive + 1), position + 1))
    assert net.receptive == 8


def test_the_first_layer_by_hand() -> None:
    net = WaveNet(2, 3, condition=2, channels=2, dilations=(3,))
    x, condition = torch.randn(1, 5, 2), torch.randn(1, 2)
    h = x[0] @ net.embed.weight.T + net.embed.bias
    taps = net.taps[0]
    assert net.condition is not None
    before = torch.cat([torch.zeros(3, 2), h[:2]])
    a, b = (torch.cat([before, h], -1) @ taps.weight.T + taps.bias + condition[0] @ net.condition.weight.T).split(2, -1)
    gated = a.tanh() * b.sigmoid()
    torch.testing.assert_close(net(x, condition)[0], net.output(gated))


def test_the_second_layer_reads_the_residual() -> None:
    net = WaveNet(2, 3, channels=2, dilations=(1, 2))
    x = torch.randn(1, 4, 2)
    h = net.embed(x[0])

    def gates(h: torch.Tensor, layer: int, dilation: int) -> torch.Tensor:
        before = torch.cat([torch.zeros(dilation, 2), h])[: len(h)]
        a, b = net.taps[layer](torch.cat([before, h], -1)).split(2, -1)
        return a.tanh() * b.sigmoid()

    first = gates(h, 0, 1)
    second = gates(h + first @ net.residual[0].weight.T, 1, 2)
    torch.testing.assert_close(net(x)[0], net.output(torch.cat([first, second], -1)))


def test_every_layer_is_conditioned() -> None:
    net = WaveNet(1, 2, condition=3, channels=4, dilations=(1, 2))
    added = net.begin(1, torch.randn(1, 3)).added
    assert len(added) == 2 and all(part.shape == (1, 8) for part in added)
    x = torch.randn(1, 6, 1)
    assert not torch.allclose(net(x, torch.zeros(1, 3)), net(x, torch.ones(1, 3)))


def test_outputs_stay_bounded() -> None:
    net = WaveNet(1, 4, channels=8)
    near, far = (net(torch.full((1, 9, 1), size)) for size in (1e3, 1e9))
    assert far.isfinite().all() and far.abs().max() < 10 * (near.abs().max() + 1)


@pytest.mark.parametrize("options", [{"dilations": ()}, {"dilations": (1, 0)}, {"channels": 0}, {"condition": -1}])
def test_bad_sizes(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        WaveNet(1, 1, **options)  # type: ignore[arg-type]
