"""Start of a server: settings -> app -> uvicorn. What keeps it from starting is a `StartError`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
import typer
from fastapi import FastAPI
from rich.console import Console

from prefix_store.errors import PrefixStoreError
from prefix_store.registry.keys import keys_exist
from server import logs
from server.api.http.allowed_hosts import ANY_ORIGIN
from server.api.http.deps import Services
from server.api.http.http_server import MIN_FILES, HttpServer, raise_file_limit
from server.app import build
from server.cli.app import StartError
from server.default_model import DefaultModelError, ensure_default_model
from server.errors import ServerError
from server.settings import Settings
from server.storage import open_registry

_STOPS = (signal.SIGINT, signal.SIGTERM)


def start(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `StartError`."""
    logs.configure(settings.log_level)
    torch.set_num_threads(1)  # the cores are the engine's
    _check_file_limit(settings.max_connections)
    try:
        asyncio.run(_serve(settings))
    except (DefaultModelError, PrefixStoreError, ServerError) as exc:
        raise StartError(str(exc)) from None


async def _serve(settings: Settings) -> None:
    with _listening(settings) as listener, _stoppable() as starting:
        app = await asyncio.to_thread(_build, settings, listener.getsockname()[0])
        services: Services = app.state.services
        async with app.router.lifespan_context(app):
            await _announce(services, listener)
            server = HttpServer(app, drain_timeout_s=settings.drain_timeout_s)
            starting.close()
            _stop_by_signal(server)
            freeze_garbage()
            await server.serve([listener])


def _build(settings: Settings, address: str) -> FastAPI:
    check_writable(settings.store)
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


def _check_file_limit(max_connections: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_FILES:
        raise StartError(
            f"the limit of open files is {hard}, and the server needs {MIN_FILES}: raise it with "
            "`ulimit -n`, or LimitNOFILE of systemd"
        )
    raise_file_limit(max_connections)


def check_writable(store: Path) -> None:
    """Create the store's folder and write a file there. Raises `StartError`."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as exc:
        raise StartError(
            f"cannot use the store {store}: {exc.strerror}; let this user write there, or name "
            "another folder with --store"
        ) from None


@contextlib.contextmanager
def _stoppable() -> Iterator[contextlib.ExitStack]:
    """End the start on SIGTERM or SIGINT, until the block ends or what it gets is closed.

    The first signal cancels the task, which stops the engine. A second one exits at once.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if received:
            _exit(number)
        received.append(number)
        assert task is not None
        task.cancel()

    with contextlib.ExitStack() as stack:
        for number in _STOPS:
            loop.add_signal_handler(number, stop, number)
            stack.callback(loop.remove_signal_handler, number)
        try:
            yield stack
        except asyncio.CancelledError:
            if not received:
                raise
            _exit(received[0])


def _exit(number: signal.Signals) -> NoReturn:
    """Exit without waiting for threads, of which one may be converting the model."""
    message = f"stopped by {number.name} before the server was ready"
    typer.secho(f"error: {message}", fg="red", err=True)
    os._exit(128 + number)


def _stop_by_signal(server: HttpServer) -> None:
    """Have signals stop the server that come before uvicorn expects them, and ignore later ones.

    uvicorn raises them again after its shutdown, when we clean up and exit with 0.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in _STOPS:
        signal.signal(number, stop)


def freeze_garbage() -> None:
    """Exempt all that exists at the start from garbage collection: going through the objects of the
    libraries would stop the event loop for a fifth of a second, now and then."""
    gc.collect()
    gc.freeze()


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
