"""Compilation of the native layers, once per processor, with any C++ compiler that is installed.

There are no torch headers and no build system: the library has a C interface, compiles in a second
or two, and is cached under a digest of the sources, the command and the processor. Without a
compiler the engine runs on torch alone: slower, with the same results.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from server.engine import lifeline

_FOLDER = Path(__file__).parent
_FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-pthread"]
_COMPILE_TIMEOUT_S = 300


class NativeUnavailable(Exception):
    """The native layers cannot be used on this machine. The message says why."""


@cache
def library() -> ctypes.CDLL:
    """Load the native layers; compile them if they are not cached. Raises `NativeUnavailable`."""
    command = [*compiler(), *_FLAGS, "-Wno-psabi", str(_FOLDER / "layers.cpp")]
    path = _cache_folder() / f"layers-{_key(command)}.so"
    if not path.exists():
        _compile(command, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as exc:
        raise NativeUnavailable(f"{path.name} cannot be loaded: {exc}") from exc


def compiler() -> list[str]:
    """Find a C++ compiler: `$CXX`, the system's, or the one in the package `ziglang`.

    Returns the start of its command line. Raises `NativeUnavailable`.
    """
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    raise NativeUnavailable("no C++ compiler was found (g++, clang++, or the package ziglang)")


def has_wide_vectors() -> bool:
    """Return whether the processor has AVX-512, for which the layers are written.

    With AVX2 alone they were 16 times slower than plain torch, measured with 16 requests.
    """
    return "avx512f" in _processor().split()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "foreword" / "native"


def _key(command: list[str]) -> str:
    digest = hashlib.sha256(repr((command, _processor())).encode())
    for source in sorted(_FOLDER.glob("*.[hc]*")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Describe the processor's features, on which the result of -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join({line for line in lines if line.startswith(("flags", "Features"))})


def _compile(command: list[str], path: Path) -> None:
    """Compile to a temporary file, then rename it: `path` is never a partial file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temp:
            built = Path(temp) / path.name
            lifeline.run(
                [*command, "-o", str(built)],
                timeout_s=_COMPILE_TIMEOUT_S,
                env=os.environ | {"TMPDIR": temp},
            )
            built.replace(path)
    except subprocess.CalledProcessError as exc:
        raise NativeUnavailable(f"{command[0]} failed: {exc.stderr[-500:]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NativeUnavailable(f"{command[0]} could not run: {exc}") from exc
