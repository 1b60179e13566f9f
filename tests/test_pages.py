"""What the documentation names exists: files, links, tests, and the texts that the code writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.checkout import DOCS, ROOT, files, read


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))
def test_links_lead_somewhere(doc: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", doc.read_text("utf-8"))
    local = [target.partition("#")[0] for target in targets if "://" not in target]

    assert [target for target in local if target and not (doc.parent / target).exists()] == []


def test_every_path_that_a_page_names_exists() -> None:
    """Paths from the root anywhere in a page, and names of source files in backticks."""
    rooted = r"(?<![\w/.~@-])((?:server|prefix_store|clients|tests|docker|docs|\.ci)/[\w./*-]*\w)"
    named = r"`([\w-]+\.(?:py|cpp|js|md))`"
    names = {path.name for path in files()}
    pages = [doc for doc in DOCS if doc.name not in ("CHANGELOG.md", "architecture.md")]
    texts = {doc.name: doc.read_text("utf-8") for doc in pages if doc.parent.name != "decisions"}

    lost = {(doc, name) for doc, text in texts.items() for name in re.findall(named, text)}
    lost = {(doc, name) for doc, name in lost if name not in names}
    paths = {(doc, path) for doc, text in texts.items() for path in re.findall(rooted, text)}
    assert len(paths) > 40
    assert lost | {(doc, path) for doc, path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))
def test_links_to_sections_lead_to_headings(doc: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]*)#([^)\s]+)\)", doc.read_text("utf-8"))
    local = [(doc.parent / path if path else doc, section) for path, section in targets]
    local = [(path, section) for path, section in local if ":/" not in str(path)]

    assert [(path.name, section) for path, section in local if section not in slugs(path)] == []


def slugs(page: Path) -> set[str]:
    """Headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_lines_of_pages_are_short() -> None:
    """Rows of tables cannot be broken."""
    pages = [
        doc for doc in DOCS if doc.name != "architecture.md" and doc.parent.name != "decisions"
    ]
    long = [
        f"{doc.name}:{number}"
        for doc in pages
        for number, line in enumerate(doc.read_text("utf-8").splitlines(), 1)
        if len(line) > 100 and not line.startswith("|")
    ]

    assert long == []


def test_symptoms_in_troubleshooting_are_texts_of_the_code() -> None:
    """Those in backticks in the first column of a table; `...` is what differs."""
    page = read("docs/troubleshooting.md")
    rows = [row[2:].partition(" | ")[0] for row in page.splitlines() if row.startswith("| ")]
    symptoms = {symptom for row in rows for symptom in re.findall(r"`([^`]+)`", row)}
    symptoms -= {"make", "/readyz", "degraded", "finish_reason", "length", "max_tokens"}
    said = texts_of_code() | {read("Makefile")}

    assert len(symptoms) > 50
    pieces = {symptom: [p for p in symptom.split("...") if p.strip()] for symptom in symptoms}
    patterns = {
        s: re.compile(".*".join(map(re.escape, parts)), re.S) for s, parts in pieces.items()
    }
    assert [s for s, pattern in patterns.items() if not any(map(pattern.search, said))] == []


def texts_of_code() -> set[str]:
    """Every text in the server, the store and the client, with `...` for the values in it."""
    paths = [p for root in ("server", "prefix_store", "clients/python") for p in files_of(root)]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    plain = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return plain | {
        "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values)
        for node in nodes
        if isinstance(node, ast.JoinedStr)
    }


def files_of(root: str) -> list[Path]:
    return sorted((ROOT / root).rglob("*.py"))


def test_decisions_are_numbered_without_gaps_and_short() -> None:
    decisions = sorted(ROOT.glob("docs/decisions/*.md"))

    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [path.name for path in decisions if len(path.read_text().splitlines()) > 40] == []


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", read("docs/promises.md"))

    assert len(named) > 20
    for path, test in named:
        assert (ROOT / path).exists(), path
        assert not test or re.search(rf"def {test}\(", read(path)), test
