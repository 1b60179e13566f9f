"""Composition root: constructs all services and the FastAPI app."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.replica import Replica
from prefix_store.store import PrefixStore
from server import maintenance
from server import tracing as traces
from server.api.http import access, problems
from server.api.http.access import Access
from server.api.http.allowed_hosts import AllowedHosts, CrossSiteGuard, share_with_origins
from server.api.http.assets import load_assets
from server.api.http.body_limits import BodyLimits
from server.api.http.deps import Services
from server.api.http.disconnect import until_disconnect
from server.api.http.head_limits import HeadLimits
from server.api.http.middleware import HeadRequests, RequestContext
from server.api.routes import console, generate, health, openai, residency, tasks, traffic, versions
from server.api.routes import keys as keys_api
from server.async_store import AsyncStore
from server.engine.background import yield_to_steps
from server.engine.ipc.client import EngineClient
from server.engine.ipc.messages import EngineConfig
from server.engine.ipc.protocol import Engine
from server.errors import EngineUnavailable
from server.generation.admission import Admission, Limits
from server.generation.grammar_check import GrammarCheck
from server.generation.router import Router
from server.metrics import Metrics
from server.publishing.canary import SplitGuard
from server.publishing.definitions import Definitions
from server.publishing.downloads import Downloads
from server.publishing.drafts import Drafts
from server.publishing.reader import PrefixReader
from server.publishing.rechecks import Rechecks
from server.publishing.spool import Spool
from server.publishing.uploads import Uploads
from server.publishing.verification import Verification
from server.settings import Settings
from server.storage import open_storage, where_blobs_are
from server.text.tokenizer import Tokenizer
from server.tracing import Tracing

_STOP_TIMEOUT_S = 5.0
_SPOOL_BYTES = 1 << 30
"""Disk space for all uploads that wait for their turn, at least; one file may exceed it."""
ROUTERS = (
    generate.routes,
    tasks.routes,
    versions.routes,
    traffic.routes,
    residency.routes,
    openai.routes,
    keys_api.routes,
    health.routes,
    console.root,
    console.routes,
)


def build(settings: Settings, model: str) -> FastAPI:
    """Build the app from the settings. `model` is a folder or hub id.

    Raises `OSError` or `ValueError` if the model cannot be read, and `PrefixStoreError` if the
    store cannot be opened. Nothing runs before the app's lifespan starts.
    """
    storage = open_storage(settings)
    engine = EngineClient(
        _engine_config(settings, model),
        start_timeout_s=settings.engine_start_timeout_s,
        hang_timeout_s=settings.engine_hang_timeout_s,
    )
    return create_app(
        settings,
        storage.store,
        storage.keys,
        storage.audit,
        engine,
        Tokenizer.load(model),
        public_name(settings.model),
        storage.replica,
        traces.from_environment(),
    )


def public_name(model: str) -> str:
    """Return the base model's name for clients: a hub id, or a folder's name without its path."""
    if model == "default":
        return "SmolLM2-135M-Instruct"
    return Path(model).resolve().name if Path(model).exists() else model


def create_app(
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    engine: Engine,
    tokenizer: Tokenizer,
    model_name: str,
    replica: Replica | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the app around its parts. They are passed in so that tests can replace them."""
    async_store = AsyncStore(store, keys, audit)
    uploads = ThreadPoolExecutor(2, "upload", yield_to_steps)
    files = ThreadPoolExecutor(4, "files")
    compilers = ThreadPoolExecutor(2, "grammar", yield_to_steps)
    grammars = GrammarCheck(tokenizer, lambda: engine.info, executor=compilers)
    metrics = _metrics(settings, store, engine, model_name, tracing)
    reader = PrefixReader(store, engine, uploads, model_name, settings.max_prefix_tokens)
    drafts = Drafts(store, reader, engine, tokenizer, executor=uploads)
    verification = Verification(engine, tokenizer, uploads)
    definitions = Definitions(
        store.registry, engine, grammars, verification, executor=async_store.request_executor
    )
    max_spool_bytes = max(settings.max_upload_bytes, _SPOOL_BYTES)
    spool = Spool(settings.store, max_bytes=max_spool_bytes, executor=files)
    publisher = Uploads(
        store, reader, engine, drafts, verification, definitions, metrics, executor=uploads
    )
    rechecks = Rechecks(store, reader, verification, executor=uploads)
    services = Services(
        settings=settings,
        store=async_store,
        keys=keys,
        engine=engine,
        tokenizer=tokenizer,
        router=Router(
            store,
            engine,
            tokenizer,
            metrics,
            grammars=grammars,
            executor=async_store.request_executor,
            admission=Admission(engine, Limits.of(settings)),
            reads_generation_config=settings.generation_config == "auto",
        ),
        uploads=publisher,
        downloads=Downloads(reader, spool, executor=files),
        spool=spool,
        rechecks=rechecks,
        definitions=definitions,
        split_guard=SplitGuard(async_store, publisher, rechecks, metrics),
        metrics=metrics,
        replica=replica,
        model_name=model_name,
        version=_version(),
        console=load_assets() if settings.console else {},
    )
    return _assemble(services, [uploads, files, compilers], tracing)


def _metrics(
    settings: Settings, store: PrefixStore, engine: Engine, model: str, tracing: Tracing | None
) -> Metrics:
    def fingerprint() -> str:
        with contextlib.suppress(EngineUnavailable):
            return engine.info.fingerprint
        return ""

    metrics = Metrics(max_task_labels=settings.max_task_labels)
    metrics.watch_build(_version(), model, fingerprint)
    metrics.watch_processes(lambda: engine.pid)
    metrics.watch_engine(lambda: engine.stats, lambda: engine.num_restarts)
    metrics.watch_quarantine(lambda: len(store.quarantined()))
    metrics.watch_storage(store.outages, store.source.age_s)
    if tracing is not None:
        metrics.watch_completions(tracing.completed)
    return metrics


def _assemble(services: Services, executors: list[Executor], tracing: Tracing | None) -> FastAPI:
    settings = services.settings

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(services, executors):
            yield
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)

    app = FastAPIOffline(  # serves the scripts of /docs itself instead of a CDN
        title="Foreword",
        summary="One frozen model, a foreword for every task.",
        version=services.version,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.services = services
    library = list(app.routes)
    for router in ROUTERS:
        app.router.routes.extend(map(until_disconnect, router.routes))
    per_key = Limits.of(settings).max_sequences_per_key
    gate = Access(services.keys, services.store, max_concurrency=per_key)
    access.guard(app, gate, library=library)
    problems.install(
        app,
        [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)],
        services.metrics,
    )
    app.add_middleware(HeadRequests)
    app.add_middleware(
        CrossSiteGuard,
        hosts=AllowedHosts(settings.host, settings.allowed_hosts.split(","), settings.origins),
        is_open=gate.is_open,
        denied=services.metrics.denied,
    )
    app.add_middleware(HeadLimits)
    app.add_middleware(BodyLimits, settings=settings)
    if tracing is not None:
        app.add_middleware(tracing.around)
    app.add_middleware(RequestContext)
    if settings.origins:
        app.add_middleware(share_with_origins, origins=settings.origins)
    return app


@contextlib.asynccontextmanager
async def _running(services: Services, executors: list[Executor]) -> AsyncIterator[None]:
    running: list[asyncio.Task[None]] = []
    if services.replica is not None:
        services.replica.start()
    try:
        pinned = await services.store.pinned()
        services.engine.pinned.update(digest for _, _, digest in pinned)
        await services.engine.start()
        if services.settings.demo:
            await maintenance.seed_demo_tasks(services)
        await maintenance.update_series(services)
        running = maintenance.start(services)
        yield
    finally:
        services.router.drain()
        for job in running:
            job.cancel()
        await maintenance.log_audit_head(services)
        if services.replica is not None:
            await services.run_for_request(services.replica.close)
        await services.engine.stop(_STOP_TIMEOUT_S)
        services.store.close()
        services.definitions.grammars.close()
        for executor in executors:
            executor.shutdown(cancel_futures=True)


def _engine_config(settings: Settings, model: str) -> EngineConfig:
    return EngineConfig(
        model=model,
        blobs=where_blobs_are(settings),
        blob_cache=str(settings.store / "blob-cache"),
        blob_cache_bytes=settings.blob_cache_bytes,
        device=settings.device,
        dtype=settings.dtype,
        attention=settings.attention,
        quantization=settings.quantization,
        num_threads=settings.num_threads,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_extra_tokens_per_key=settings.max_extra_tokens_per_key,
        kv_cache_bytes=settings.kv_cache_bytes,
        device_prefix_bytes=settings.device_prefix_bytes,
        host_prefix_bytes=settings.host_prefix_bytes,
        prompt_cache=settings.prompt_cache,
    )


def _version() -> str:
    try:
        return metadata.version("foreword")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
