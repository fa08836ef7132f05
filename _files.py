"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ._limits import verify_parts

__all__ = ["read_content", "replacing", "write_contents", "writing"]


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


def write_contents(contents: dict[Path, dict[str, Any]]) -> None:
    """Write dictionaries of tensors and numbers, a file each: none replaces an old file before all are on the disk.

    Args:
        contents: by path; each says its ``format``, by which `read_content` knows it.

    Raises:
        OSError: a folder cannot be written, or the disk is full; what was there stands.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            file = stack.enter_context(writing(path))
            torch.save(_plain(content, {}), file)
            file.flush()
            os.fsync(file.fileno())  # all are on the disk before the first is renamed


def read_content(path: str | os.PathLike[str], what: str, *formats: str) -> dict[str, Any]:
    """Read a file of `write_contents`, all tensors on the CPU, without executing code (``weights_only=True``).

    It takes no more memory than four times the file's size: nothing in it is compressed, or made of a number.

    Args:
        path: the file.
        what: it should be, for messages.
        *formats: it may have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, nested too deep or of another kind.
    """

    def wrong(fault: str) -> ValueError:
        return ValueError(f"{path} is truncated or not {what} ({fault})")

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a file is given by its path, got {path!r}")
    if not Path(path).is_file() and Path(path).exists():
        raise wrong("it is a folder" if Path(path).is_dir() else "it is no file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as parts:
                if sum(part.file_size for part in parts.infolist()) > size:
                    raise ValueError("it claims to hold more than it does")
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"{damaged} in it is damaged")
                pickles = [name for name in parts.namelist() if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise ValueError("it holds no tensors and numbers")
                _verify_pickle(parts.read(pickles[0]))
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            verify_parts(content, size)
        except zipfile.BadZipFile as error:
            raise wrong("it is no whole archive") from error
        except pickle.UnpicklingError as error:
            raise wrong("it holds more than tensors and numbers") from error
        except Exception as error:  # torch and zipfile raise several kinds, by where the damage is
            text = " ".join(str(error).split())
            raise wrong(text if type(error) is ValueError and text else type(error).__name__) from error
    if not isinstance(content, dict) or content.get("format") not in formats:
        raise wrong(f"no {formats[0]!r} inside")
    return content


# What torch writes tensors and numbers with. It reads others, some of which make memory of a number: bytearray(10**12).
_KNOWN = re.compile(
    r"torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage|collections OrderedDict|torch Size"
    r"|torch (u?int|b?float|complex|bool)\w*"
)


def _verify_pickle(data: bytes) -> None:
    """Refuse a pickle that names anything else than tensors are made of.

    Raises:
        pickle.UnpicklingError: it does.
    """
    for code, argument, _ in pickletools.genops(data):
        if code.name == "GLOBAL" and not _KNOWN.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it names {argument}")


def _plain(value: Any, copies: dict[Any, torch.Tensor]) -> Any:
    """The same content with numpy scalars, which ``weights_only=True`` refuses, as Python numbers.

    Views that do not fill their storage are copied, once each: the file would get all of it.
    """
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.nbytes() <= value.nbytes:
            return value
        place = storage.data_ptr(), value.storage_offset(), value.dtype, value.shape, value.stride()
        if place not in copies:
            copies[place] = value.clone()
        return copies[place]
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key, copies): _plain(item, copies) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, copies) for item in value)
    return value
