"""Contract tests for blob stores and registries.

Subclass one in a test module and provide the fixtures that it asks for.
"""

from __future__ import annotations

from prefix_store.testing.blobs import BlobStoreContract
from prefix_store.testing.registry import RegistryContract
from prefix_store.testing.samples import HOSTILE_NAMES, draft

__all__ = ["HOSTILE_NAMES", "BlobStoreContract", "RegistryContract", "draft"]
