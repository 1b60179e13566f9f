"""Checks of `foreword doctor`, one function each. None raises, and none leaves a trace."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import torch
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from prefix_store import migrations
from prefix_store.errors import PrefixStoreError
from prefix_store.registry.keys import load_pepper
from server.cli.app import StartError
from server.cli.finding import Finding
from server.cli.start import check_not_open
from server.default_model import MIN_FREE_BYTES, default_folder
from server.engine.model.families import (
    UnsupportedModel,
    check_supported,
    first_line,
    read_config,
)
from server.engine.native.build import NativeUnavailable, has_wide_vectors, library
from server.engine.sizing import choose_device, choose_dtype
from server.settings import Settings

_NEEDED = {"torch": (2, 11), "transformers": (5, 17)}
_LOW_DISK_BYTES = 1 << 30
_TIMEOUT_S = 5.0


def packages() -> Iterator[Finding]:
    """Check the versions of Python and of the engine's main packages."""
    yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))  # pip enforces it
    for name, needed in _NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"pip install {name}")
            continue
        is_old = tuple(int(part) for part in found.split(".")[:2]) < needed
        todo = f"pip install --upgrade '{name}>={needed[0]}.{needed[1]}'" if is_old else ""
        yield Finding(name, "fail" if is_old else "ok", found, todo)


def device(settings: Settings) -> Finding:
    """Choose device and dtype as a start would."""
    try:
        chosen = choose_device(settings.device)
    except ValueError as exc:
        return Finding("device", "fail", str(exc), "omit --device, or pass --device cpu")
    dtype = choose_dtype(settings.dtype, chosen)
    if chosen == "cuda":
        return Finding("device", "ok", f"{torch.cuda.get_device_name()}, {dtype}")
    return Finding("device", "ok", f"cpu, {settings.num_threads or os.cpu_count()} cores, {dtype}")


def compiler(settings: Settings) -> Finding:
    """Check that the compiled layers can be built, if they would be used."""
    if settings.attention not in ("auto", "native") or settings.device == "cuda":
        return Finding("compiler", "ok", f"not needed with attention={settings.attention}")
    if settings.device == "auto" and torch.cuda.is_available():
        return Finding("compiler", "ok", "not needed on CUDA")
    is_asked_for = settings.attention == "native" or settings.quantization != "none"
    if not (is_asked_for or has_wide_vectors()):
        return Finding("compiler", "ok", "not used: the processor has no AVX-512")
    try:
        return Finding("compiler", "ok", f"layers compiled: {Path(library()._name).name}")
    except NativeUnavailable as exc:
        is_needed = settings.attention == "native"
        todo = "install g++ or `pip install ziglang`; without one the engine is a few times slower"
        return Finding("compiler", "fail" if is_needed else "warn", str(exc), todo)


def model(settings: Settings) -> Finding:
    """Check that the base model is present and of a supported family. Its weights are not read."""
    if settings.model != "default":
        return _own_model(settings.model)
    folder = default_folder(settings.cache)
    if folder.is_dir():
        return Finding("model", "ok", f"SmolLM2-135M-Instruct, in {folder}")
    free = shutil.disk_usage(_existing(settings.cache)).free
    if free < MIN_FREE_BYTES:
        detail = f"{free // 10**6} MB free in {settings.cache}, {MIN_FREE_BYTES // 10**6} needed"
        return Finding(
            "model", "fail", detail, "free some space, or pass another folder with --cache"
        )
    todo = "the first start fetches it (93 MB); without a network, pass --model FOLDER"
    return Finding("model", "warn", "SmolLM2-135M-Instruct is not fetched yet", todo)


def _own_model(name: str) -> Finding:
    path = Path(name)
    if not path.is_dir():
        if name.startswith(("/", ".", "~")):
            return Finding("model", "fail", f"no such folder: {name}", "pass --model FOLDER")
        todo = "the first start fetches it from the hub; pass a folder to avoid that"
        return Finding("model", "warn", f"{name} is not a local folder", todo)
    files = ("config.json", "tokenizer_config.json")
    missing = [name for name in files if not (path / name).exists()]
    if not _weights(path):
        missing.append("*.safetensors")
    if missing:
        detail = f"{name} has no {', '.join(missing)}"
        return Finding(
            "model", "fail", detail, "save model and tokenizer there with save_pretrained"
        )
    try:
        check_supported(read_config(name))
    except (UnsupportedModel, OSError) as exc:
        return Finding("model", "fail", first_line(exc), "pass another model with --model")
    return Finding("model", "ok", name)


def _weights(folder: Path) -> int:
    """Return the size of all weights in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def memory(settings: Settings) -> Finding:
    """Compare free memory with the weights and the configured KV pool."""
    is_default = settings.model == "default"
    folder = default_folder(settings.cache) if is_default else Path(settings.model)
    needed = _weights(folder) + (settings.kv_cache_bytes or 0)
    free = _free_bytes(settings)
    if free is None:
        return Finding(
            "memory", "warn", "free memory is unknown on this system", "check it yourself"
        )
    detail = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB for weights"
    detail += " and pool" if settings.kv_cache_bytes else ""
    if free < needed:
        return Finding(
            "memory", "fail", detail, "use a smaller model, or a smaller --kv-cache-bytes"
        )
    if free < 2 * needed:
        return Finding("memory", "warn", detail, "keep as much again free for steps and prefixes")
    return Finding("memory", "ok", detail)


def _free_bytes(settings: Settings) -> int | None:
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(found["MemAvailable"]) * 1024


def store(settings: Settings) -> Finding:
    """Check that the store's folder exists or can be created, and is writable."""
    place = _existing(settings.store)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"foreword doctor")
    except OSError as exc:
        todo = "let this user write there, or pass another folder with --store"
        return Finding("store", "fail", f"cannot write in {place}: {exc.strerror}", todo)
    free = shutil.disk_usage(place).free
    detail = f"{settings.store}, {free / 1e9:.1f} GB free"
    if free < _LOW_DISK_BYTES:
        return Finding("store", "warn", detail, "free some space: a full store refuses uploads")
    return Finding(
        "store", "ok", detail if place == settings.store else f"{detail}; not created yet"
    )


def _existing(path: Path) -> Path:
    """Return the folder, or its nearest ancestor that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def registry(settings: Settings) -> Finding:
    """Check that this version can open the registry. Opens it read-only."""
    path = settings.store / "registry.db"
    if not path.is_file():
        if any((settings.store / "blobs").glob("sha256/*/*")):
            todo = "restore registry.db, or move the blobs elsewhere to start afresh"
            return Finding("registry", "fail", "missing, but there are blobs", todo)
        return Finding("registry", "ok", "none yet; the first start creates it")
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    try:
        with engine.connect() as connection:
            is_current = migrations.is_current(connection)
    except PrefixStoreError as exc:
        return Finding("registry", "fail", str(exc), "install that version, or restore a backup")
    except DBAPIError as exc:
        todo = "restore a backup: see docs/operations.md"
        return Finding("registry", "fail", f"cannot be read: {exc.orig}", todo)
    finally:
        engine.dispose()
    if not is_current:
        todo = "back it up: the next start upgrades it, which cannot be undone"
        return Finding("registry", "warn", "written by an older version", todo)
    return Finding("registry", "ok", f"schema {migrations.known()[-1]}")


def keys(settings: Settings) -> Finding:
    """Check that the server would not be open to everyone."""
    path = settings.key_pepper_file or settings.store / "pepper"
    if path.exists():
        try:
            load_pepper(path, create=False)
        except PrefixStoreError as exc:
            return Finding("keys", "fail", str(exc), f"restore {path}, readable by its owner only")
    try:
        check_not_open(settings, settings.host if settings.host != "localhost" else "127.0.0.1")
    except (StartError, PrefixStoreError) as exc:
        return Finding("keys", "fail", str(exc), "foreword keys create --name me")
    except ValueError:
        return Finding(
            "keys", "warn", f"{settings.host} is not an IP address", "pass --host ADDRESS"
        )
    if settings.insecure_no_auth:
        todo = "create a key, and remove --insecure-no-auth"
        detail = "everyone who can reach the port has full access to everything"
        return Finding("keys", "warn", detail, todo)
    return Finding("keys", "ok", f"listens on {settings.host}")


def port(settings: Settings) -> Finding:
    """Check that the port is free."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            probe.listen(1)
        except OSError as exc:
            return _no_port(settings, exc)
    return Finding("port", "ok", f"{settings.port} is free" if settings.port else "any free one")


def _no_port(settings: Settings, error: OSError) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE and _ask(f"http://{where}/livez") is not None:
        todo = f"if it is yours, check it with --url http://{where}; else pass another --port"
        return Finding("port", "fail", f"a server already answers at {where}", todo)
    return Finding("port", "fail", f"{where}: {error.strerror}", "pass another --port")


def server(url: str) -> Finding:
    """Check that a running server accepts requests."""
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    health: Any = _ask(f"{url}/readyz")
    if not isinstance(health, dict) or "status" not in health:
        todo = "start it with `foreword serve`, or pass its address with --url"
        return Finding("server", "fail", f"no Foreword server answers at {url}", todo)
    reasons = "; ".join(health.get("reasons", [])) or url
    if health["status"] == "unavailable":
        return Finding("server", "fail", reasons, "wait while it loads; then check its log")
    if health["status"] == "degraded":
        return Finding("server", "warn", reasons, "see docs/operations.md, durability")
    return Finding("server", "ok", f"ready at {url}")


def _ask(url: str) -> object:
    """Return the JSON of a response of any status; None if there is no response."""
    try:
        return httpx.get(url, timeout=_TIMEOUT_S, trust_env=False).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
