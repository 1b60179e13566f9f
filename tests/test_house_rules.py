"""The rules of the house that CONTRIBUTING.md states: small rooms, small files, plain words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("server", "prefix_store", "clients")
SKIPPED = {".venv", ".git", ".hypothesis", "__pycache__", "node_modules", "build"}
TEXTS = {".py", ".cpp", ".md", ".toml", ".yml", ".yaml", ".html", ".js", ".css", ".mk", ""}
MAX_MODULES = 14
MAX_LINES = 300
MAX_FUNCTION_LINES = 60

DIALECT = {
    "behind, for after or with": r"\bbehind (a|the|its|two|their|this|that) (prefix|task|version)",
    "mend": r"\bmend(s|ed|ing)?\b",
    "is away": r"\b(is|are|was|were) away\b",
    "is told": r"\b(is|are|was|were) told\b",
    "how-manieth": r"how-manieth",
    "likewise": r"\blikewise\b",
    "whoever": r"\bwhoever\b",
}


def python_files(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in paths if not SKIPPED.intersection(path.parts))


def texts() -> list[Path]:
    def is_text(path: Path) -> bool:
        parts = path.relative_to(ROOT).parts
        hidden = any(part in SKIPPED or part.endswith("_cache") for part in parts)
        return path.is_file() and path.suffix in TEXTS and not hidden

    own = Path(__file__)
    return sorted(path for path in ROOT.rglob("*") if is_text(path) and path != own)


def test_a_folder_holds_few_modules() -> None:
    folders = {path.parent for path in python_files("server", "prefix_store")}
    sizes = {
        str(folder.relative_to(ROOT)): len([p for p in folder.glob("*.py") if p.name[:2] != "__"])
        for folder in folders
    }

    assert {folder: size for folder, size in sizes.items() if size > MAX_MODULES} == {}


def test_files_are_short() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in python_files(*PRODUCT, "tests")
    }

    assert {path: num for path, num in lines.items() if num > MAX_LINES} == {}


def test_functions_are_short() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        f"{path.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in python_files(*PRODUCT)
        if not path.name.endswith("_kernels.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, functions)
    }

    assert {name: num for name, num in lengths.items() if num > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("pattern", DIALECT.values(), ids=DIALECT)
def test_words_are_the_fields(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]

    assert found == []
