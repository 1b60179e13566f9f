"""How commands end: one line for an error, and one set of exit codes.

0: done. 1: the server refused, or a check failed. 2: a mistake in the command line. 130: Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from foreword_client.cli import output
from foreword_client.errors import (
    APIStatusError,
    ForewordError,
    NoServerError,
    PreconditionFailedError,
)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors of the body into one line on standard error and `SystemExit`."""
    try:
        yield
    except typer.TyperException as exc:
        _fail(_usage(exc), exc.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except ForewordError as exc:
        _fail(_with_advice(exc))
    except BrokenPipeError:
        _stop_writing()
        sys.exit(1)
    except OSError as exc:
        _fail(f"{exc.filename or 'input/output'}: {exc.strerror or exc}")


def _usage(error: typer.TyperException) -> str:
    """Format a mistake in the command line, with the closest match for a misspelt option."""
    closest = getattr(error, "possibilities", None)
    text = f"{error.message}; did you mean {closest[0]}?" if closest else error.format_message()
    return text.removeprefix("Invalid value: ").replace("Value error, ", "")


def _with_advice(error: ForewordError) -> str:
    """Format an error, with what a user at a terminal can do about it."""
    match error:
        case NoServerError():
            return f"{error}; start one with `foreword serve`, or pass its address with --url"
        case PreconditionFailedError():
            return f"{error}; nothing was done, see `foreword task` and try again [{error.code}]"
        case APIStatusError(status=status) if status >= 500:
            return f"{error} [{error.code}, request {error.request_id}]"
        case APIStatusError():
            return f"{error} [{error.code}]"
        case _:
            return str(error)


def _fail(text: str, code: int = 1) -> NoReturn:
    output.error(text)
    sys.exit(code)


def _stop_writing() -> None:
    """Discard further output: the reader has gone, and the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
