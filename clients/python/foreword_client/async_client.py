from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from foreword_client import _calls, _seen, types
from foreword_client._body import Progress
from foreword_client._connection import AsyncConnection
from foreword_client._upload import Source, Upload
from foreword_client._wire import NOT_READY
from foreword_client.streams import AsyncStream


class AsyncClient(AsyncConnection):
    """A connection to a Foreword server. Close it, or use it as an async context manager.

    `base_url` defaults to FOREWORD_URL, then http://127.0.0.1:8000; `api_key` to FOREWORD_API_KEY.
    Methods have the names and arguments of `Client`'s, and raise `ForewordError`.

    >>> async def ask() -> tuple[bool, str]:
    ...     async with AsyncClient() as client:
    ...         whole = await client.generate("1, 2, 3,", max_tokens=4)
    ...         async with client.stream("1, 2, 3,", max_tokens=4) as stream:
    ...             text = "".join([token.text async for token in stream])
    ...         return whole.text == text, whole.finish_reason
    >>> asyncio.run(ask())
    (True, 'length')
    """

    async def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        task: str | None = None,
        version: int | None = None,
        **options: Unpack[types.GenerateOptions],
    ) -> types.Generation:
        """Complete a prompt (text or token ids) with a task's prefix; without a task, with the bare
        base model."""
        return await self._call(_calls.generate(prompt, task, version, options, stream=False))

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        task: str | None = None,
        version: int | None = None,
        **options: Unpack[types.GenerateOptions],
    ) -> AsyncStream:
        """Stream a completion token by token. Leaving the stream early cancels the request."""
        call = _calls.generate(prompt, task, version, options, stream=True)
        return AsyncStream(self._target, lambda: self._send(call))

    async def push(
        self,
        task: str,
        source: Source | None = None,
        *,
        text: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        prefix_of: int | None = None,
        definition: types.Definition | Mapping[str, Any] | None = None,
        golden: Sequence[Mapping[str, Any]] = (),
        evaluation: types.Evaluation | Mapping[str, Any] | None = None,
        activate: bool = True,
        if_match: int | None = None,
        progress: Progress | None = None,
        **changes: Unpack[types.PushFields],
    ) -> types.Uploaded:
        """Upload a prefix, and how it is asked, as the next version of a task.

        Args:
            source: a folder from PEFT or a download, a .safetensors or .tar file, or the bytes of
                one.
            text, messages: in place of `source`; the server computes the prefix from them.
            prefix_of: in place of `source`: the version of the task whose prefix is used again.
            definition: how the version is asked, all of it, such as `{"template": "Q: {prompt}"}`.
                By default that of the source (its `foreword.json`), else of the active version.
            golden: `{"prompt": ..., "expect": ...}`, which the version must answer as expected
                before it may be active.
            evaluation: what was measured where the prefix was trained.
            activate: make the version live. Creates the task if it does not exist.
            if_match: upload only if the task is still at this `revision`, else raise
                `PreconditionFailedError`. Other methods take it too.
            progress: called with the bytes sent and the total.
            changes: `template`, `chat` and `defaults` change the definition that the version would
                have otherwise, as part of the upload; `description`, `limits` and `weight` change
                the task after it.
        """
        upload = Upload(source, text, messages, prefix_of, definition, golden, evaluation)
        fields, profile = _calls.split(changes)
        if fields:
            upload, if_match = await _seen.async_changed(self, task, upload, fields, if_match)
        is_guarded = if_match is not None or not activate
        seen = None if is_guarded else await _seen.async_before(self, task)
        call = _calls.push(
            task, upload, activate=activate, if_match=if_match, seen=seen, progress=progress
        )
        uploaded = await self._call(call)
        if profile:
            await self.update_task(task, **profile)
        return uploaded

    async def rehearse(
        self,
        task: str,
        source: Source | None = None,
        *,
        text: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        prefix_of: int | None = None,
        definition: types.Definition | Mapping[str, Any] | None = None,
        golden: Sequence[Mapping[str, Any]] = (),
        evaluation: types.Evaluation | Mapping[str, Any] | None = None,
        activate: bool = True,
        **changes: Unpack[types.PushFields],
    ) -> types.Rehearsal:
        """Run `push` without storing anything: its checks, its size, and what it would evict."""
        upload = Upload(source, text, messages, prefix_of, definition, golden, evaluation)
        fields, _ = _calls.split(changes)
        if fields:
            upload, _ = await _seen.async_changed(self, task, upload, fields, None)
        return await self._call(_calls.rehearse(task, upload, activate=activate))

    async def tasks(self, **query: Unpack[types.TaskQuery]) -> list[types.Task]:
        """List all tasks, or those that a query finds; by name unless it says otherwise."""
        page = await self._call(_calls.tasks(None, query))
        tasks = list(page.tasks)
        while page.next_after is not None:
            page = await self._call(_calls.tasks(page.next_after, query))
            tasks += page.tasks
        return tasks

    async def task(self, name: str) -> types.Task:
        """Get a task: its profile, active version, and where its prefix is."""
        return await self._call(_calls.task(name))

    async def create_task(self, name: str, **profile: Unpack[types.ProfileFields]) -> types.Task:
        """Create a task without a version, or replace the whole profile of an existing one."""
        return await self._call(_calls.create_task(name, profile))

    async def update_task(
        self, name: str, *, if_match: int | None = None, **profile: Unpack[types.ProfileFields]
    ) -> types.Task:
        """Change fields of a task's profile. None clears a field; an omitted one stays."""
        return await self._call(_calls.update_task(name, profile, if_match))

    async def delete_task(self, name: str, *, if_match: int | None = None) -> None:
        """Delete a task with all its versions. Requests in progress will finish."""
        await self._call(_calls.delete_task(name, if_match))

    async def versions(self, task: str) -> types.Versions:
        """List all versions of a task, and the history of its active version."""
        return await self._call(_calls.versions(task))

    async def version(self, task: str, number: int) -> types.Version:
        """Get a version's manifest, and where its prefix is."""
        return await self._call(_calls.version(task, number))

    async def activate(
        self, task: str, number: int, *, if_match: int | None = None
    ) -> types.Activated:
        """Make a version live. Requests in progress finish on the version they started with.

        `if_match`: only if the task is still at this `revision`. By default it is the one at the
        time of the call, so that an activation that is retried never replaces a later one.
        """
        if_match = await _seen.async_revision(self, task, if_match)
        return await self._call(_calls.activate(task, number, if_match))

    async def rollback(self, task: str, *, if_match: int | None = None) -> types.Activated:
        """Activate the version that was active before; a second rollback goes further back."""
        if_match = await _seen.async_revision(self, task, if_match)
        return await self._call(_calls.rollback(task, if_match))

    async def traffic(self, task: str) -> types.TrafficReport:
        """Get the weights by which versions share a task's traffic, and how each of them does."""
        return await self._call(_calls.traffic(task))

    async def set_traffic(
        self,
        task: str,
        weights: Mapping[int, int],
        *,
        rollback_if: types.RollbackOptions | None = None,
        if_match: int | None = None,
    ) -> types.Traffic:
        """Split a task's traffic by weight: `{3: 90, 4: 10}`. `{}` sends all to the active version.

        The split ends at the next activation or rollback, and by itself when `rollback_if` applies:
        `{"error_rate_above": 0.05, "total_p95_ms_above": 2000}`. Without `rollback_if` the rule of
        the split before stays; `{}` removes it. Requests with the same `traffic_key` get the same
        version.
        """
        if_match = await _seen.async_revision(self, task, if_match)
        return await self._call(_calls.set_traffic(task, weights, rollback_if, if_match))

    async def verify(self, task: str, number: int) -> types.Report:
        """Verify a stored version again: its bytes, a run of the model, golden prompts."""
        return await self._call(_calls.verify(task, number))

    async def warm(self, task: str, number: int) -> types.Residency:
        """Load a version's prefix before the first request for it."""
        return await self._call(_calls.place(task, number, "warm"))

    async def pin(self, task: str, number: int) -> types.Residency:
        """Keep a version's prefix on the device, across restarts too."""
        return await self._call(_calls.place(task, number, "pin"))

    async def unpin(self, task: str, number: int) -> types.Residency:
        """Allow a version's prefix to be evicted again."""
        return await self._call(_calls.place(task, number, "unpin"))

    async def evict(self, task: str, number: int) -> types.Residency:
        """Evict a version's prefix from memory. The next request loads it again."""
        return await self._call(_calls.place(task, number, "evict"))

    async def delete_version(self, task: str, number: int, *, if_match: int | None = None) -> None:
        """Delete a version that gets no traffic."""
        await self._call(_calls.delete_version(task, number, if_match))

    async def download(
        self, task: str, number: int, *, format: Literal["tar", "peft"] | None = None
    ) -> bytes:
        """Download a version's prefix.

        `format`: None for the artifact (safetensors) alone; `tar` for a tar of it, `peft` for a tar
        of a folder that PEFT loads, both with a `foreword.json` that describes the prompt format.
        """
        return await self._call(_calls.download(task, number, format))

    async def keys(self) -> list[types.Key]:
        """List all keys of the server, oldest first. Needs the scope `admin`, like all that follow
        about keys and the audit log."""
        return (await self._call(_calls.keys())).keys

    async def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        tasks: Sequence[str] = ("*",),
        **options: Unpack[types.KeyOptions],
    ) -> types.CreatedKey:
        """Create a key for some scopes and tasks. Its `key` is returned only this once."""
        return await self._call(_calls.create_key(name, scopes, tasks, options))

    async def revoke_key(self, id: str) -> None:
        """Revoke a key, irrevocably. It takes effect within ten seconds."""
        await self._call(_calls.revoke_key(id))

    async def audit(self, after: int = 0) -> list[types.AuditEntry]:
        """Read the audit log: at most 1000 rows after row `after`, in order."""
        return (await self._call(_calls.audit(after))).entries

    async def info(self) -> types.Info:
        """Get the base model, its geometry and the server's limits."""
        return await self._call(_calls.info())

    async def metrics(self) -> str:
        """Get the server's metrics in the Prometheus text format."""
        return await self._call(_calls.metrics())

    async def is_alive(self) -> bool:
        """Return whether a server answers and its engine runs. False rather than an error."""
        try:
            return await self._call(_calls.is_alive())
        except NOT_READY:
            return False

    async def is_ready(self) -> bool:
        """Return whether a server answers and can generate. False rather than an error."""
        try:
            return await self._call(_calls.is_ready())
        except NOT_READY:
            return False
