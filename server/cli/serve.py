"""`foreword serve`: settings -> app -> uvicorn. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError
from rich.console import Console

from prefix_store.errors import PrefixStoreError
from prefix_store.registry.keys import keys_exist
from server import logs
from server.api.http.deps import Services
from server.api.http.http_server import HttpServer
from server.app import build
from server.default_model import DefaultModelError, ensure_default_model
from server.errors import ServerError
from server.settings import Settings
from server.storage import open_registry

_ENV_PREFIX = "FOREWORD_"
_CLIENT_VARIABLES = {"FOREWORD_URL", "FOREWORD_API_KEY"}


class StartError(Exception):
    """The server cannot start as it was told to. The message is one line for the user."""


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal says otherwise. `argv`: without the program's name."""
    try:
        settings = read_settings(argv)
        logs.configure(settings.log_level)
        torch.set_num_threads(1)  # the cores are the engine's
        asyncio.run(_serve(settings))
    except (StartError, DefaultModelError, PrefixStoreError, ServerError) as exc:
        sys.stderr.write(f"foreword: {exc}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def read_settings(argv: list[str] | None) -> Settings:
    """From the command line and the environment. Raises `StartError`."""
    known = {f"{_ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | _CLIENT_VARIABLES
    given = {name for name in os.environ if name.upper().startswith(_ENV_PREFIX)}
    if unknown := sorted(name for name in given if name.upper() not in known):
        raise StartError(f"unknown environment variable {unknown[0]}{_meant(unknown[0], known)}")
    argv = sys.argv[1:] if argv is None else argv
    _check_options(argv)
    try:
        return CliApp.run(Settings, cli_args=argv)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(at) for at in first["loc"]) or "settings"
        raise StartError(f"{name}: {first['msg']}") from None
    except SettingsError as exc:
        raise StartError(str(exc)) from None


def _check_options(argv: list[str]) -> None:
    """argparse would answer a misspelt option with all others. Raises `StartError`."""
    names = [name.replace("_", "-") for name in Settings.model_fields]
    known = {"--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)}
    for option in (arg.partition("=")[0] for arg in argv if arg.startswith("--")):
        if not any(name.startswith(option) for name in known):
            raise StartError(f"unknown option {option}{_meant(option, known)}")


def _meant(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else "; see --help for the settings"


async def _serve(settings: Settings) -> None:
    with _listening(settings) as listener:
        app = await asyncio.to_thread(_build, settings, listener.getsockname()[0])
        services: Services = app.state.services
        async with app.router.lifespan_context(app):
            await _announce(services, listener)
            _ignore_signals()
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
    """Raises `StartError` where strangers could reach a server that asks nobody for a key."""
    if settings.insecure_no_auth or ipaddress.ip_address(address).is_loopback:
        return
    registry = open_registry(settings)
    try:
        if keys_exist(registry.database):
            return
    finally:
        registry.close()
    raise StartError(
        f"there is no key, and {address} is not loopback: make one with `foreword keys create "
        "--name admin --scope admin`, or, where something else keeps strangers out, start with "
        "--insecure-no-auth"
    )


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """A bound socket, taken before minutes are spent on loading a model."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as exc:
            where = f"{settings.host}:{settings.port}"
            raise StartError(f"cannot listen on {where}: {exc.strerror or exc}") from None
        yield listener


def _ignore_signals() -> None:
    """uvicorn raises a signal once more when it has shut down; ours is to clean up and exit 0."""
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
        console.print("Keys: none, so everybody who can connect may do everything", markup=False)
