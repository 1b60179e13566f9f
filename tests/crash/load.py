"""Clients of a real server that is killed again and again, and what each of them must find."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event, Thread

import httpx

QUESTION = {"prompt": "Once upon", "max_tokens": 200, "ignore_eos": True}
TIMEOUT_S = 60.0
_PAUSE_S = 0.03
_RETRY_S = 0.2
_MAX_VERSIONS = 6


@dataclass(frozen=True)
class TaskState:
    """What a server says of a task."""

    versions: frozenset[int] = frozenset()
    active: int | None = None
    description: str | None = None


@dataclass(frozen=True)
class Change:
    """A request, and the state after it."""

    method: str
    path: str
    body: object
    after: TaskState


class Client:
    """A thread that sends one request after the other, until it is stopped or finds a violation."""

    def __init__(self, url: str, violations: list[str]) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._violations = violations
        self._stopping = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self.num_served = 0
        """How many requests were answered as they should be."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(2 * TIMEOUT_S)
        assert not self._thread.is_alive(), "a request never ended"
        self._http.close()

    def step(self) -> bool:
        """Send a request. Returns whether it was served; raises `httpx.TransportError`."""
        raise NotImplementedError

    def violated(self, what: str) -> None:
        self._violations.append(f"{type(self).__name__}: {what}")

    def _run(self) -> None:
        while not self._stopping.is_set() and not self._violations:
            try:
                was_served = self.step()
            except httpx.TransportError:  # nobody listens, or the server was killed meanwhile
                was_served = False
            except Exception as exc:
                was_served = False
                self.violated(repr(exc))
            self.num_served += was_served
            time.sleep(_PAUSE_S if was_served else _RETRY_S)


class Generator(Client):
    """Asks the base model the same again and again: an answer is the right one, or a 503."""

    def __init__(self, url: str, violations: list[str], expected: str) -> None:
        super().__init__(url, violations)
        self._expected = expected

    def step(self) -> bool:
        response = self._http.post("/generate", json=QUESTION)
        if response.status_code == 200:
            self.check(response.json()["text"])
        elif response.status_code != 503 or "Retry-After" not in response.headers:
            self.violated(f"{response.status_code} {response.text}")
        return response.status_code == 200

    def check(self, text: str) -> None:
        if text != self._expected:
            self.violated(f"a wrong answer: {text!r}")


class Streamer(Generator):
    """Like `Generator`, streamed: a stream that ends says how."""

    def step(self) -> bool:
        body = QUESTION | {"stream": True}
        with self._http.stream("POST", "/generate", json=body) as response:
            if response.status_code != 200:
                return False
            events = [line for line in response.iter_lines() if line]
        last, data = events[-2].removeprefix("event: "), json.loads(events[-1][len("data: ") :])
        if last == "done":
            tokens = zip(events[:-2:2], events[1:-2:2], strict=True)
            self.check("".join(json.loads(at[len("data: ") :])["text"] for _, at in tokens))
        elif last != "error" or data["code"] != "engine_unavailable":
            self.violated(f"a stream that ends with {events[-2:]}")
        return last == "done"


class Writer(Client):
    """Changes a task of its own: what was acknowledged is there, always.

    A change whose outcome is unknown is there or not, and from then on stays as it was found.
    """

    def __init__(self, url: str, violations: list[str], task: str, seed: int) -> None:
        super().__init__(url, violations)
        self._task = task
        self._random = random.Random(seed)
        self._known = TaskState()
        self._next = 1
        """Number of the next version, if every push of unknown outcome has failed."""
        self._in_doubt: Change | None = None
        self.num_acknowledged = 0

    def step(self) -> bool:
        found = self.read()
        allowed = {self._known, *((self._in_doubt.after,) if self._in_doubt else ())}
        if found not in allowed:
            self.violated(f"{self._task} is {found}, not one of {allowed}")
            return False
        self._settle(found)
        self._in_doubt = change = self._choose()
        response = self._http.request(change.method, change.path, json=change.body)
        if response.is_success:
            self.num_acknowledged += 1
            self._settle(change.after)
        elif response.status_code != 503:
            self.violated(f"{change}: {response.status_code} {response.text}")
        return response.is_success

    def read(self) -> TaskState:
        """Return the state as the server has it. Raises `httpx.TransportError`."""
        task = self._http.get(f"/tasks/{self._task}")
        if task.status_code == 404:
            return TaskState()
        listed = self._http.get(f"/tasks/{self._task}/versions").raise_for_status().json()
        return TaskState(
            frozenset(version["version"] for version in listed["versions"]),
            task.raise_for_status().json()["active_version"],
            task.json()["profile"]["description"],
        )

    def check_prefixes(self) -> None:
        """Download the bytes of every version, once the client is stopped."""
        for version in self._known.versions:
            url = f"{self._url}/tasks/{self._task}/versions/{version}/prefix"
            httpx.get(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status()

    def _settle(self, state: TaskState) -> None:
        self._known, self._in_doubt = state, None
        self._next = max([self._next - 1, *state.versions]) + 1

    def _choose(self) -> Change:
        if self._known.description is None:
            return self._describe("PUT")
        spare = self._known.versions - {self._known.active}
        if len(spare) > _MAX_VERSIONS:
            return self._delete(min(spare))
        kinds: list[Callable[[], Change]] = [self._push, lambda: self._describe("PATCH")]
        if spare:
            kinds += [self._activate]
        return self._random.choice(kinds)()

    def _describe(self, method: str) -> Change:
        text = f"{self._random.random()}"
        after = replace(self._known, description=text)
        return Change(method, f"/tasks/{self._task}", {"description": text}, after)

    def _push(self) -> Change:
        after = replace(self._known, versions=self._known.versions | {self._next})
        body = {"text": f"Text number {self._random.random()}\n"}
        return Change("POST", f"/tasks/{self._task}/versions", body, after)

    def _activate(self) -> Change:
        version = self._random.choice(sorted(self._known.versions))
        after = replace(self._known, active=version)
        return Change("POST", f"/tasks/{self._task}/activate", {"version": version}, after)

    def _delete(self, version: int) -> Change:
        after = replace(self._known, versions=self._known.versions - {version})
        return Change("DELETE", f"/tasks/{self._task}/versions/{version}", None, after)
