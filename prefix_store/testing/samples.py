"""Sample drafts and names for tests."""

from __future__ import annotations

from prefix_store.digest import Digest
from prefix_store.manifest import Draft

HOSTILE_NAMES = [
    "", ".", "..", "../x", "a/b", "a\n", "a\0b", "A", "é", "\uff41", "a\u202eb", "\ud800", "-a",
    "a" * 64, "a" * 10_000, "%2e%2e", "'; drop table tasks; --",
]  # fmt: skip


def draft(content: str = "x") -> Draft:
    """Build a draft of a version whose blob is `content`."""
    return Draft(
        digest=str(Digest.of(content.encode())),
        num_virtual_tokens=3,
        position_offset=3,
        num_bytes=len(content),
        dtype="float32",
        base_model="tiny",
        fingerprint=str(Digest.of(b"base")),
        source_format="foreword",
        source_digest=str(Digest.of(content.encode())),
    )
