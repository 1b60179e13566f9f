"""Push a prefix, and admit a request, without HTTP."""

from __future__ import annotations

from prefix_store import artifact
from prefix_store.digest import Digest
from server.api.http.deps import Services
from server.generation.completion import Completion
from server.generation.prompt import GenerateParams
from server.generation.sampling import RequestOptions
from tests.server.fakes import make_prefix

SAFETENSORS = "application/vnd.safetensors"


async def push(services: Services, task: str, seed: int = 0) -> Digest:
    body = artifact.dump(make_prefix(seed))
    pushed = await services.uploads.push(task, body, SAFETENSORS, activate=True, create=True)
    return Digest(pushed.manifest.digest)


async def admit(services: Services, task: str | None = None, **params: object) -> Completion:
    options = {name: params.pop(name) for name in RequestOptions.model_fields if name in params}
    asked = GenerateParams(
        **({"prompt": "hi", "options": RequestOptions.model_validate(options)} | params)  # type: ignore[arg-type]
    )
    return await services.router.admit(task, None, asked)
