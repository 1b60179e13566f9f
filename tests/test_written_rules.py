"""Rules of CONTRIBUTING.md that are about code rather than size: names, state, mocks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.checkout import ROOT, read

PRODUCT = ("server", "prefix_store", "clients")
BREAKS_CODE_ON_PURPOSE = Path("tests/crash/mutants.py")
MOCK = re.compile(r"unittest(\.| import )mock")
EMPTY_WORDS = re.compile(r"(^|_)(utils?|helpers?|common|managers?|handlers?)$|(Manager|Handler)$")


def modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file under these folders, by its path from the root, and its syntax tree."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


def nodes(*folders: str) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of these trees."""
    return ((path, node) for path, tree in modules(*folders) for node in ast.walk(tree))


def test_names_say_what_a_thing_is() -> None:
    classes = [(p, n.name) for p, n in nodes(*PRODUCT) if isinstance(n, ast.ClassDef)]
    files = [(path, path.stem) for path, _ in modules(*PRODUCT)]

    assert len(files) > 100
    assert [found for found in [*files, *classes] if EMPTY_WORDS.search(found[1])] == []


def test_no_function_changes_a_global() -> None:
    found = nodes(*PRODUCT)

    assert [(path, node.lineno) for path, node in found if isinstance(node, ast.Global)] == []


def test_every_dataclass_has_slots() -> None:
    classes = [(path, node) for path, node in nodes(*PRODUCT) if isinstance(node, ast.ClassDef)]
    made = [
        (path, node.name, ast.unparse(decorator))
        for path, node in classes
        for decorator in node.decorator_list
        if ast.unparse(decorator).startswith("dataclass")
    ]

    assert len(made) > 50
    assert [found for found in made if "slots=True" not in found[2]] == []


def test_our_own_code_is_not_mocked() -> None:
    imports = [(p, n) for p, n in nodes("tests") if isinstance(n, ast.Import | ast.ImportFrom)]
    found = {path for path, node in imports if MOCK.search(ast.unparse(node))}

    assert found == {BREAKS_CODE_ON_PURPOSE}


def test_contributing_names_only_checks_that_exist() -> None:
    rules = read("CONTRIBUTING.md").partition("## House rules")[2].partition("The rest is habit")[0]
    named = re.findall(r"`(tests/[\w/.]+)`|`make ([\w-]+)`", rules)

    assert len(named) >= 8
    for path, target in named:
        assert (ROOT / path).is_file() if path else f"\n{target}:" in read("Makefile")
