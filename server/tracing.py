"""OpenTelemetry traces, enabled by the extra `otel` and OTEL_EXPORTER_OTLP_ENDPOINT.

Each request is a span, a child of the caller's `traceparent`. The phases of its completions are
spans inside it, created at the end from timestamps that are taken anyway. Without the variable
nothing of this is imported or called.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from server.telemetry.records import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SELDOM_OF_INTEREST = ("/livez", "/readyz", "/health", "/metrics")


def from_environment() -> Tracing | None:
    """Configure tracing from OpenTelemetry's variables. None without an endpoint or if disabled."""
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(
            "tracing is disabled: OTEL_... requests it, but the extra `otel` is not installed"
        )
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "foreword")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Creates spans of requests and of the phases of their completions."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("foreword")
        self._propagator = TraceContextTextMapPropagator()

    def around(self, app: ASGIApp) -> ASGIApp:
        """Wrap the app so that each request is a span named after its route."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _SELDOM_OF_INTEREST:
                await app(scope, receive, send)
                return
            from opentelemetry.trace import SpanKind

            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            caller = self._propagator.extract(headers)
            kind = SpanKind.SERVER
            with self._tracer.start_as_current_span("request", caller, kind) as span:
                try:
                    await app(scope, receive, send)
                finally:
                    route = getattr(scope.get("route"), "path", "-")
                    state = scope["state"]
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attributes(_plain({
                        "http.request.method": scope["method"],
                        "http.route": route,
                        "http.response.status_code": state["status"],
                        "foreword.request_id": state["request_id"],
                        "foreword.task": state["log"].get("task"),
                        "foreword.version": state["log"].get("version"),
                    }))  # fmt: skip

        return traced

    def completed(self, record: RequestRecord) -> None:
        """Create the spans of a completion: admission, queue and prefill, decode."""
        target = record.target
        about = _plain({
            "foreword.task": target.task,
            "foreword.version": target.version,
            "foreword.digest": None if target.digest is None else str(target.digest),
            "foreword.prefix_tokens": target.num_prefix_tokens,
            "foreword.prompt_tokens": record.num_prompt_tokens,
            "foreword.cached_tokens": record.num_cached_tokens,
            "foreword.completion_tokens": record.num_completion_tokens,
            "foreword.outcome": record.outcome,
        })  # fmt: skip
        ended_s = record.ended_s or time.monotonic()
        moments = [ended_s - record.total_s, record.submitted_s]
        moments += [] if record.first_token_s is None else [record.first_token_s]
        moments.append(ended_s)
        names = ("admission", "queue and prefill", "decode")
        for name, start_s, end_s in zip(names, moments, moments[1:], strict=False):
            span = self._tracer.start_span(name, start_time=_wall_ns(start_s), attributes=about)
            span.end(_wall_ns(end_s))

    def shutdown(self) -> None:
        """Export the remaining spans. Blocks for seconds if the endpoint is unreachable."""
        self._provider.shutdown()


def _wall_ns(monotonic_s: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Drop attributes that are None."""
    return {name: value for name, value in attributes.items() if value is not None}
