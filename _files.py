"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing", "writing"]


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give temporary names to write files to, which take the places of `paths` when the block ends.

    The names stand in the same folders, made if missing, keep the endings and are unique: two processes that write the
    same file at the same time do not meet, and the later one stands. Files are synced before the first of them is
    renamed. If the block or a rename fails, nothing of the new files is left, not even of those that were renamed
    before; only these replace what was there.

    Args:
        paths: one or several, in the order in which they are to appear.

    Raises:
        OSError: if a folder cannot be made, or a file not be written or renamed.
    """
    temporaries = tuple(path.with_name(f".{secrets.token_hex(8)}-{path.name}") for path in paths)
    renamed: list[Path] = []
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
            renamed.append(path)
    except BaseException:
        for left in (*temporaries, *renamed):
            left.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the renames themselves reach the disk with their folders
        for parent in {path.parent for path in paths}:
            folder = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends, and vanishes if it fails; see `replacing`."""
    with replacing(path) as (temporary,), open(temporary, "wb") as file:
        yield file
