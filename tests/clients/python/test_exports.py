from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest

import foreword_client
from foreword_client import AsyncClient, AsyncStream, Client, Stream, errors, types


def test_exported_names_are_sorted_and_complete() -> None:
    public = {
        name
        for name, value in vars(foreword_client).items()
        if inspect.isclass(value) and not name.startswith("_")
    }

    assert foreword_client.__all__ == sorted(foreword_client.__all__)
    assert set(foreword_client.__all__) == public | {"__version__"}


def test_every_error_and_every_type_a_user_meets_is_exported() -> None:
    named = {
        n for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__
    }
    met = {
        n
        for n, v in vars(types).items()
        if inspect.isclass(v) and v.__module__.startswith(f"{types.__name__}.")
    }

    assert named <= set(foreword_client.__all__)
    assert met - set(foreword_client.__all__) == {"Answer", "AuditPage", "KeyList", "TaskPage"}


def _signatures(kind: type) -> list[tuple[str, list[str]]]:
    return [
        (name, list(inspect.signature(method).parameters))
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]


@pytest.mark.parametrize(("sync", "asynchronous"), [(Client, AsyncClient), (Stream, AsyncStream)])
def test_both_kinds_have_the_same_methods_in_the_same_order(sync: type, asynchronous: type) -> None:
    assert _signatures(sync) == _signatures(asynchronous)


def test_the_methods_of_a_client_are_short_and_documented() -> None:
    for kind in (Client, AsyncClient):
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                assert method.__doc__, name


def test_the_version_is_the_distributions() -> None:
    assert foreword_client.__version__ == version("foreword-client")
