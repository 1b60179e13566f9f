"""The server under load, and the format of its requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from foreword_bench import tasks
from foreword_bench.errors import BenchError
from foreword_bench.wire import Http
from foreword_bench.workload import SCHEMA, Workload, random_token_ids

Api = Literal["openai", "native"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server. Requests rotate over `models`, and over text prefixes if there are any."""

    url: str
    base: str
    """The base model's name."""
    models: tuple[str, ...]
    """Tasks, or names of models."""
    num_text_prefixes: int = 0
    num_prefix_tokens: int = 0
    api: Api = "openai"
    as_text: bool = False
    """Whether prompts are text, for servers that accept no token ids. Lengths are then inexact."""

    def model(self, request: int) -> str:
        return self.models[request % len(self.models)]

    def prefix(self, request: int) -> list[int]:
        """Return the text prefix of a request, as token ids; [] if there are none."""
        if not self.num_text_prefixes:
            return []
        turn = request % self.num_text_prefixes
        return random_token_ids(self.num_prefix_tokens, f"prefix/{self.num_prefix_tokens}/{turn}")

    @property
    def num_tasks(self) -> int:
        """Number of tasks that requests rotate over. 0 for the base model alone."""
        is_base = self.models == (self.base,)
        return max(0 if is_base else len(self.models), self.num_text_prefixes)

    def request(self, http: Http, workload: Workload, request: int) -> bytes:
        """Build the bytes of one request of a workload."""
        token_ids = self.prefix(request) + workload.prompt(request)
        body: dict[str, Any] = {
            "prompt": " ".join(f"w{i}" for i in token_ids) if self.as_text else token_ids,
            "max_tokens": workload.num_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        if workload.wants_json(request):
            schema = {"name": "bench", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        path, model = "/v1/completions", self.model(request)
        if self.api == "openai":
            body |= {"model": model, "stream_options": {"include_usage": True}}
        else:
            path = "/generate" if model == self.base else f"/generate?task={model}"
        return http.request("POST", path, json.dumps(body).encode(), "application/json")


def find(
    url: str,
    *,
    models: Sequence[str] = (),
    num_tasks: int = 0,
    num_prefix_tokens: int = 0,
    api: Api = "openai",
    as_text: bool = False,
    api_key: str | None = None,
) -> Target:
    """Inspect a server, and upload tasks with random prefixes if it is a Foreword server. Other
    servers get prefixes as text before each prompt. Raises `BenchError`."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    base_url = url.rstrip("/")
    try:
        with httpx.Client(base_url=base_url, timeout=600, headers=headers) as client:
            names = [entry["id"] for entry in _json(client, "/v1/models")["data"]]
            num_text_prefixes = 0
            if num_tasks and tasks.has_registry(client):
                models = tasks.ensure(client, num_tasks, num_prefix_tokens)
            elif num_tasks:
                num_text_prefixes = num_tasks
    except (httpx.HTTPError, KeyError, ValueError) as exc:
        raise BenchError(f"{url}: {exc}") from None
    return Target(
        url=base_url,
        base=names[0],
        models=tuple(models) or (names[0],),
        num_text_prefixes=num_text_prefixes,
        num_prefix_tokens=num_prefix_tokens if num_tasks else 0,
        api=api,
        as_text=as_text,
    )


def _json(client: httpx.Client, path: str) -> Any:
    return client.get(path).raise_for_status().json()
