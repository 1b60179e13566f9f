"""Liveness, readiness, metrics, and information about the base model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response

from prefix_store.errors import StorageFailure
from server.api.http.access import PrincipalDep, needs, public
from server.api.http.deps import Services, ServicesDep
from server.api.schemas.admin import Health, Info, ServerLimits
from server.engine.ipc.messages import EngineInfo

routes = APIRouter(tags=["server"])

_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "And why."}}


@routes.get("/livez", response_model=Health, responses=_UNAVAILABLE)
@public
async def livez(services: ServicesDep) -> Response:
    """Liveness: whether the engine's loop is running. If not, the server may be restarted."""
    limit_s = services.settings.engine_hang_timeout_s
    age_s = services.engine.heartbeat_age_s
    is_alive = age_s is not None and age_s < limit_s
    return _health([] if is_alive else [f"no heartbeat from the engine for {limit_s:g} s"])


@routes.get("/readyz", response_model=Health, responses=_UNAVAILABLE)
@routes.get("/health", response_model=Health, responses=_UNAVAILABLE)
@public
async def readyz(services: ServicesDep) -> Response:
    """Readiness: whether requests are accepted; `reasons` say what is unavailable."""
    reasons = _reasons(services)
    outages = [] if reasons else await services.store.run("checks", _outages, services)
    return _health(reasons, outages)


@routes.get("/metrics", response_class=Response)
@needs("read")
async def metrics(services: ServicesDep, principal: PrincipalDep) -> Response:
    """Get all metrics in Prometheus' text format."""
    principal.check_all_tasks()  # their names are labels
    text = await services.run_for_request(services.metrics.render)  # 0.1 s for 200 versions
    return Response(text, media_type="text/plain; version=0.0.4")


@routes.get("/info", response_model=Info)
@needs("generate", "read")
async def info(services: ServicesDep) -> Info:
    """Get the base model, its geometry and the server's limits."""
    return describe(services, services.engine.info)


def describe(services: Services, engine: EngineInfo) -> Info:
    """Describe the base model and the limits, as clients need them to train prefixes."""
    settings = services.settings
    return Info(
        version=services.version,
        model=services.model_name,
        fingerprint=engine.fingerprint,
        num_layers=engine.num_layers,
        num_kv_heads=engine.num_kv_heads,
        head_dim=engine.head_dim,
        hidden_size=engine.hidden_size,
        vocab_size=engine.vocab_size,
        dtype=engine.dtype,
        device=engine.device,
        attention=engine.attention,
        eos_token_ids=engine.eos_token_ids,
        chat_template=services.tokenizer.has_chat_template,
        limits=ServerLimits(
            max_model_len=engine.max_model_len,
            max_prefix_tokens=services.uploads.max_prefix_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_upload_bytes=settings.max_upload_bytes,
            max_body_bytes=settings.max_body_bytes,
        ),
    )


def _reasons(services: Services) -> list[str]:
    reasons = []
    if services.router.is_draining:
        reasons.append("the server is shutting down")
    if not services.engine.is_ready:
        reasons.append("the engine is starting")
    if services.store.is_stale():
        reasons.append("the registry has been unreachable for too long")
    return reasons


def _outages(services: Services) -> list[str]:
    """Return problems that do not stop the server from accepting requests."""
    outages = list(services.store.blocking.outages().values())
    with suppress(StorageFailure):
        if quarantined := services.store.blocking.quarantined():
            outages.append(f"{len(quarantined)} corrupt blobs in quarantine")
    return outages


def _health(reasons: list[str], outages: list[str] | None = None) -> Response:
    status = "unavailable" if reasons else "degraded" if outages else "ok"
    health = Health(status=status, reasons=reasons or outages or [])
    return Response(
        health.model_dump_json(), 503 if reasons else 200, media_type="application/json"
    )
