"""`foreword keys` and `foreword audit`: on the server's machine, directly in the registry.

They need no running server, so that the first key can be made, and no key: file access is enough.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from pydantic import ValidationError

from prefix_store.errors import StorageFailure
from prefix_store.registry.audit import Actor, AuditLog, Head
from prefix_store.registry.keys import Grant, Key, Scope
from prefix_store.registry.registry import Registry
from server.cli.app import HELP_OPTIONS, run
from server.cli.options import make_settings
from server.settings import Settings
from server.storage import open_keys, open_registry

_BY = Actor(peer="command line")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_SCOPES: tuple[Scope, ...] = get_args(Scope)
_PAGE = 1000

Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="The server's store. Default: the one `foreword serve` would use.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def keys(argv: Sequence[str]) -> None:
    """`foreword keys create | list | revoke`"""
    app = _group("Create, list and revoke API keys.")
    app.command("create")(_create)
    app.command("list")(_list)
    app.command("revoke")(_revoke)
    run(app, argv, "keys")


def audit(argv: Sequence[str]) -> None:
    """`foreword audit verify | export`"""
    app = _group("Verify and export the audit log.")
    app.command("verify")(_verify)
    app.command("export")(_export)
    run(app, argv, "audit")


def _group(help: str) -> typer.Typer:
    return typer.Typer(
        help=help, add_completion=False, rich_markup_mode="rich", context_settings=HELP_OPTIONS
    )


@contextmanager
def _opened(store: Path | None, *, create: bool = False) -> Iterator[tuple[Settings, Registry]]:
    """Open the registry of a store. Raises `PrefixStoreError`, `StartError`."""
    settings = make_settings({} if store is None else {"store": store})
    if create:
        settings.store.mkdir(parents=True, exist_ok=True)
    elif settings.registry is None and not (settings.store / "registry.db").is_file():
        raise StorageFailure(f"there is no registry in {settings.store}")
    registry = open_registry(settings, create=create)
    try:
        yield settings, registry
    finally:
        registry.close()


def _scope(text: str) -> str:
    if text not in _SCOPES:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(_SCOPES)}")
    return text


def _expiry(text: str) -> datetime:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if match is None:
        raise typer.BadParameter("a number and m, h or d, such as 30d")
    return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})


def _head(text: str) -> Head:
    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise typer.BadParameter("SEQ:HASH, as in the server's log")
    return Head(int(match[1]), match[2])


def _create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            parser=_scope,
            metavar="SCOPE",
            help=f"One of {', '.join(_SCOPES)}. Repeatable. Default: all of them; with --task, all "
            "but admin.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Tasks it may use, such as 'support-*'. Repeatable. Default: all, and the base "
            "model.",
        ),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(parser=_expiry, metavar="30d", help="Lifetime in m, h or d. Default: none."),
    ] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(metavar="X", help="Average rate limit.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that may arrive at once.")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Requests, and sequences, that may run at once.")
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Create a key. It is shown only once."""
    try:
        grant = Grant(
            name=name,
            scopes=cast(tuple[Scope, ...], tuple(scope)) if scope else _default_scopes(task),
            tasks=tuple(task) if task else ("*",),
            expires_at=expires,
            requests_per_s=requests_per_s,
            burst=burst,
            max_concurrency=max_concurrency,
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1]) or "key"
        raise typer.BadParameter(f"{where}: {first['msg']}") from None
    with _opened(store, create=True) as (settings, registry):
        key, text = open_keys(settings, registry).create(grant, _BY)
    if as_json:
        _print_json(key.model_dump(mode="json") | {"key": text})
        return
    sys.stderr.write(f"{_line(key)}\nThe key, shown only this once:\n")
    sys.stdout.write(f"{text}\n")


def _default_scopes(tasks: list[str] | None) -> tuple[Scope, ...]:
    """Return the scopes of an owner. Admins are for all tasks."""
    return tuple(scope for scope in _SCOPES if scope != "admin" or not tasks)


def _list(store: Store = None, as_json: AsJson = False) -> None:
    """List all keys, without their secrets."""
    with _opened(store) as (settings, registry):
        keys = open_keys(settings, registry).list()
    if as_json:
        _print_json([key.model_dump(mode="json") for key in keys])
        return
    for key in keys:
        sys.stdout.write(f"{_line(key)}\n")


def _revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id: the part after `fwd_`.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key. This cannot be undone."""
    with _opened(store) as (settings, registry):
        open_keys(settings, registry).revoke(id, _BY)
    if as_json:
        _print_json({})
    else:
        sys.stdout.write(f"revoked {id}\n")


def _verify(
    head: Annotated[
        Head | None,
        typer.Option(
            parser=_head,
            metavar="SEQ:HASH",
            help="A head of the chain from the server's log, which this chain must contain.",
        ),
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Check that no row of the audit log was changed or removed. Exits with 1 if one was."""
    with _opened(store) as (_, registry):
        log = AuditLog(registry.database)
        end = log.head()
        broken = log.verify(head)
    if as_json:
        found = None if broken is None else asdict(broken)
        _print_json({"seq": end.seq, "hash": end.hash, "broken": found})
    elif broken is not None:
        sys.stdout.write(f"row {broken.seq}: {broken.reason}\n")
    else:
        sys.stdout.write(f"{end.seq} rows, none changed; the head is {end.seq}:{end.hash}\n")
    if broken is not None:
        raise typer.Exit(1)


def _export(store: Store = None) -> None:
    """Print all rows, one JSON object per line."""
    after = 0
    with _opened(store) as (_, registry):
        while page := AuditLog(registry.database).entries(after, _PAGE):
            for entry in page:
                sys.stdout.write(f"{entry.model_dump_json()}\n")
            after = page[-1].seq


def _print_json(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value, indent=2)}\n")


def _line(key: Key) -> str:
    if key.revoked_at is not None:
        state = f"revoked {key.revoked_at:%Y-%m-%d}"
    elif key.expires_at is not None:
        verb = "expires" if key.is_valid(datetime.now(UTC)) else "expired"
        state = f"{verb} {key.expires_at:%Y-%m-%d %H:%M}"
    else:
        state = "valid"
    return f"{key.id}  {state}  {','.join(key.scopes)}  {','.join(key.tasks)}  {key.name}"
