"""Figures for the pictures of environments, drawn without a font."""

from __future__ import annotations

import numpy as np

__all__ = ["glyph"]

# Five rows of three pixels each, a row an octal figure.
_FONT = dict(
    zip("0123456789+", "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 02720".split(), strict=True)
)


def glyph(character: str | int) -> np.ndarray:
    """`[20, 12]` bool: a digit or a plus."""
    small = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _FONT[str(character)]], dtype=bool)
    return np.kron(small, np.ones((4, 4), dtype=bool))
