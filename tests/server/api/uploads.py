"""Bodies of uploads in PEFT's format."""

from __future__ import annotations

import io
import json
import tarfile

import httpx

from prefix_store.formats import peft
from tests.server.fakes import (
    BASE,
    make_prefix,
)

TAR = {"Content-Type": "application/x-tar"}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def peft_tar(
    *,
    base_model: str = "somebody/Tiny",
    golden: bytes | None = None,
    beside: dict[str, bytes] | None = None,
) -> bytes:
    files = peft.write(make_prefix(), BASE)
    config = json.loads(files[peft.CONFIG]) | {"base_model_name_or_path": base_model}
    files[peft.CONFIG] = json.dumps(config).encode()
    return tar_of(files | ({} if golden is None else {"golden.jsonl": golden}) | (beside or {}))


def checks_of(answer: httpx.Response) -> dict[str, bool]:
    return {check["name"]: check["passed"] for check in answer.json()["verification"]}
