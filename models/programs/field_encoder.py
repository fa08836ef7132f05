"""What the procedures see of an observation: named fields, categories embedded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._saved import Saved

__all__ = ["FieldEncoder"]


class FieldEncoder(Saved, nn.Module):
    """Embeds the categorical fields of an observation, those of one vocabulary with one shared table.

    Declaring that two fields hold the same kind of thing says nothing about what is done with them. But what is
    learnt of a category where one procedure sees it in one field then holds for every procedure and field, and a
    low dimension makes a few numbers carry it: from comparisons shown in demonstrations, those never shown follow.

    Args:
        fields: vocabulary and width of each field, in the order of the observation: a one-hot field of a named
            vocabulary, or plain numbers (None).
        embed: dimension of the embeddings.

    Raises:
        ValueError: if two fields of a vocabulary have different widths.

    Example:
        >>> encoder = FieldEncoder([("digit", 10), (None, 1), ("digit", 10), (None, 1)])
        >>> encoder.size, encoder(torch.zeros(5, 22)).shape
        (4, torch.Size([5, 4]))
    """

    def __init__(self, fields: Sequence[tuple[str | None, int]], embed: int = 1):
        super().__init__()
        self.fields = tuple(fields)
        self.tables = nn.ParameterDict()
        for vocabulary, width in self.fields:
            if vocabulary is None:
                continue
            if vocabulary not in self.tables:
                self.tables[vocabulary] = nn.Parameter(torch.randn(width, embed))
            elif len(self.tables[vocabulary]) != width:
                raise ValueError(
                    f"the fields of vocabulary {vocabulary!r} have widths {len(self.tables[vocabulary])} and {width}"
                )
        #: Widths of the encoded fields, in order.
        self.groups = tuple(width if vocabulary is None else embed for vocabulary, width in self.fields)
        self.size = sum(self.groups)

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``[..., size]`` for observations ``[..., O]``."""
        parts = observations.split([width for _, width in self.fields], -1)
        encoded = [
            part if vocabulary is None else part @ self.tables[vocabulary]
            for (vocabulary, _), part in zip(self.fields, parts, strict=True)
        ]
        return torch.cat(encoded, -1)
