"""Encoders of traces: what many traces by length are to one padded pass."""

from __future__ import annotations

import pytest
import torch

from pyrocontrol.guides import encoders


@pytest.mark.parametrize("name", ["lstm", "bilstm"])
def test_traces_that_pass_by_length_pass_as_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = encoders.make_encoder(name, 5, 4).double()
    inputs, lengths = torch.randn(37, 20, 5, dtype=torch.float64), torch.randint(1, 21, (37,))
    steps = torch.arange(20) < lengths.unsqueeze(1)
    found = []
    for least in (8, 100):  # in four groups, in one
        monkeypatch.setattr(encoders, "_GROUP", least)
        encoder.zero_grad()
        states = encoder(inputs, lengths)
        assert states.shape == (37, 20, encoder.size)
        states[steps].square().sum().backward()
        found.append([states[steps].detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)])
    for grouped, whole in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-12, atol=1e-12)
