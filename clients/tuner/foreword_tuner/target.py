"""The server that a result will be pushed to, asked before training starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foreword_client import (
    Client,
    Info,
    InvalidUploadError,
    PermissionDeniedError,
    Profile,
    UnknownTaskError,
)
from foreword_tuner.errors import TunerError

DEFAULT = "default"
_DEFAULT_NAME = "SmolLM2-135M-Instruct"
_DEFAULT_MODULE = "server.default_model"
_UNSET = {"template": None, "chat": False}
_NO_PREFIX = bytes(8)
"""An upload that can only be refused for its content: first the server checks the key, its scopes
and the task's name."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a server says about itself and a task. None: the key may not read it."""

    task: str
    info: Info | None
    profile: Profile | None
    """Also None for a task that says nothing yet about how it is asked."""

    def check_length(self, num_virtual_tokens: int) -> None:
        """Raise `TunerError` for a prefix that is too long for the server."""
        limit = self.info.limits.max_prefix_tokens if self.info else None
        if limit is not None and num_virtual_tokens > limit:
            raise TunerError(f"--virtual-tokens: the server takes at most {limit}")

    def check_base(self, name: str, fingerprint: str) -> None:
        """Raise `TunerError` unless a base model is the server's."""
        if self.info is not None and self.info.fingerprint != fingerprint:
            raise TunerError(
                f"the base model {name} is not the one that the server runs, {self.info.model}: "
                "their weights differ"
            )

    def differences(self, definition: Mapping[str, Any]) -> list[str]:
        """Compare a definition with the task's: one text for each part that would change."""
        if self.profile is None:
            return []
        old, new = _parts(self.profile.model_dump()), _parts(definition)
        return [
            f"{name} {_shown(old.get(name))} becomes {_shown(new.get(name))}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]


def _parts(definition: Mapping[str, Any]) -> dict[str, Any]:
    parts = {"template": definition["template"], "chat": definition["chat"]}
    return parts | {k: v for k, v in definition["defaults"].items() if v is not None}


def _shown(value: object) -> str:
    return "unset" if value is None else repr(value)


def of_push(task: str, url: str, api_key: str | None) -> Target:
    """Ask a server, before it is pushed to, what would refuse the push. An empty `url` is the
    client's default. Raises `ForewordError`."""
    with Client(url or None, api_key=api_key) as client:
        with suppress(InvalidUploadError):
            client.rehearse(task, _NO_PREFIX)
        return Target(task, _info(client), _profile(client, task))


def _info(client: Client) -> Info | None:
    with suppress(PermissionDeniedError):
        return client.info()
    return None


def _profile(client: Client, task: str) -> Profile | None:
    with suppress(PermissionDeniedError, UnknownTaskError):
        found = client.task(task)
        if found.num_versions or _parts(found.profile.model_dump()) != _UNSET:
            return found.profile
    return None


# --- the base model ---


def base_of(given: str, target: Target | None, api_key: str | None) -> str:
    """Return the folder or hub id of a base model: `default` is the servers' default model, and
    empty that of the target, or without one of the client's default server. Raises
    `ForewordError`."""
    if given:
        if given.startswith(("/", ".", "~")) and not Path(given).is_dir():
            raise TunerError(f"--base: there is no folder {given}")
        return default_model() if given == DEFAULT else given
    if target is None:
        with Client(api_key=api_key) as client:
            return _as_served(client.info().model)
    if target.info is None:
        raise TunerError("the key may not read which base model the server runs: pass --base")
    return _as_served(target.info.model)


def _as_served(name: str) -> str:
    """Find a server's base model on this machine. A server tells a hub id, or the name of a folder
    without its path. Raises `TunerError`."""
    if name == _DEFAULT_NAME:
        return default_model()
    if "/" in name or Path(name, "config.json").is_file():
        return name
    raise TunerError(
        f"the server runs the folder {name}, and tells no path: pass your copy of it with --base"
    )


def default_model() -> str:
    """Return the folder of the servers' default model, which is made if it does not exist.

    The server does that, as its settings say where. Raises `TunerError`.
    """
    if not _is_server_installed():
        raise TunerError(
            "the default model needs Foreword's server, which is not installed here: pass a folder "
            "or hub id with --base"
        )
    command = [sys.executable, "-m", _DEFAULT_MODULE]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise TunerError("the default model could not be made: see the message above")
    return done.stdout.strip()


def _is_server_installed() -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec(_DEFAULT_MODULE) is not None
    return False
