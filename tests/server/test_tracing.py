"""Traces of requests, as the in-memory exporter and a real OTLP receiver get them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server import tracing
from server.app import create_app
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from server.tracing import Tracing
from tests.server.fakes import FakeEngine
from tests.server.live import serve, wait_until
from tests.server.stores import Stored

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"
INSIDE = ["admission", "queue and prefill", "decode"]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def url(app_with: AppWith, exporter: InMemorySpanExporter) -> Iterator[str]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serve(app_with(Tracing(provider))) as live:
        yield live.url


class AppWith:
    """Builds the app around a fake engine."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __call__(self, traces: Tracing | None) -> FastAPI:
        return create_app(*self._parts, tracing=traces)  # type: ignore[arg-type]


@pytest.fixture
def app_with(settings: Settings, stored: Stored, tokenizer: Tokenizer) -> AppWith:
    return AppWith(settings, *stored, FakeEngine(), tokenizer, "tiny")


def spans(exporter: InMemorySpanExporter, num: int) -> dict[str, ReadableSpan]:
    """The last one ends a moment after its answer."""
    wait_until(lambda: len(exporter.get_finished_spans()) == num)
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_what_it_spent_its_time_on_inside(
    stream: bool, url: str, exporter: InMemorySpanExporter
) -> None:
    body = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True, "stream": stream}
    headers = {"traceparent": CALLER, "X-Request-Id": "r-1"}
    answer = httpx.post(f"{url}/generate", json=body, headers=headers)
    assert answer.status_code == 200

    found = spans(exporter, 4)
    request = found["POST /generate"]
    assert list(found) == [*INSIDE, "POST /generate"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["foreword.request_id"] == "r-1"
    end_ns = request.start_time
    for name in INSIDE:
        span = found[name]
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert abs(span.start_time - (end_ns or 0)) < 1e9
        assert span.start_time <= span.end_time
        end_ns = span.end_time
        assert dict(span.attributes or {})["foreword.completion_tokens"] == 3
    assert "hello" not in "".join(span.to_json() for span in found.values())


def test_what_is_refused_is_a_span_too_and_probes_are_none(
    url: str, exporter: InMemorySpanExporter
) -> None:
    httpx.get(f"{url}/readyz")
    httpx.post(f"{url}/generate?task=nobody", json={"prompt": "x"})

    [span] = spans(exporter, 1).values()
    assert dict(span.attributes or {})["http.response.status_code"] == 404
    assert span.parent is None


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """OTLP over HTTP, on loopback."""
    got: list[ExportTraceServiceRequest] = []

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not into the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receive) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_a_real_receiver_gets_them_before_the_server_ends(
    app_with: AppWith,
    receiver: tuple[str, list[ExportTraceServiceRequest]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, got = receiver
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
    traces = tracing.from_environment()

    with serve(app_with(traces)) as live:
        httpx.post(f"{live.url}/generate", json={"prompt": "x", "max_tokens": 2})

    [resource] = [resource for request in got for resource in request.resource_spans]
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == [*INSIDE, "POST /generate"]
    about = {
        attribute.key: attribute.value.string_value for attribute in resource.resource.attributes
    }
    assert about["service.name"] == "foreword"


def test_off_nothing_is_loaded_and_nothing_stands_in_between(
    app_with: AppWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.from_environment() is None

    names = [middleware.cls for middleware in app_with(None).user_middleware]
    assert [getattr(name, "__name__", "") for name in names] == (
        ["RequestContext", "BodyLimits", "HeadLimits", "CrossSiteGuard", "HeadRequests"]
    )
    code = "import sys, server.app; sys.exit(any('opentelemetry.sdk' in m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=100)
    assert done.returncode == 0
