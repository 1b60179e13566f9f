from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from foreword_client import _calls, types
from foreword_client._body import Progress, Source
from foreword_client._connection import Connection
from foreword_client._wire import NOT_READY
from foreword_client.streams import Stream


class Client(Connection):
    """A connection to a Foreword server. Close it, or use it as a context manager.

    `base_url` defaults to FOREWORD_URL, then http://127.0.0.1:8000; `api_key` to FOREWORD_API_KEY.
    Every method raises a `ForewordError` when it cannot do what it says.

    >>> client = Client()
    >>> text = "sky -> blue\\ngrass -> green\\n"
    >>> pushed = client.push("colours", text=text, template="{prompt} ->")
    >>> pushed.version, pushed.active
    (1, True)
    >>> answer = client.generate("blood", task="colours", max_tokens=4, stop="\\n")
    >>> answer.version, answer.usage.completion_tokens <= 4
    (1, True)
    >>> with client.stream("snow", task="colours", max_tokens=4) as stream:
    ...     text = "".join(token.text for token in stream)
    >>> text == stream.result.text
    True
    >>> second = client.push("colours", text="sky -> BLUE\\n", activate=False)
    >>> client.set_traffic("colours", {1: 90, second.version: 10}).weights
    {1: 90, 2: 10}
    >>> client.activate("colours", second.version).active_version
    2
    >>> client.rollback("colours").active_version
    1
    >>> client.verify("colours", 1).passed
    True
    >>> client.task("nobody")
    Traceback (most recent call last):
    foreword_client.errors.UnknownTaskError: there is no task nobody
    >>> client.delete_task("colours")
    >>> client.close()
    """

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        task: str | None = None,
        version: int | None = None,
        **options: Unpack[types.GenerateOptions],
    ) -> types.Generation:
        """Complete a prompt (text or token ids) behind a task's prefix; no task: the base model."""
        return self._call(_calls.generate(prompt, task, version, options, stream=False))

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        task: str | None = None,
        version: int | None = None,
        **options: Unpack[types.GenerateOptions],
    ) -> Stream:
        """The same, token by token. Leaving the stream early cancels the request."""
        call = _calls.generate(prompt, task, version, options, stream=True)
        return Stream(self._target, lambda: self._send(call))

    def push(
        self,
        task: str,
        source: Source | None = None,
        *,
        text: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        golden_prompts: Sequence[Mapping[str, Any]] = (),
        activate: bool = True,
        if_match: int | None = None,
        progress: Progress | None = None,
        **profile: Unpack[types.ProfileFields],
    ) -> types.Uploaded:
        """Upload a version; `activate` makes it answer, and creates the task if it is new.

        `source` is a PEFT folder, a .safetensors or .tar file, or its bytes; from `text` or
        `messages` the server computes the prefix. `golden_prompts`, `{"prompt": ..., "expect":
        ...}`, are answered so before the version may be active. Parts of the `profile` are changed
        afterwards. `if_match`: only if the task is still at this `revision`; else, here and in all
        that follows, `PreconditionFailedError`. `progress` is told bytes sent, and bytes in all.
        """
        call = _calls.push(
            task,
            source,
            text,
            messages,
            golden_prompts,
            activate=activate,
            if_match=if_match,
            progress=progress,
        )
        uploaded = self._call(call)
        if profile:
            self.update_task(task, **profile)
        return uploaded

    def rehearse(
        self,
        task: str,
        source: Source | None = None,
        *,
        text: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        golden_prompts: Sequence[Mapping[str, Any]] = (),
        activate: bool = True,
    ) -> types.Rehearsal:
        """What `push` would do: its checks, what it would take, and what would make room for it."""
        call = _calls.rehearse(task, source, text, messages, golden_prompts, activate=activate)
        return self._call(call)

    def tasks(self) -> list[types.Task]:
        """All tasks, in the order of their names."""
        page = self._call(_calls.tasks(None))
        tasks = list(page.tasks)
        while page.next_after is not None:
            page = self._call(_calls.tasks(page.next_after))
            tasks += page.tasks
        return tasks

    def task(self, name: str) -> types.Task:
        """One task: its profile, active version, and where its prefix is."""
        return self._call(_calls.task(name))

    def create_task(self, name: str, **profile: Unpack[types.ProfileFields]) -> types.Task:
        """Create a task without a version, or replace the whole profile of one."""
        return self._call(_calls.create_task(name, profile))

    def update_task(
        self, name: str, *, if_match: int | None = None, **profile: Unpack[types.ProfileFields]
    ) -> types.Task:
        """Change parts of a task's profile; None clears a part, one left out stays."""
        return self._call(_calls.update_task(name, profile, if_match))

    def delete_task(self, name: str, *, if_match: int | None = None) -> None:
        """Delete a task with all its versions. Requests that run already finish."""
        self._call(_calls.delete_task(name, if_match))

    def versions(self, task: str) -> types.Versions:
        """All versions of a task, and the history of its active one."""
        return self._call(_calls.versions(task))

    def version(self, task: str, number: int) -> types.Version:
        """One version's manifest, and where its prefix is."""
        return self._call(_calls.version(task, number))

    def activate(self, task: str, number: int, *, if_match: int | None = None) -> types.Activated:
        """Let a version answer from now on. Requests that run already finish on theirs."""
        return self._call(_calls.activate(task, number, if_match))

    def rollback(self, task: str, *, if_match: int | None = None) -> types.Activated:
        """Back to the version that was active before."""
        return self._call(_calls.rollback(task, if_match))

    def traffic(self, task: str) -> types.Traffic:
        """Which versions share a task's traffic, if any do."""
        return self._call(_calls.traffic(task))

    def set_traffic(
        self, task: str, weights: Mapping[int, int], *, if_match: int | None = None
    ) -> types.Traffic:
        """Let versions share the traffic: `{3: 90, 4: 10}`. `{}`: all of it to the active one.

        It holds until the next activation or rollback. Requests with the same `traffic_key` get the
        same version.
        """
        return self._call(_calls.set_traffic(task, weights, if_match))

    def verify(self, task: str, number: int) -> types.Report:
        """Check a stored version once more: its bytes, a run of the model, golden prompts."""
        return self._call(_calls.verify(task, number))

    def warm(self, task: str, number: int) -> types.Residency:
        """Load a version's prefix before anyone asks for it."""
        return self._call(_calls.place(task, number, "warm"))

    def pin(self, task: str, number: int) -> types.Residency:
        """Keep a version's prefix on the device, also after a restart."""
        return self._call(_calls.place(task, number, "pin"))

    def unpin(self, task: str, number: int) -> types.Residency:
        """Let it be evicted again, when others need the room."""
        return self._call(_calls.place(task, number, "unpin"))

    def evict(self, task: str, number: int) -> types.Residency:
        """Drop it from memory now. The next request loads it again."""
        return self._call(_calls.place(task, number, "evict"))

    def delete_version(self, task: str, number: int, *, if_match: int | None = None) -> None:
        """Delete a version that gets no traffic."""
        self._call(_calls.delete_version(task, number, if_match))

    def download(
        self, task: str, number: int, *, format: Literal["tar", "peft"] | None = None
    ) -> bytes:
        """A version's artifact (safetensors) alone; or a tar of it, or of a folder that PEFT loads,
        with a `foreword.json` that says how it is asked."""
        return self._call(_calls.download(task, number, format))

    def keys(self) -> list[types.Key]:
        """All keys of the server, oldest first. Needs the scope `admin`, as the next three do."""
        return self._call(_calls.keys()).keys

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        tasks: Sequence[str] = ("*",),
        **options: Unpack[types.KeyOptions],
    ) -> types.CreatedKey:
        """Make a key for some scopes and tasks. Its `key` is shown this once."""
        return self._call(_calls.create_key(name, scopes, tasks, options))

    def revoke_key(self, id: str) -> None:
        """Make a key invalid, for good, within ten seconds."""
        self._call(_calls.revoke_key(id))

    def audit(self, after: int = 0) -> list[types.AuditEntry]:
        """Who changed what: at most 1000 rows behind the row `after`, in order."""
        return self._call(_calls.audit(after)).entries

    def info(self) -> types.Info:
        """The base model and the server around it."""
        return self._call(_calls.info())

    def metrics(self) -> str:
        """The server's metrics, in Prometheus' text format."""
        return self._call(_calls.metrics())

    def is_alive(self) -> bool:
        """Whether a server answers and its engine turns. Does not raise when it does not."""
        try:
            return self._call(_calls.is_alive())
        except NOT_READY:
            return False

    def is_ready(self) -> bool:
        """Whether a server answers and can generate. Does not raise when it cannot."""
        try:
            return self._call(_calls.is_ready())
        except NOT_READY:
            return False
