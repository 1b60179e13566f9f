"""What `foreword doctor` looks at, one function each. None of them raises, none leaves a trace."""

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
    """Python and what the engine is made of."""
    yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))  # pip saw to it
    for name, needed in _NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"pip install {name}")
            continue
        is_old = tuple(int(part) for part in found.split(".")[:2]) < needed
        todo = f"pip install --upgrade {name}; from {needed[0]}.{needed[1]} on" if is_old else ""
        yield Finding(name, "fail" if is_old else "ok", found, todo)


def device(settings: Settings) -> Finding:
    """Where the model would run, and in which dtype."""
    try:
        chosen = choose_device(settings.device)
    except ValueError as exc:
        return Finding("device", "fail", str(exc), "leave --device out, or say --device cpu")
    dtype = choose_dtype(settings.dtype, chosen)
    if chosen == "cuda":
        return Finding("device", "ok", f"{torch.cuda.get_device_name()}, {dtype}")
    return Finding("device", "ok", f"cpu, {settings.num_threads or os.cpu_count()} cores, {dtype}")


def compiler(settings: Settings) -> Finding:
    """Whether the compiled layers can be had, where they would be used."""
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
        todo = "install g++ (or: pip install ziglang); without, the engine is a few times slower"
        return Finding("compiler", "fail" if is_needed else "warn", str(exc), todo)


def model(settings: Settings) -> Finding:
    """Whether the base model is here, and of a family that is served. That its weights are right
    shows at the start."""
    if settings.model != "default":
        return _own_model(settings.model)
    folder = default_folder(settings.cache)
    if folder.is_dir():
        return Finding("model", "ok", f"SmolLM2-135M-Instruct, in {folder}")
    free = shutil.disk_usage(_existing(settings.cache)).free
    if free < MIN_FREE_BYTES:
        detail = f"{free // 10**6} MB free in {settings.cache}, {MIN_FREE_BYTES // 10**6} needed"
        return Finding("model", "fail", detail, "make room, or name a folder with --cache")
    todo = "the first start fetches it (93 MB); without a network: --model FOLDER"
    return Finding("model", "warn", "SmolLM2-135M-Instruct is not here yet", todo)


def _own_model(name: str) -> Finding:
    path = Path(name)
    if not path.is_dir():
        if name.startswith(("/", ".", "~")):
            return Finding("model", "fail", f"no such folder: {name}", "say --model FOLDER")
        todo = "the first start fetches it from the hub; name a folder to be sure"
        return Finding("model", "warn", f"{name} is not a folder here", todo)
    files = ("config.json", "tokenizer_config.json")
    missing = [name for name in files if not (path / name).exists()]
    if not _weights(path):
        missing.append("*.safetensors")
    if missing:
        detail = f"{name} has no {', '.join(missing)}"
        return Finding("model", "fail", detail, "save model and tokenizer there: save_pretrained")
    try:
        check_supported(read_config(name))
    except (UnsupportedModel, OSError) as exc:
        return Finding("model", "fail", first_line(exc), "say --model with another one")
    return Finding("model", "ok", name)


def _weights(folder: Path) -> int:
    """Bytes of all weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def memory(settings: Settings) -> Finding:
    """Free memory against the weights and the pool that was asked for."""
    is_default = settings.model == "default"
    folder = default_folder(settings.cache) if is_default else Path(settings.model)
    needed = _weights(folder) + (settings.kv_cache_bytes or 0)
    free = _free_bytes(settings)
    if free is None:
        return Finding("memory", "warn", "how much is free is not known here")
    detail = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB for weights"
    detail += " and pool" if settings.kv_cache_bytes else ""
    if free < needed:
        return Finding("memory", "fail", detail, "a smaller model, or a smaller --kv-cache-bytes")
    if free < 2 * needed:
        return Finding("memory", "warn", detail, "leave as much again for steps and prefixes")
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
    """Whether the store's folder is there, or can be made, and takes files."""
    place = _existing(settings.store)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"foreword doctor")
    except OSError as exc:
        todo = "give this user the folder, or name another with --store"
        return Finding("store", "fail", f"cannot write in {place}: {exc.strerror}", todo)
    free = shutil.disk_usage(place).free
    detail = f"{settings.store}, {free / 1e9:.1f} GB free"
    if free < _LOW_DISK_BYTES:
        return Finding("store", "warn", detail, "make room: full, it takes no uploads")
    return Finding("store", "ok", detail if place == settings.store else f"{detail}; not made yet")


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def registry(settings: Settings) -> Finding:
    """Whether this version can open the registry, read without touching it."""
    path = settings.store / "registry.db"
    if not path.is_file():
        if any((settings.store / "blobs").glob("sha256/*/*")):
            todo = "put registry.db back; or move the blobs away to begin anew"
            return Finding("registry", "fail", "missing, though there are blobs", todo)
        return Finding("registry", "ok", "none yet; the first start makes it")
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
        todo = "back it up: the next start upgrades it, and there is no way back"
        return Finding("registry", "warn", "of an older version", todo)
    return Finding("registry", "ok", f"schema {migrations.known()[-1]}")


def keys(settings: Settings) -> Finding:
    """Whether strangers would be kept out."""
    path = settings.key_pepper_file or settings.store / "pepper"
    if path.exists():
        try:
            load_pepper(path, create=False)
        except PrefixStoreError as exc:
            return Finding("keys", "fail", str(exc), f"put {path} back as it was, for its owner")
    try:
        check_not_open(settings, settings.host if settings.host != "localhost" else "127.0.0.1")
    except (StartError, PrefixStoreError) as exc:
        return Finding("keys", "fail", str(exc), "foreword keys create --name admin --scope admin")
    except ValueError:
        return Finding("keys", "warn", f"{settings.host} is no address", "say --host ADDRESS")
    if settings.insecure_no_auth:
        todo = "make a key, and take --insecure-no-auth out"
        return Finding("keys", "warn", "whoever reaches the port may do everything", todo)
    return Finding("keys", "ok", f"listens on {settings.host}")


def port(settings: Settings) -> Finding:
    """Whether the port can be had."""
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
        todo = f"nothing, if it is yours; ask it with --url http://{where}"
        return Finding("port", "fail", f"a server answers at {where} already", todo)
    return Finding("port", "fail", f"{where}: {error.strerror}", "say --port with another one")


def server(url: str) -> Finding:
    """Whether a running server takes requests."""
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    health: Any = _ask(f"{url}/readyz")
    if not isinstance(health, dict) or "status" not in health:
        todo = "start it: foreword serve; or say where it is"
        return Finding("server", "fail", f"no Foreword server answers at {url}", todo)
    reasons = "; ".join(health.get("reasons", [])) or url
    if health["status"] == "unavailable":
        return Finding("server", "fail", reasons, "wait while it loads; then look into its log")
    if health["status"] == "degraded":
        return Finding("server", "warn", reasons, "see docs/operations.md, durability")
    return Finding("server", "ok", f"ready at {url}")


def _ask(url: str) -> object:
    """The JSON that is answered, whatever the status; None if nobody does."""
    try:
        return httpx.get(url, timeout=_TIMEOUT_S, trust_env=False).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
