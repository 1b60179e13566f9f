"""Carries out a plan: some tasks at a time, the steps of a task in order.

Every write names the revision of the task that was seen, so that it changes nothing that somebody
else changed meanwhile. If a task fails, its further steps are left out and the other tasks go on;
tasks are deleted only if nothing has failed. Where the server cannot be reached or knows no such
key, everything stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from foreword_client import _body, _calls, _upload, types
from foreword_client._wire import Call
from foreword_client.apply.changes import (
    Activate,
    Change,
    Configure,
    Create,
    Define,
    Delete,
    EndSplit,
    Pin,
    Redefine,
    Refuse,
    Split,
    Step,
    Unpin,
    Upload,
)
from foreword_client.apply.models import DEFINITION_FIELDS, Definition, Settings
from foreword_client.apply.sources import Source, UploadSource
from foreword_client.apply.state import run_all
from foreword_client.async_client import AsyncClient
from foreword_client.errors import (
    APIStatusError,
    AuthenticationError,
    ForewordError,
    NoServerError,
    UnknownTaskError,
)

FATAL = (AuthenticationError, NoServerError)
"""Errors after which no other task would fare better."""


class ChangedMeanwhileError(ForewordError):
    """Somebody else changed the task. What was not done yet is left out."""


class RefusedError(ForewordError):
    """A step is not done, though the server would do it."""


class Result(BaseModel):
    """What was done to a task, or would be."""

    task: str
    action: Literal["create", "change", "delete"]
    status: Literal["planned", "done", "failed", "left_out"]
    changes: list[dict[str, Any]] = []
    """`path`, `before` and `after`."""
    versions: list[int] = []
    """Numbers of its versions, as the file has them in order. Empty before they exist."""
    warnings: list[str] = []
    error: str | None = None
    code: str | None = None
    """Code of the server's refusal."""


Report = Callable[[Result, int, int], None]
"""Called with the result of a task, the number of tasks done, and of all that change."""


async def execute(
    client: AsyncClient,
    changes: Sequence[Change],
    sources: Mapping[str, tuple[Source, ...]],
    *,
    concurrency: int,
    report: Report,
) -> list[Result]:
    """Carry out changes, deletions last. `report` gets every result when it is known.

    Raises an error of `FATAL`, after the tasks in progress.
    """

    num_done = 0

    async def work(change: Change) -> Result:
        nonlocal num_done
        result = await _carry_out(client, change, sources.get(change.task, ()))
        num_done += 1
        report(result, num_done, len(changes))
        return result

    written = [change for change in changes if change.action != "delete"]
    deletions = [change for change in changes if change.action == "delete"]
    results = await run_all(work, written, concurrency=concurrency)
    if any(result.status == "failed" for result in results):
        return results + [result_of(change, "left_out") for change in deletions]
    return results + await run_all(work, deletions, concurrency=concurrency)


def result_of(
    change: Change, status: Literal["planned", "done", "failed", "left_out"], **fields: Any
) -> Result:
    """Return the result of a change, with its differences."""
    changes = [
        {"path": line.path, "before": line.before, "after": line.after}
        for line in change.differences
    ]
    return Result(task=change.task, action=change.action, status=status, changes=changes, **fields)


async def _carry_out(client: AsyncClient, change: Change, sources: tuple[Source, ...]) -> Result:
    run = _Run(client, change, sources)
    try:
        for step in change.steps:
            await run.do(step)
    except FATAL:
        raise
    except (ForewordError, OSError) as exc:  # OSError: a file that has gone since it was hashed
        code = exc.code if isinstance(exc, APIStatusError) else None
        return result_of(change, "failed", warnings=run.warnings, error=str(exc), code=code)
    return result_of(change, "done", warnings=run.warnings, versions=run.versions)


class _Run:
    """The steps of one task."""

    def __init__(self, client: AsyncClient, change: Change, sources: tuple[Source, ...]) -> None:
        self._client = client
        self._task = change.task
        self._revision = change.revision
        self._is_stale = False
        """Whether a step has changed the revision since it was read."""
        self._active: int | None = None
        """The version that a step has made active."""
        self._numbers = list(change.numbers)
        self._sources = sources
        self.warnings: list[str] = []

    @property
    def versions(self) -> list[int]:
        return [number for number in self._numbers if number is not None]

    async def do(self, step: Step) -> None:
        match step:
            case Create(settings, definition):
                await self._check_absent()
                self._seen(await self._put_profile(settings, definition, None))
            case Define(settings, definition):
                self._seen(await self._put_profile(settings, definition, await self._if_match()))
            case Configure(fields):
                revision = await self._if_match()
                self._seen(
                    await self._client.update_task(self._task, if_match=revision, **dict(fields))
                )
            case Upload() | Redefine():
                await self._make_version(step)
            case Delete():
                await self._client.delete_task(self._task, if_match=self._revision)
            case Pin(index):
                await self._client.pin(self._task, self._number(index))
            case Unpin(version):
                await self._client.unpin(self._task, version)
            case Refuse(reason):
                raise RefusedError(
                    f"{reason}; take the version out of the file, or start the split again with "
                    "`foreword traffic`"
                )
            case Activate() | Split() | EndSplit():
                await self._direct_traffic(step)

    async def _make_version(self, step: Upload | Redefine) -> None:
        if self._revision is None and not self._is_stale:
            await self._check_absent()
        revision = await self._if_match()
        call = _calls.push(
            self._task,
            self._upload(step),
            activate=step.activate,
            if_match=revision,
            progress=None,
        )
        made = await self._client._call(call)
        if made.warning is not None:
            self.warnings.append(made.warning)
        self._numbers[step.index] = made.version
        if step.activate:
            self._active = made.version
        self._is_stale = True

    def _upload(self, step: Upload | Redefine) -> _upload.Upload:
        if isinstance(step, Redefine):
            return _upload.Upload(prefix_of=step.of, definition=step.definition.to_json())
        source = self._sources[step.index]
        assert isinstance(source, UploadSource), "an existing version is not uploaded"
        return source.upload(step.definition)

    async def _direct_traffic(self, step: Activate | Split | EndSplit) -> None:
        revision = await self._if_match()
        if isinstance(step, Activate):
            number = self._number(step.index)
            activated = await self._client.activate(self._task, number, if_match=revision)
            warning, self._active = activated.warning, number
        else:
            shares = step.weights if isinstance(step, Split) else {}
            weights = {self._number(index): weight for index, weight in shares.items()}
            rule: Any = {}  # removes the rule of the split before
            if isinstance(step, Split) and step.rollback_if is not None:
                rule = step.rollback_if.model_dump(exclude_defaults=True)
            split = await self._client.set_traffic(
                self._task, weights, rollback_if=rule, if_match=revision
            )
            warning = split.warning
        if warning is not None:
            self.warnings.append(warning)
        self._is_stale = True

    async def _put_profile(
        self, settings: Settings, definition: Definition | None, if_match: int | None
    ) -> types.Task:
        """Create the task, or replace its whole profile."""
        profile: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
        if definition is not None:
            asked = definition.to_json()
            profile |= {name: asked[name] for name in DEFINITION_FIELDS if name in asked}
        body, path = _body.of_json(profile), _calls._path("tasks", self._task)
        parse = _calls._as(types.Task)
        return await self._client._call(
            Call("PUT", path, parse, body=body, repeatable=True, if_match=if_match)
        )

    def _seen(self, task: types.Task) -> None:
        self._revision, self._is_stale = task.revision, False

    async def _if_match(self) -> int | None:
        """Return the task's revision, which our own last step may have changed.

        Raises `ChangedMeanwhileError` if another version is active than we made active.
        """
        if self._is_stale:
            task = await self._client.task(self._task)
            if self._active is not None and task.active_version != self._active:
                raise ChangedMeanwhileError("another version was made active meanwhile")
            self._seen(task)
        return self._revision

    async def _check_absent(self) -> None:
        """Check that the task is still new, as nothing says so to the server."""
        try:
            await self._client.task(self._task)
        except UnknownTaskError:
            return
        raise ChangedMeanwhileError("the task was created by somebody else meanwhile")

    def _number(self, index: int) -> int:
        number = self._numbers[index]
        assert number is not None, "the step that makes the version comes first"
        return number
