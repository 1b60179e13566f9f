"""The corpus: requests as bytes, each with the statuses that are a right answer to it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product

from tests.corpus.raw_bytes import SAFETENSORS, TAR, Raw, chunked, chunked_raw, post, request
from tests.prefix_store.bad_files import BAD
from tests.server.api.test_bad_input import BODIES

CLOSED = 0
"""Not a status: the connection is closed without an answer."""

SECRET = b"sw0rdfish"
"""Never comes back."""


GOOD = b'{"prompt": "x", "max_tokens": 1}'
END = b"0\r\n\r\n"


def corpus() -> list[Raw]:
    """All of it, the same every time."""
    return [
        Raw(f"{family.__name__.strip('_')} {i}: {name}", data, frozenset(allowed))
        for family in _FAMILIES
        for i, (name, data, allowed) in enumerate(family())
    ]


Cases = Iterator[tuple[str, bytes, set[int]]]


def _bodies() -> Cases:
    """What is no JSON, or JSON of another shape, in one piece and in chunks."""
    for i, (body, status) in enumerate(BODIES):
        yield f"{i}", post("/generate", body), {status}
        pieces = [body[j : j + 9000] for j in range(0, len(body), 9000)]
        yield f"{i} in chunks", chunked("/generate", *pieces, b""), {status}


def _other_routes() -> Cases:
    """The same bytes where another schema expects them. `{}` and alike are right for some."""
    routes = ["PUT /tasks/y", "PATCH /tasks/y", "POST /tasks/x/activate"]
    routes += ["POST /v1/completions", "POST /v1/chat/completions"]
    for (i, (body, _)), route in product(enumerate(BODIES), routes):
        method, path = route.split()
        allowed = {400, 404, 413, 422} | ({200, 201} if path == "/tasks/y" else set())
        yield f"{route} {i}", post(path, body, method=method), allowed


def _openai() -> Cases:
    """Fields that only OpenAI's routes have."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    plain = {"model": "tiny", "prompt": "x"}
    for name, value in [
        ("n", 10**6), ("n", 0), ("n", -1), ("n", "1"), ("best_of", 10**6), ("logprobs", 10**6),
        ("top_logprobs", 10**6), ("logit_bias", {"9" * 30: 1}), ("logit_bias", [1]),
        ("frequency_penalty", 1e300), ("presence_penalty", -1e300), ("model", 7), ("model", ""),
        ("model", "x" * 10_000), ("model", "x@0"), ("model", "x@" + "9" * 9), ("model", "../x"),
        ("model", "x\0"), ("model", None), ("stream", "yes"), ("stream_options", 1),
        ("max_tokens", 10**30), ("max_completion_tokens", -1), ("temperature", -1), ("top_p", 2),
        ("seed", 2**63), ("stop", [""]), ("stop", ["a"] * 1000), ("user", ["x"]),
        ("tools", [{}]), ("tool_choice", "x"), ("response_format", {"type": "json_schema"}),
        ("functions", [{}]), ("echo", True), ("suffix", "x"), ("messages", []), ("prompt", []),
        ("messages", [{"role": "tool", "content": "x"}]), ("prompt", [[]]), ("prompt", [["x"]]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("prompt", ["x"] * 1000), ("prompt", [[1]] * 1000), ("prompt", [[2**31]]),
    ]:  # fmt: skip
        for path, body in (("/v1/completions", plain), ("/v1/chat/completions", chat)):
            raw = json.dumps(body | {name: value}).encode()
            # Some of these are fields that are ignored, or that the other route has.
            allowed = {200, 400, 404, 422, 429}
            yield f"{path} {name} {value!r:.30}", post(path, raw), allowed


def _uploads() -> Cases:
    """Files that are no prefix, under every type they could come as."""
    for name, data in BAD.items():
        allowed = {413} if len(data) > 1 << 20 else {422}
        for kind in (SAFETENSORS, TAR, ""):
            body = post("/tasks/bad/prefix", data, method="PUT", kind=kind)
            yield f"{name!a:.40} as {kind}", body, allowed
        yield f"{name!a:.40} posted", post("/tasks/x/versions", data, kind=SAFETENSORS), allowed


def _kinds() -> Cases:
    """Types and encodings that are not taken."""
    kinds = [
        "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
        "application/problem+json", "application/json; charset=utf-16", "application/jsonp",
        "application/json, text/plain", "*/*", "\u00ff", "application/" + "x" * 5000,
    ]  # fmt: skip
    for kind in kinds:
        yield f"{kind:.40}", post("/generate", GOOD, kind=kind), {415}
        yield f"upload {kind:.40}", post("/tasks/x/versions", b"x", kind=kind), {415, 422}
    for encoding in ("gzip", "br", "deflate", "zstd", "x-gzip", "identity, gzip", "GZIP", "\u00ff"):
        header = f"Content-Encoding: {encoding}"
        yield f"encoded {encoding!a}", post("/generate", GOOD, header), {415}
        put = post("/tasks/x/prefix", b"x", header, method="PUT", kind=SAFETENSORS)
        yield f"upload encoded {encoding!a}", put, {415}
    twice = ("Content-Type: text/plain", "Content-Encoding: identity\r\nContent-Encoding: gzip")
    for header in twice:
        yield f"twice {header:.20}", post("/generate", GOOD, header), {400}


NAMES = [
    ".", "..", "%2e%2e", "..%2f..%2fx", "a%00b", "a%0d%0ab", "%ff", "..%5cx", "A", "%C3%A9",
    "e%CC%81", "%EF%BD%81", "%E2%80%AEx", "x" * 64, "x" * 10_000, "-x", "_x", "x%0a", "x%20",
    "x;y", "x%3fy", "x%23y", "%", "%2", "%zz", "*", "~", "x.y", "x@1", "con%2f", "%00",
    "sha256%3a" + "0" * 64, "$%7bjndi%3a%7d", "'%20or%201%3d1--", "%7b%7b7*7%7d%7d",
]  # fmt: skip


def _names() -> Cases:
    """Names that no task has, wherever a name goes."""
    for name in NAMES:
        short = f"{name:.20} {len(name)}"
        refused = {404, 405, 422}
        yield f"PUT {short}", post(f"/tasks/{name}", b"{}", method="PUT"), refused
        raw = post(f"/tasks/{name}/prefix", b"x", method="PUT", kind=SAFETENSORS)
        yield f"upload {short}", raw, refused
        for line in (f"GET /tasks/{name}", f"DELETE /tasks/{name}", f"GET /tasks/{name}/versions"):
            # `.` and `..` are names like any other here: nothing resolves them.
            yield f"{line.split()[0]} {short} {line[-3:]}", request(f"{line} HTTP/1.1"), {404, 422}
        yield f"generate {short}", post(f"/generate?task={name}", GOOD), {404}
    for version in (
        "0",
        "-1",
        "latest",
        "1e3",
        "9" * 20,
        "9" * 5000,
        "%31",
        "1.0",
        "0x1",
        "",
        "+1",
    ):
        found = {200} if version in ("%31", "1.0", "+1") else set()
        raw = post(f"/generate?task=x&version={version}", GOOD)
        yield f"version {version:.9}", raw, {404, 422} | found
        line = f"GET /tasks/x/versions/{version} HTTP/1.1"
        yield f"get version {version:.9}", request(line), {404, 422} | found


def _addresses() -> Cases:
    """Methods and paths that lead nowhere, never a redirect."""
    for method in ("GET", "PUT", "HEAD", "OPTIONS", "TRACE", "DELETE", "PATCH", "FOO", "x" * 500):
        yield f"{method:.9}", request(f"{method} /generate HTTP/1.1"), {405}
    for path in (
        "/generate/", "//generate", "/GENERATE", "/./generate", "/x/../generate", "/generate;x",
        "/generate%2f", "/%67enerate/", "/generate.json", "/v1", "/v1/", "/v1/nope", "/tasks/",
        "/tasks//prefix", "/.git/config", "/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/\\..\\x",
        "http://evil.example/generate", "@evil.example/generate", "*", "generate", "/?", "/#x",
    ):  # fmt: skip
        yield f"POST {path}", post(path, GOOD), {400, 404, 405}
    for query in ("task=a&task=b", "tusk=x", "version=1", "task=nope", "&&&=", "task", "%00=%ff"):
        yield f"query {query}", post(f"/generate?{query}", GOOD), {400, 404, 422}
    for query in ("limit=0", "limit=-1", "limit=1e9", "limit=x", "after=" + "x" * 64, "limit="):
        yield f"list {query:.12}", request(f"GET /tasks?{query} HTTP/1.1"), {422}
    yield "format", request("GET /tasks/x/versions/1/prefix?format=pickle HTTP/1.1"), {422}


def _heads() -> Cases:
    """Heads that are too large, mean two things, or nothing."""
    get = "GET /livez HTTP/1.1"
    for host in (b"a/?x=", b"evil.com#", b"a b", b"", b"a:b", b"a@b", b"[::1", b"\xff"):
        yield f"host {host!r}", request(get, host=host), {400}
    yield "no host", request(get, host=None), {400}
    yield "two hosts", request(get, "Host: other"), {400}
    for host in ("localhost:1", "[::1]:80", "127.0.0.1", "LocalHost."):
        yield f"good host {host}", request(get, host=host), {200}
    for host in ("a:1", "[::2]:80", "a.b-c_d", "1.2.3.4", "localhost.a"):
        yield f"foreign host {host}", request(get, host=host), {403}
    for length in (
        "-1", "+5", "0x5", "5 5", "5, 6", "five", "", "5.0", "\u0665", "9" * 30, "1_0",
    ):  # fmt: skip
        raw = request("POST /generate HTTP/1.1", f"Content-Length: {length}", body=b"hello")
        yield f"length {length!a}", raw, {400, 413}
    for te in ("gzip", "identity", "chunked, gzip", "gzip, chunked", "x", "chunked\r\n , chunked"):
        raw = request("POST /generate HTTP/1.1", f"Transfer-Encoding: {te}", body=END)
        yield f"encoding {te!r}", raw, {400, 415}
    both = ("Content-Length: 5", "Transfer-Encoding: chunked")
    yield "both lengths", request("POST /generate HTTP/1.1", *both, body=END), {400}
    two = ("Content-Length: 5", "Content-Length: 6")
    yield "two lengths", request("POST /generate HTTP/1.1", *two, body=b"hello!"), {400}
    for name, header in {
        "NUL": b"X-A: a\0b", "no colon": b"X-A", "space in the name": b"X A: b",
        "space before the colon": b"X-A : b", "bare CR": b"X-A: a\rb", "no name": b": b",
        "not ASCII": b"X-\xff: b", "control": b"X-A: a\x01b", "DEL": b"X\x7f: b",
    }.items():  # fmt: skip
        # RFC 9110 lets a recipient keep control characters other than CR, LF and NUL.
        yield f"header {name}", request(get, header), {400, 200} if name == "control" else {400}
    for size in (40_000, 70_000, 200_000, 1_000_000):
        yield f"header of {size}", request(get, "X-A: " + "x" * size), {400, 431, CLOSED}
        yield f"address of {size}", request(f"GET /{'x' * size} HTTP/1.1"), {400, 431, CLOSED}
    for count in (101, 1000, 10_000):
        many = [f"X-{i}: y" for i in range(count)]
        yield f"{count} headers", request(get, *many), {400, 431, CLOSED}
    for given in ("a b", "x" * 65, "<script>", "a\r\nSet-Cookie: x=1", "\u00ff", "", "a/../b"):
        yield f"id {given!a:.20}", request(get, f"X-Request-Id: {given}"), {200}
    for line in (
        "GET /livez", "GET  /livez HTTP/1.1", "GET /livez HTTP/1.1 x", "/livez HTTP/1.1", "",
        "GET /livez http/1.1", "GET /livez HTTP/1", "GET\t/livez\tHTTP/1.1",
        "GET /li vez HTTP/1.1", "GET /\u00e9 HTTP/1.1", "PRI * HTTP/2.0", "\x16\x03\x01", " ",
        "G(T /livez HTTP/1.1", "GET /livez HTTP/1.1\r", "GET http:// HTTP/1.1",
    ):  # fmt: skip
        yield f"line {line!a}", request(line), {400, 404, 405}
    yield "a version to come", request("GET /livez HTTP/9.9"), {200}
    smuggled = request("DELETE /tasks/x HTTP/1.1")
    length = f"Content-Length: {len(smuggled)}"
    yield "a request in a body", request(get, length, body=smuggled), {200}
    yield "a request behind one", request(get) + smuggled, {200}
    yield "a preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30), {400, 404}
    yield "HTTP/0.9", b"GET /livez\r\n", {CLOSED}
    yield "nothing but newlines", b"\r\n" * 1000, {CLOSED, 400}
    yield "an upgrade", request(get, "Connection: Upgrade", "Upgrade: websocket"), {200}
    yield "h2c", request(get, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), {200}
    expecting = post("/generate", GOOD, "Expect: 200-ok")
    yield "an unknown expectation", expecting, {200, 417}
    too_large = "Content-Length: 99999999999"
    unread = {413}
    yield "1 GB announced", request("PUT /tasks/x/prefix HTTP/1.1", too_large), unread
    yield "1 GB of JSON announced", request("POST /generate HTTP/1.1", too_large), unread


def _chunks() -> Cases:
    """Chunked bodies that are cut, odd, or made of crumbs."""
    for i, framed in enumerate([
        b"zz\r\nabc\r\n", b"-1\r\n", b"5\r\nhelloo\r\n", b"\r\n", b"0x5\r\nhello\r\n",
        b"f" * 17 + b"\r\n", b"f" * 30 + b"\r\n", b"5\nhello\n0\n\n", b"5 \r\nhello\r\n",
        b"5;" + b"x" * 100_000 + b"\r\nhello\r\n", b"5\r\nhello\r\n0\r\nX: " + b"y" * 100_000,
        b"5\r\nhello\r\n0\r\nno colon\r\n\r\n", b"\xd9\xa5\r\nhello\r\n",
    ]):  # fmt: skip
        yield f"{i}", chunked_raw("/generate", framed), {400, 408, 431, CLOSED}
        yield f"{i} to nowhere", chunked_raw("/nope", framed), {400, 404, 408, 431, CLOSED}
    yield "crumbs", chunked_raw("/generate", b"1\r\nx\r\n" * 60_000 + END), {400, CLOSED}
    yield (
        "crumbs uploaded",
        chunked_raw("/tasks/x/versions", b"1\r\nx\r\n" * 60_000 + END),
        {400, CLOSED},
    )
    few = [bytes([byte]) for byte in GOOD]
    yield "a few crumbs", chunked("/generate", *few, b""), {200}
    extended = b"%x;a=b\r\n%b\r\n" % (len(GOOD), GOOD) + END
    yield "an extension", chunked_raw("/generate", extended), {200}
    trailer = b"%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n" % (len(GOOD), GOOD)
    yield "a trailer", chunked_raw("/generate", trailer), {200}
    large = [b"x" * 10_000] * 120
    yield "more than fits", chunked("/generate", *large[:10], b""), {413}
    yield "an upload that is too large", chunked("/tasks/x/versions", *large, b""), {413}
    yield "no end", chunked("/generate", GOOD), {408}


def _cut() -> Cases:
    """Requests that end too soon."""
    whole = post("/generate", GOOD)
    for i in range(1, 16):
        yield f"{i}/16", whole[: len(whole) * i // 16], {CLOSED, 408}
    upload = post("/tasks/x/versions", b"x" * 5000, kind=SAFETENSORS)
    for i in range(1, 8):
        yield f"upload {i}/8", upload[: len(upload) * i // 8], {CLOSED, 408}
    yield "more than announced", whole + b"trailing", {200}


def _noise() -> Cases:
    """Bytes that are nothing, and good requests with some bytes changed."""
    dice = random.Random(7)
    for i in range(40):
        yield f"random {i}", dice.randbytes(dice.randint(1, 2000)), {CLOSED, 400}
    whole = post("/generate", GOOD)
    for i in range(120):
        changed = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        anything = {CLOSED, 200, 400, 403, 404, 405, 408, 413, 415, 422, 431}
        yield f"changed {i}", bytes(changed), anything


_FAMILIES = [
    _bodies, _other_routes, _openai, _uploads, _kinds, _names, _addresses, _heads, _chunks, _cut,
    _noise,
]  # fmt: skip
