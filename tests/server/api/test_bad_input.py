"""Raw bytes at POST /generate and beside it: always a 4xx problem, never an echo, never a 500."""

from __future__ import annotations

import httpx
import pytest

from server.api.http.deps import Services
from tests.server.fakes import push

JSON = {"Content-Type": "application/json"}
SECRET = "sw0rdfish"

BODIES: list[tuple[bytes, int]] = [
    # not JSON
    (b"", 400),
    (b"{", 400),
    (b'{"prompt": "x",}', 400),
    (b'{"prompt": "x"} trailing', 400),
    (b'{"prompt": "sw0rdfish', 400),
    (b'{"prompt": "x", "prompt": "y"}', 400),
    (b"\xff\xfe{\x00}\x00", 400),
    (b'{"prompt": "\xff"}', 400),
    (b'{"prompt": "\\ud800"}', 400),
    (b'{"prompt": "x", "fields": {"a": "\\udfff"}}', 400),
    (b'{"prompt": "x", "temperature": NaN}', 422),
    (b'{"prompt": "x", "temperature": Infinity}', 422),
    (b'{"prompt": "x", "temperature": -Infinity}', 422),
    (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", 400),
    (b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    (b'{"x": ' + b'{"x":' * 5_000 + b"1" + b"}" * 5_001, 400),
    # JSON of another shape
    (b"null", 422),
    (b"[]", 422),
    (b'"sw0rdfish"', 422),
    (b"{}", 422),
    (b'{"prompt": null}', 422),
    (b'{"prompt": 7}', 422),
    (b'{"prompt": ""}', 422),
    (b'{"prompt": []}', 422),
    (b'{"prompt": {"sw0rdfish": 1}}', 422),
    (b'{"prompt": ["sw0rdfish"]}', 422),
    (b'{"prompt": [-1]}', 422),
    (b'{"prompt": [1.5]}', 422),
    (b'{"prompt": [true]}', 422),
    (b'{"prompt": [260]}', 422),
    (b'{"prompt": [2147483648]}', 422),
    (b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}', 422),
    (b'{"messages": []}', 422),
    (b'{"messages": [{"role": "sw0rdfish", "content": "y"}]}', 422),
    (b'{"messages": [{"role": "user", "content": null}]}', 422),
    (b'{"messages": [{"role": "user", "content": "y", "name": "sw0rdfish"}]}', 422),
    (b'{"prompt": "x", "s\\u0000 w0rdfish": 1}', 422),
    # numbers
    *((b'{"prompt": "x", "max_tokens": %b}' % value, 422) for value in (
        b"0", b"-1", b"1000000000", b"1" + b"0" * 30, b"10.0", b'"10"', b"true", b"1e400",
    )),
    *((b'{"prompt": "x", "temperature": %b}' % value, 422) for value in (
        b"-0.1", b"2.01", b"1e400", b"-1e400", b'"0.5"', b"true", b"[]",
    )),
    *((b'{"prompt": "x", "top_p": %b}' % value, 422) for value in (b"0", b"1.0001", b"-1")),
    *((b'{"prompt": "x", "priority": %b}' % v, 422) for v in (b"1001", b"-1001", b"0.5", b"true")),
    *((b'{"prompt": "x", "top_k": %b}' % value, 422) for value in (b"-1", b"1000000000", b"1.5")),
    *((b'{"prompt": "x", "seed": %b}' % value, 422) for value in (b"-1", b"9223372036854775808")),
    # stop strings
    (b'{"prompt": "x", "stop": [""]}', 422),
    (b'{"prompt": "x", "stop": ""}', 422),
    (b'{"prompt": "x", "stop": [1]}', 422),
    (b'{"prompt": "x", "stop": [' + b'"a",' * 999 + b'"a"]}', 422),
    (b'{"prompt": "x", "stop": ["' + b"a" * 257 + b'"]}', 422),
    # the rest
    (b'{"prompt": "x", "stream": "yes"}', 422),
    (b'{"prompt": "x", "fields": {"a": 1}}', 422),
    (b'{"prompt": "x", "fields": {"": "b"}}', 422),
    (b'{"prompt": "x", "fields": {"a": "b"}}', 422),
    (b'{"prompt": "' + b"x" * 300 + b'"}', 422),
    (b'{"prompt": "' + b"x" * 70_000 + b'"}', 413),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BODIES, ids=range(len(BODIES)))
async def test_a_bad_body_is_a_problem_that_does_not_echo_it(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    response = await http.post("/generate", content=body, headers=JSON)

    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert len(response.content) < 4096
    assert SECRET not in response.text
    for error in response.json().get("errors", []):
        assert set(error) == {"loc", "msg", "type"}


async def test_a_misspelt_field_is_named_if_its_name_is_harmless(http: httpx.AsyncClient) -> None:
    typo = await http.post("/generate", json={"prompt": "x", "max_token": 1})
    hostile = await http.post("/generate", json={"prompt": "x", "<script>": 1})

    assert typo.json()["errors"][0]["loc"] == ["body", "max_token"]
    assert hostile.json()["errors"][0]["loc"] == ["body", "?"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tasks/x/activate", "/tasks/y"]
)
@pytest.mark.parametrize("body", [body for body, _ in BODIES[:16]], ids=range(16))
async def test_no_json_route_trips_over_bytes_that_are_no_json(
    http: httpx.AsyncClient, path: str, body: bytes
) -> None:
    method = "PUT" if path == "/tasks/y" else "POST"

    response = await http.request(method, path, content=body, headers=JSON)

    assert response.status_code in (400, 413, 422), response.text
    assert len(response.content) < 4096


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/problem+json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/jsonp",
    ],
)
async def test_a_json_route_takes_json_only(
    http: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    response = await http.post("/generate", content=b'{"prompt": "x"}', headers=headers)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_body")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'],
)
async def test_json_has_several_spellings(http: httpx.AsyncClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}

    response = await http.post("/generate", content=b'{"prompt": "x"}', headers=headers)

    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, identity"])
async def test_an_encoded_body_is_refused(http: httpx.AsyncClient, encoding: str) -> None:
    headers = JSON | {"Content-Encoding": encoding}

    response = await http.post("/generate", content=b"{}", headers=headers)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_body")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("task=a&task=b", 400),
        ("task=x&version=1&version=1", 400),
        ("tusk=x", 400),
        ("version=1", 422),
        ("task=", 404),
        ("task=nope", 404),
        ("task=X", 404),
        ("task=..%2f..%2fetc%2fpasswd", 404),
        ("task=x%00", 404),
        ("task=x%0a", 404),
        ("task=x%0d%0ay", 404),
        ("task=%ff", 404),
        ("task=%EF%BD%98", 404),
        ("task=" + "x" * 64, 404),
        ("task=" + "x" * 10_000, 404),
        ("task=x&version=0", 422),
        ("task=x&version=-1", 422),
        ("task=x&version=latest", 422),
        ("task=x&version=" + "9" * 20, 422),
        ("task=x&version=" + "9" * 5000, 422),
        ("task=x&version=2", 404),
    ],
)
async def test_a_bad_query_is_refused(http: httpx.AsyncClient, query: str, status: int) -> None:
    await push(http, "x")

    response = await http.post(f"/generate?{query}", content=b'{"prompt": "x"}', headers=JSON)

    assert response.status_code == status, response.text
    assert len(response.content) < 1024


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/tasks/x/prefix?dryrun=true"),
        ("POST", "/tasks/x/versions?activte=true"),
        ("DELETE", "/tasks/x?dry_run=true"),
        ("GET", "/tasks?limt=1"),
        ("GET", "/tasks/x/versions/1/prefix?format=tar&format=peft"),
    ],
)
async def test_a_misspelt_option_is_refused(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    await push(http, "x")

    response = await http.request(method, path, content=b'{"text": "y"}', headers=JSON)

    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")
    assert (await http.get("/tasks/x")).json()["num_versions"] == 1
    assert (await http.get("/v1/models?api-version=1")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("PUT", "/generate", 405),
        ("TRACE", "/generate", 405),
        ("OPTIONS", "/generate", 405),
        ("POST", "/generate/", 404),
        ("POST", "//generate", 404),
        ("POST", "/GENERATE", 404),
        ("GET", "/tasks/", 404),
        ("GET", "/nope", 404),
        ("GET", "/v1/nope", 404),
        ("GET", "/v1/completions", 405),
    ],
)
async def test_a_wrong_address_is_a_problem_and_never_a_redirect(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, f"http://test{path}")

    assert response.status_code == status
    assert ("error" in response.json()) == path.startswith("/v1/")
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/" + "x" * 40_000, {}),
        ("/livez?x=" + "x" * 40_000, {}),
        ("/livez", {"X-Big": "x" * 40_000}),
        ("/livez", {f"X-{i}": "x" for i in range(200)}),
    ],
    ids=range(4),
)
async def test_a_head_without_end_is_a_431(
    http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    response = await http.get(path, headers=headers)

    assert (response.status_code, response.json()["code"]) == (431, "head_too_large")


async def test_a_405_names_all_methods_of_the_path(http: httpx.AsyncClient) -> None:
    response = await http.post("/tasks/x", json={})

    assert response.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"


async def test_a_bug_is_a_500_that_says_nothing(
    http: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError(f"/etc/{SECRET}")

    monkeypatch.setattr(services.store, "get_task", explode)

    response = await http.get("/tasks/x")

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.json()["request_id"] == response.headers["X-Request-Id"]
    assert SECRET not in response.text


async def test_a_special_token_in_a_prompt_is_text(http: httpx.AsyncClient) -> None:
    plain = await http.post("/generate", json={"prompt": "x" * 4, "max_tokens": 1})
    special = await http.post("/generate", json={"prompt": "</s>", "max_tokens": 1})

    assert plain.json()["usage"]["prompt_tokens"] == special.json()["usage"]["prompt_tokens"] == 4


async def test_a_subnormal_temperature_is_a_temperature(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "x", "temperature": 1e-320})

    assert response.status_code == 200
