"""`foreword keys` and `foreword audit`: on the server's machine, straight in the registry.

That is how the first key is made; no server need run. Whoever can write there needs no key.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from prefix_store.errors import PrefixStoreError, StorageFailure
from prefix_store.registry.audit import Actor, AuditLog, Head
from prefix_store.registry.keys import Grant, Key, Scope
from prefix_store.registry.registry import Registry
from server.settings import Settings
from server.storage import open_keys, open_registry

_BY = Actor(peer="command line")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_PAGE = 1000


def keys(argv: Sequence[str]) -> None:
    """`foreword keys create | list | revoke`"""
    parser = argparse.ArgumentParser("foreword keys", description="Who may do what.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = _command(commands, "create", _create, "Make a key. It is shown request.")
    create.add_argument("--name", required=True, help="What it is for.")
    create.add_argument(
        "--scope", required=True, action="append", choices=get_args(Scope), help="Repeatable."
    )
    create.add_argument(
        "--task",
        action="append",
        metavar="GLOB",
        help="Tasks it is for, such as 'support-*'. Repeatable. Default: all, and the base model.",
    )
    create.add_argument("--expires", type=_moment, metavar="30d", help="After m, h or d.")
    create.add_argument("--requests-per-s", type=float, metavar="X", help="At most, on average.")
    create.add_argument("--burst", type=int, metavar="N", help="That many may come at once.")
    create.add_argument("--max-concurrency", type=int, metavar="N", help="That many may run.")
    create.add_argument("--json", action="store_true", help="Write JSON, for programs.")
    list_ = _command(commands, "list", _list, "Show all keys, not what makes them work.")
    list_.add_argument("--json", action="store_true", help="Write JSON, for programs.")
    revoke = _command(commands, "revoke", _revoke, "Make a key invalid, for good.")
    revoke.add_argument("id", help="What stands behind `fwd_`.")
    _run(parser, argv)


def audit(argv: Sequence[str]) -> None:
    """`foreword audit verify | export`"""
    parser = argparse.ArgumentParser("foreword audit", description="Who changed what.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = _command(commands, "verify", _verify, "Check that no row was changed or taken away.")
    verify.add_argument(
        "--head",
        type=_head,
        metavar="SEQ:HASH",
        help="An end of the chain from the server's log: it must be part of this one.",
    )
    verify.add_argument("--json", action="store_true", help="Write JSON, for programs.")
    _command(commands, "export", _export, "Write all rows, one JSON object a line.")
    _run(parser, argv)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, do: object, help: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help)
    command.add_argument(
        "--store", type=Path, metavar="DIR", help="The server's store. Default: as for the server."
    )
    command.set_defaults(do=do)
    return command


def _run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    args = parser.parse_args(argv)
    try:
        args.do(args)
    except PrefixStoreError as exc:
        parser.exit(2, f"{parser.prog}: {exc}\n")
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(at) for at in first["loc"][:1]) or "key"
        parser.exit(2, f"{parser.prog}: {where}: {first['msg']}\n")


@contextmanager
def _opened(
    args: argparse.Namespace, *, create: bool = False
) -> Iterator[tuple[Settings, Registry]]:
    given = {} if args.store is None else {"store": args.store}
    settings = Settings(_cli_parse_args=False, **given)
    if create:
        settings.store.mkdir(parents=True, exist_ok=True)
    elif settings.registry is None and not (settings.store / "registry.db").is_file():
        raise StorageFailure(f"there is no registry in {settings.store}")
    registry = open_registry(settings, create=create)
    try:
        yield settings, registry
    finally:
        registry.close()


def _create(args: argparse.Namespace) -> None:
    grant = Grant(
        name=args.name,
        scopes=args.scope,
        tasks=args.task or ("*",),
        expires_at=args.expires,
        requests_per_s=args.requests_per_s,
        burst=args.burst,
        max_concurrency=args.max_concurrency,
    )
    with _opened(args, create=True) as (settings, registry):
        key, text = open_keys(settings, registry).create(grant, _BY)
    if args.json:
        _write_json(key.model_dump(mode="json") | {"key": text})
        return
    sys.stderr.write(f"{_line(key)}\nThe key, which is shown only now:\n")
    sys.stdout.write(f"{text}\n")


def _list(args: argparse.Namespace) -> None:
    with _opened(args) as (settings, registry):
        keys = open_keys(settings, registry).list()
    if args.json:
        _write_json([key.model_dump(mode="json") for key in keys])
        return
    for key in keys:
        sys.stdout.write(f"{_line(key)}\n")


def _revoke(args: argparse.Namespace) -> None:
    with _opened(args) as (settings, registry):
        open_keys(settings, registry).revoke(args.id, _BY)


def _verify(args: argparse.Namespace) -> None:
    with _opened(args) as (_, registry):
        log = AuditLog(registry.database)
        head = log.head()
        broken = log.verify(args.head)
    if args.json:
        found = None if broken is None else asdict(broken)
        _write_json({"seq": head.seq, "hash": head.hash, "broken": found})
        raise SystemExit(broken is not None)
    if broken is not None:
        sys.stdout.write(f"row {broken.seq}: {broken.reason}\n")
        raise SystemExit(1)
    sys.stdout.write(f"{head.seq} rows, none changed; the end is {head.seq}:{head.hash}\n")


def _export(args: argparse.Namespace) -> None:
    after = 0
    with _opened(args) as (_, registry):
        while page := AuditLog(registry.database).entries(after, _PAGE):
            for entry in page:
                sys.stdout.write(f"{entry.model_dump_json()}\n")
            after = page[-1].seq


def _write_json(value: object) -> None:
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


def _moment(text: str) -> datetime:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError("a number and m, h or d, such as 30d")
    return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})


def _head(text: str) -> Head:
    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError("SEQ:HASH, as the server's log has them")
    return Head(int(match[1]), match[2])
