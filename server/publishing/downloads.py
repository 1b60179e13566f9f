"""Downloads of versions, in formats that an upload accepts."""

from __future__ import annotations

from prefix_store import artifact, formats
from prefix_store.digest import Digest
from prefix_store.manifest import Manifest
from prefix_store.prefix import BaseModelSpec
from prefix_store.store import PrefixStore
from server.errors import BaseModelMismatch


def export(store: PrefixStore, manifest: Manifest, base: BaseModelSpec | None) -> bytes:
    """Return a tar of a version's artifact or, with `base`, of a directory that PEFT loads.

    Raises `IncompatiblePrefix` if PEFT cannot express the prefix, `BaseModelMismatch`.
    """
    data = store.open(Digest(manifest.digest))
    if base is None:
        return formats.write_tar(data, manifest)
    if manifest.fingerprint != base.fingerprint:
        raise BaseModelMismatch("the version was made for another base model")
    return formats.write_peft(artifact.read(data), base, manifest)
