"""C files that are compiled where they run, at their first use: for a CPU, and kept, or for an NVIDIA GPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from ._files import writing

__all__ = ["kernel", "library"]

# No trap is set, and loops with a condition in them are not vectorised if there may be one.
_FLAGS = ("-O3", "-march=native", "-fno-trapping-math", "-shared", "-fPIC", "-lm")
_SECONDS = 60.0  # that a compiler may take


@cache
def library(source: Path, function: str) -> ctypes.CDLL | None:
    """Return a C file as a loaded library; None, with one warning, where that is impossible.

    The machine's compiler (``CC``, else cc, gcc or clang) makes it at the first use. It is kept in a folder of the
    user's cache that is the user's alone. Where that folder cannot be used, or is full, it is compiled for this process
    only, with one warning. Its name holds a digest of what it was made from, and one of itself: loading half a library
    kills the process. What does not agree with its name, cannot be loaded or lacks the function is compiled again,
    once. ``PYROCONTROL_NATIVE=0`` in the environment does without native code, and without a warning.

    Args:
        source: the C file, which includes nothing but headers of the system.
        function: that will be called.
    """
    if os.environ.get("PYROCONTROL_NATIVE") == "0":
        return None
    try:
        name = f"{source.stem}-{_digest(source.read_bytes() + ' '.join(_FLAGS).encode() + _processor())}"
        compiled = cache(lambda: _compiled(source))
        try:
            return _kept(_private_folder(), name, function, compiled)
        except (OSError, RuntimeError) as error:  # a RuntimeError says that there is no home
            with tempfile.TemporaryDirectory() as folder:
                found = _kept(Path(folder), name, function, compiled)
            warnings.warn(f"native code is compiled in every process anew: {error}", stacklevel=2)
            return found
    except (OSError, subprocess.TimeoutExpired) as error:
        warnings.warn(f"{source.name} is not compiled, slower code takes its place: {error}", stacklevel=2)
        return None


@cache
def kernel(source: Path, function: str, device: torch.device) -> Callable[..., None] | None:
    """Return a function of a CUDA file, to be launched with a grid, a block and its arguments; None where impossible.

    NVRTC, which comes with torch's builds for NVIDIA GPUs, makes it at the first use in a process. Where it cannot,
    there is one warning. ``PYROCONTROL_NATIVE=0`` in the environment does without, and without a warning.

    Args:
        source: the file, which includes nothing.
        function: a ``__global__`` one.
        device: a GPU.
    """
    if os.environ.get("PYROCONTROL_NATIVE") == "0":
        return None
    try:
        with torch.cuda.device(device):
            launch: Callable[..., None] = torch.cuda._compile_kernel(source.read_text(encoding="utf-8"), function)
    except (AttributeError, OSError, RuntimeError) as error:
        warnings.warn(f"{source.name} is not compiled for {device}, slower code takes its place: {error}", stacklevel=2)
        return None
    return launch


def _kept(folder: Path, name: str, function: str, compiled: Callable[[], bytes]) -> ctypes.CDLL:
    """The library of that name in a folder; made, if there is none that is whole and has the function."""
    for kept in folder.glob(f"{name}-*.so"):
        with suppress(OSError):
            if kept.stem.rpartition("-")[2] == _digest(kept.read_bytes()):
                return _loaded(kept, function)
        kept.unlink(missing_ok=True)
    built = folder / f"{name}-{_digest(compiled())}.so"
    with writing(built) as file:
        file.write(compiled())
    return _loaded(built, function)


def _loaded(path: Path, function: str) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    if not hasattr(found, function):
        raise OSError(f"{path} has no function {function}")
    return found


def _compiled(source: Path) -> bytes:
    """The library that a compiler makes of a C file.

    Raises:
        OSError: there is no compiler, or it failed.
        subprocess.TimeoutExpired: it took too long, and was ended with all that it had started.
    """
    try:
        names = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise OSError(f"CC={os.environ['CC']}: {error}") from error
    compiler = next((name for name in names if name and shutil.which(name[0])), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler was found")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "library.so"
        command = [*compiler, str(source), "-o", str(built), *_FLAGS]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace", start_new_session=True
        ) as process:
            try:
                said = process.communicate(timeout=_SECONDS)[1]
            except BaseException:
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                raise
        if process.returncode:
            raise OSError(said.strip() or f"{compiler[0]} ended with {process.returncode}")
        return built.read_bytes()


def _private_folder() -> Path:
    """The folder of the cache, which no other user can read or write."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrocontrol" / "native"
    cached.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = cached.stat()
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
        raise PermissionError(f"{cached} is not this user's alone (owner {status.st_uid}, {status.st_mode:o})")
    return cached


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> bytes:
    """What ``-march=native`` depends on: a cache may be shared between machines."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = sorted({line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))})
        return "".join(lines).encode()
    return platform.platform().encode() + platform.processor().encode()
