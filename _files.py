"""Files that are there whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import errno
import glob
import os
import pickle
import pickletools
import re
import secrets
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ._limits import verify_parts

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where nothing is locked, and so nothing is cleaned up either
    fcntl = None

__all__ = [
    "locked",
    "naming",
    "read_content",
    "recover_folder",
    "replacing",
    "replacing_folder",
    "settle",
    "verify_room",
    "write_contents",
    "writing",
]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_HEX = 16  # digits that tell temporary names apart
_DIGITS = "[0-9a-f]" * _HEX
_held: dict[int, Path] = {}  # locked files of this process


# ---------------------------------------------------------------------- locks


def _hold(path: Path, *, make: bool = True, surely: bool = False) -> int | None:
    """Open a file and lock it until `_let_go`, or the end of the process.

    Args:
        path: of the file.
        make: it if it is missing.
        surely: have nothing where the system has no locks; else the file is only opened there.

    Returns:
        Its number; None if it is missing, or locked already.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        except FileNotFoundError:
            if make:
                raise
            return None
        ours = _lock(file, surely)
        with suppress(FileNotFoundError):  # who held it may just have removed it
            if ours and os.path.samestat(os.fstat(file), os.stat(path)):
                _held[file] = path
                return file
        os.close(file)
        if not ours:
            return None


def _lock(file: int, surely: bool) -> bool:
    """Lock an open file; return whether nobody else has, or nobody can and that will do."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # so say file systems without locks
        pass
    return not surely


def _let_go(file: int, remove: bool = False) -> None:
    """Unlock a file, removed before anybody else can hold it; in a fork of who holds it, do nothing."""
    if path := _held.pop(file, None):
        if remove and fcntl is not None:
            path.unlink(missing_ok=True)
        os.close(file)
        if remove and fcntl is None:  # Windows removes no open file
            with suppress(OSError):
                path.unlink()


def _forget() -> None:
    """In a fork: what outlives its parent must not keep the locks."""
    for file in [*_held]:
        _let_go(file)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock while the block runs, by a file of this name, which is removed afterwards.

    Its folder is made if missing. The lock ends with the process, however that ends; what is left of the file then
    locks nothing.

    Raises:
        BlockingIOError: if somebody holds it, this process included; says who, where and since when.
        OSError: if the folder cannot be made or written.
    """
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    if (file := _hold(path)) is None:
        holder = ""
        with suppress(OSError):
            holder = path.read_text()
        raise BlockingIOError(errno.EWOULDBLOCK, f"in use by {holder or 'another process'}", str(path))
    try:
        now = datetime.now().isoformat(" ", "seconds")
        with naming(path):
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())
        yield
    finally:
        _let_go(file, remove=True)
        if new:
            with suppress(OSError):  # something is in it
                path.parent.rmdir()


# ---------------------------------------------------------------------- files


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of a full or broken disk name the file, whoever writes it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer makes its own of Python's
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.filename is None and cause.errno in _DISK:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give temporary names to write files to, which take the places of `paths` when the block ends.

    The names stand in the same folders, made if missing, keep the endings and are unique: two processes that write the
    same file at the same time do not meet, and the later one stands. Files are synced before the first of them is
    renamed. If the block or the first rename fails, nothing of the new files is left; only these replace what was
    there. What a process left that was killed on the way is cleaned up when the same file is written next.

    Several files appear together. When all are on the disk, an empty marker beside the first says so; from then on
    `settle` renames what has not been renamed, whether the process was killed on the way or a rename failed.

    Args:
        paths: one or several, in the order in which they are to appear.

    Raises:
        OSError: if a folder cannot be made, or a file not be written or renamed; names the file.
    """
    if all(path in _held.values() for path in paths):  # they are temporary ones already
        yield paths
        return
    token = secrets.token_hex(_HEX // 2)
    temporaries = tuple(_temporary(path, token) for path in paths)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
    locks: list[int] = []
    marker: int | None = None
    renamed = 0
    try:
        if fcntl is not None:
            locks = [file for temporary in temporaries if (file := _hold(temporary)) is not None]
        with naming(paths[0]):
            yield temporaries
        for path, temporary in zip(paths, temporaries, strict=True):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            with naming(path):
                _sync(temporary)
        if len(paths) > 1:
            _sync_folders(*paths)
            if (marker := _hold(_marker(paths[0], token))) is not None:
                locks.append(marker)
            _sync_folders(paths[0])
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
            renamed += 1
        _sync_folders(*paths)
        if marker is not None:
            _let_go(marker, remove=True)
    except BaseException:
        if not renamed:
            if marker is not None:
                _let_go(marker, remove=True)
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
        raise
    finally:
        for lock in locks:
            _let_go(lock)


def settle(*paths: Path) -> None:
    """Let files of `replacing` take their places that were all there when its process ended; clean up the others.

    Who replaces several files calls it before he reads or writes them.

    Args:
        paths: those that were replaced together, in any order.

    Raises:
        OSError: if one cannot be renamed.
    """
    for first in paths:
        for found in first.parent.glob(f".{_DIGITS}-{glob.escape(first.name)}.whole"):
            if (marker := _hold(found, make=False)) is not None:  # else its process is at it
                for path in paths:
                    with suppress(FileNotFoundError):  # it has been renamed
                        os.replace(_temporary(path, found.name[1 : _HEX + 1]), path)
                _sync_folders(*paths)
                _let_go(marker, remove=True)
    for path in paths:
        _clean(path)


def _temporary(path: Path, token: str) -> Path:
    return path.with_name(f".{token}-{path.name}")


def _marker(first: Path, token: str) -> Path:
    return first.with_name(f".{token}-{first.name}.whole")


def _clean(path: Path) -> None:
    """Remove what nobody writes to any more, and with it what `settle` would do."""
    for ending in ("", ".whole"):
        for left in path.parent.glob(f".{_DIGITS}-{glob.escape(path.name)}{ending}"):
            if (file := _hold(left, make=False, surely=True)) is not None:
                _let_go(file, remove=True)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    if (folder := path.is_dir()) and os.name != "posix":
        return
    file = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folders(*paths: Path) -> None:
    for folder in {path.parent for path in paths}:
        _sync(folder)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends, and vanishes if it fails; see `replacing`."""
    with replacing(path) as (temporary,), open(temporary, "wb") as file:
        yield file


def write_contents(contents: dict[Path, dict[str, Any]]) -> None:
    """Write dictionaries of tensors and numbers, a file each, which appear together; see `replacing`.

    Args:
        contents: by path; each says its ``format``, by which `read_content` knows it.

    Raises:
        OSError: a folder cannot be written, or the disk is full; what was there stands.
    """
    if contents:
        with replacing(*contents) as temporaries:
            for (path, content), temporary in zip(contents.items(), temporaries, strict=True):
                with naming(path), open(temporary, "wb") as file:
                    torch.save(_plain(content, {}), file)


def verify_room(path: Path, count: int) -> None:
    """Make sure that so many bytes can be written, for libraries that a full disk ends the process of.

    Raises:
        OSError: if the disk has no room for them; names the file.
    """
    if hasattr(os, "posix_fallocate"):
        with naming(path), tempfile.TemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, count)


@contextmanager
def replacing_folder(path: Path, whole: Callable[[Path], bool]) -> Iterator[Path]:
    """Give the name of a folder to make beside `path`, whose place it takes when the block ends.

    What was at `path` stands until the new one is on the disk, is `.NAME.old` while that takes its place, and is
    removed then. At no time is there less than one of them whole, and `recover_folder` brings it back. The block holds
    the lock `.NAME.lock`.

    Args:
        path: of the folder.
        whole: whether a folder is one; asked where an earlier process ended in between.

    Raises:
        BlockingIOError: if another process does the same.
        OSError: if it cannot be written; what was there stands.
    """
    with locked(_beside(path, "lock")):
        _recover(path, whole)
        for left in path.parent.glob(f"_{_DIGITS}-{glob.escape(path.name)}"):
            shutil.rmtree(left)
        temporary, old = path.with_name(f"_{secrets.token_hex(_HEX // 2)}-{path.name}"), _beside(path, "old")
        try:
            with naming(path):
                yield temporary
                for part in (*temporary.rglob("*"), temporary):
                    _sync(part)
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
            _sync_folders(path)
        except BaseException:
            _recover(path, whole)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path, whole: Callable[[Path], bool]) -> None:
    """Bring back what `replacing_folder` was replacing when its process ended, unless the new one is there."""
    if _beside(path, "old").exists():
        with suppress(BlockingIOError), locked(_beside(path, "lock")):
            _recover(path, whole)


def _recover(path: Path, whole: Callable[[Path], bool]) -> None:
    if (old := _beside(path, "old")).exists():
        if path.exists() and whole(path):
            shutil.rmtree(old)
        else:
            shutil.rmtree(path, ignore_errors=True)
            os.rename(old, path)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


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
                # torch takes what is marked as a folder for empty, and returns memory that nobody has written.
                if any(part.is_dir() or part.external_attr & 0x10 for part in parts.infolist()):
                    raise ValueError("a part of it is marked as a folder")
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
