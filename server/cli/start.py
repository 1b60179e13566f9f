"""Start of a server: settings -> app -> uvicorn. What keeps it from starting is a `StartError`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
from fastapi import FastAPI
from rich.console import Console

from prefix_store.errors import PrefixStoreError
from prefix_store.registry.keys import keys_exist
from server import logs
from server.api.http.allowed_hosts import ANY_ORIGIN
from server.api.http.deps import Services
from server.api.http.http_server import HttpServer
from server.app import build
from server.cli.app import StartError
from server.default_model import DefaultModelError, ensure_default_model
from server.errors import ServerError
from server.settings import Settings
from server.storage import open_registry


def start(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `StartError`."""
    logs.configure(settings.log_level)
    torch.set_num_threads(1)  # the cores are the engine's
    try:
        asyncio.run(_serve(settings))
    except (DefaultModelError, PrefixStoreError, ServerError) as exc:
        raise StartError(str(exc)) from None


async def _serve(settings: Settings) -> None:
    with _listening(settings) as listener:
        app = await asyncio.to_thread(_build, settings, listener.getsockname()[0])
        services: Services = app.state.services
        async with app.router.lifespan_context(app):
            await _announce(services, listener)
            _ignore_signals()
            freeze_garbage()
            await HttpServer(app, drain_timeout_s=settings.drain_timeout_s).serve([listener])


def _build(settings: Settings, address: str) -> FastAPI:
    try:
        settings.store.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"cannot use the store {settings.store}: {exc.strerror}") from None
    check_not_open(settings, address)
    is_default = settings.model == "default"
    model = str(ensure_default_model(settings.cache)) if is_default else settings.model
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise StartError(f"cannot load the model {model}: no such folder")
    try:
        return build(settings, model)
    except (OSError, ValueError) as exc:
        said = str(exc).strip().splitlines()
        raise StartError(f"cannot load the model {model}: {said[0] if said else exc!r}") from None


def check_not_open(settings: Settings, address: str) -> None:
    """Refuse, without any key, to listen beyond loopback or to all web pages.

    Raises `StartError`.
    """
    is_loopback = ipaddress.ip_address(address).is_loopback
    is_reachable = not (is_loopback or settings.insecure_no_auth)
    if not (is_reachable or ANY_ORIGIN in settings.origins) or _has_keys(settings):
        return
    how = "create one with `foreword keys create --name me`"
    if ANY_ORIGIN in settings.origins:
        raise StartError(
            "there is no key, and cors_origins is `*`, so that every web page could use the "
            f"server: {how}, or list the origins"
        )
    raise StartError(
        f"there is no key, and {address} is not loopback: {how}, or, if access is restricted "
        "otherwise, start with --insecure-no-auth"
    )


def _has_keys(settings: Settings) -> bool:
    registry = open_registry(settings)
    try:
        return keys_exist(registry.database)
    finally:
        registry.close()


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """Bind the socket, before minutes are spent on loading a model."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as exc:
            where = f"{settings.host}:{settings.port}"
            raise StartError(f"cannot listen on {where}: {exc.strerror or exc}") from None
        yield listener


def freeze_garbage() -> None:
    """Exempt all that exists at the start from garbage collection: going through the objects of the
    libraries would stop the event loop for a fifth of a second, now and then."""
    gc.collect()
    gc.freeze()


def _ignore_signals() -> None:
    """Ignore the signal that uvicorn raises again after shutdown: we clean up and exit with 0."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


async def _announce(services: Services, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    tasks = await services.store.list_tasks()
    names = [task.name for task in tasks if task.active_version is not None]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Foreword serves {services.model_name} on {url}", markup=False)
    console.print(f"Tasks: {', '.join(names) or 'none yet'}", markup=False)
    if services.console:
        console.print(f"Console: {url}/console", markup=False)
    console.print(f"API: {url}/docs", markup=False)
    if not await services.store.keys_exist():
        console.print("Keys: none, so everyone who can connect has full access", markup=False)
