"""Command-line options generated from `Settings`, so that a setting is stated once.

The options, their environment variables and their defaults in `--help` come from the fields.
Bounds are checked by `Settings` itself, whatever a value came from.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from server.cli.app import HELP_OPTIONS, StartError, message
from server.settings import Settings

_ENV_PREFIX = "FOREWORD_"
_CLIENT_VARIABLES = {"FOREWORD_URL", "FOREWORD_API_KEY"}
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def with_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """Give a command one option for every setting. It is called with the `Settings` they make.

    Raises `StartError` for an unknown `FOREWORD_*` variable and for a value out of bounds.
    """

    def wrapper(ctx: typer.Context, **values: Any) -> None:
        check_variables()
        given = {name: value for name, value in values.items() if _is_given(ctx, name)}
        command(make_settings(given))

    fields = Settings.model_fields.items()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ctx = inspect.Parameter("ctx", kind, annotation=typer.Context)
    parameters = [ctx, *(_parameter(name, field) for name, field in fields)]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__doc__ = command.__doc__
    return wrapper


def read_settings(argv: Sequence[str]) -> Settings:
    """Read the options of `foreword serve` and the environment. Raises `StartError`."""
    found: list[Settings] = []
    app = typer.Typer(add_completion=False)
    app.command(context_settings=HELP_OPTIONS)(with_settings(found.append))
    try:
        typer.main.get_command(app).main(args=list(argv), standalone_mode=False)
    except typer.TyperException as exc:
        raise StartError(message(exc)) from None
    if not found:  # it printed its help
        raise StartError("see `foreword serve --help`")
    return found[0]


def check_variables() -> None:
    """Refuse a misspelt `FOREWORD_*` variable. Raises `StartError`."""
    known = {f"{_ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | _CLIENT_VARIABLES
    given = {name for name in os.environ if name.upper().startswith(_ENV_PREFIX)}
    unknown = sorted(name for name in given if name.upper() not in known)
    if not unknown:
        return
    closest = difflib.get_close_matches(unknown[0], sorted(known), 1)
    hint = f"did you mean {closest[0]}?" if closest else "see `foreword serve --help`"
    raise StartError(f"unknown environment variable {unknown[0]}; {hint}")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def make_settings(given: dict[str, Any]) -> Settings:
    """Settings from these values and the environment. Raises `StartError`, without any value."""
    try:
        return Settings(**given)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise StartError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
    except SettingsError as exc:
        raise StartError(str(exc)) from None


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _option_type(field.annotation)
    option = typer.Option(
        f"--{_kebab(name)}/--no-{_kebab(name)}" if kind is bool else f"--{_kebab(name)}",
        help=field.description,
        envvar=f"{_ENV_PREFIX}{name.upper()}",
        show_envvar=True,
        metavar=_METAVARS.get(kind),
    )
    default = field.get_default(call_default_factory=True, validated_data={})
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if default is not None else kind | None, option],
    )


def _option_type(annotation: Any) -> Any:
    """Return what the command line reads: `int` for `int | None`, `str` for a secret."""
    if get_origin(annotation) is not Literal:
        annotation = next((t for t in get_args(annotation) if t is not type(None)), annotation)
    return str if annotation is SecretStr else annotation


def _kebab(name: str) -> str:
    return name.replace("_", "-")
