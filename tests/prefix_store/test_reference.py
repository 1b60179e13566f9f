from __future__ import annotations

import pytest

from prefix_store.errors import InvalidName
from prefix_store.reference import Reference, check_task_name
from prefix_store.testing import HOSTILE_NAMES


@pytest.mark.parametrize("text", ["a", "0", "sum-up_2", "a@1", "a@999999999"])
def test_a_reference_reads_back(text: str) -> None:
    assert str(Reference.parse(text)) == text


def test_a_reference_may_pin_a_version() -> None:
    assert Reference.parse("a@12") == Reference("a", 12)
    assert Reference.parse("a").version is None


@pytest.mark.parametrize("text", ["a@", "a@0", "a@01", "a@-1", "a@1\n", "a@1@2", "a@\u0663", "a@x"])
def test_a_malformed_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Reference.parse(text)


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_is_refused_and_not_echoed(name: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        check_task_name(name)
    assert len(name) < 3 or name not in str(refusal.value)


@pytest.mark.parametrize("name", ["a", "9", "a-b_c", "con", "a" * 63])
def test_a_plain_name_is_taken(name: str) -> None:
    check_task_name(name)
