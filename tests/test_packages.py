"""Every distribution asks for what it imports: the development extra hides what is missing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    ".": {"server", "prefix_store"},
    "clients/python": {"foreword_client"},
    "clients/bench": {"foreword_bench"},
    "clients/tuner": {"foreword_tuner"},
}
NOT_ASKED_FOR = {
    ".": {
        "pytest",  # `prefix_store.testing` is for the tests of other stores
        "triton",  # torch's builds for CUDA bring the one that fits
    },
}


def project(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return found


def declared(folder: str) -> set[str]:
    """Names of the distributions that are asked for, by the extras for users too."""
    extras = project(folder).get("optional-dependencies", {})
    wanted = [*project(folder)["dependencies"]]
    wanted += [need for extra, needs in extras.items() if extra != "dev" for need in needs]
    return {normal(re.split(r"[<>=~\[; ]", need)[0]) for need in wanted}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: str) -> set[str]:
    """Top-level names, those that are imported inside functions too."""
    packages = DISTRIBUTIONS[folder]
    paths = [path for package in packages for path in (ROOT / folder / package).rglob("*.py")]
    names = {name for path in paths for name in imports_of(ast.parse(path.read_text("utf-8")))}
    return names - packages - sys.stdlib_module_names - NOT_ASKED_FOR.get(folder, set())


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_what_is_imported_is_asked_for(folder: str) -> None:
    owners = packages_distributions()
    asked_for = declared(folder)

    missing = {
        name
        for name in imported(folder)
        if not asked_for & {normal(owner) for owner in owners.get(name, [name])}
    }
    assert missing == set()


def test_the_server_brings_the_command_that_starts_it() -> None:
    """Or the wheel would be installed, and there would be no `foreword`."""
    assert "foreword" in project("clients/python")["scripts"]
    assert "foreword-client" in declared(".")
