"""What `apply` reads from a server of another version."""

from __future__ import annotations

from typing import Any

import pytest

from foreword_client import UnexpectedAnswerError, types
from foreword_client.apply.models import Defaults, Definition
from foreword_client.apply.state import definition_of


def version(definition: Any) -> types.Version:
    return types.Version.model_validate(
        {
            "task": "x",
            "version": 3,
            "digest": "sha256:ab",
            "num_virtual_tokens": 1,
            "num_bytes": 1,
            "created_at": "2026-01-01T00:00:00Z",
            "definition": definition,
        }
    )


def test_a_definition_is_read_with_what_is_unset_left_out() -> None:
    found = definition_of(version({"chat": True, "defaults": {"stop": ["a"], "top_p": None}}))

    assert found == Definition(chat=True, defaults=Defaults(stop=["a"]))
    assert definition_of(version({"defaults": {"heat": None}})) == Definition()


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (None, "the server is too old"),
        ({"language": "fr"}, "x v3 has 'language', which this client does not know"),
        ({"defaults": {"heat": 2}}, "x v3 has 'heat', which this client does not know"),
    ],
)
def test_what_this_client_cannot_keep_is_refused(definition: Any, message: str) -> None:
    with pytest.raises(UnexpectedAnswerError, match=message):
        definition_of(version(definition))
