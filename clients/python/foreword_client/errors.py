"""
What can go wrong between this client and a server.

* ForewordError
  x SetupError                 the URL or the API key cannot be used
  x SourceError                what `push` was given is no prefix
  x NoServerError              nothing answers at the URL
  x ConnectionLostError        the connection ended before the answer did
  x TimedOutError              the server took longer than this client waits
  x UnexpectedAnswerError      something answered, and it is not Foreword
  x UnfinishedStreamError      the result of a stream that is not at its end
  x APIStatusError             the server refused or failed, and says why
    + BadRequestError          400
    + AuthenticationError      401
    + PermissionDeniedError    403
    + NotFoundError            404
      - UnknownTaskError
      - UnknownVersionError
    + ConflictError            409
      - TaskExistsError
      - VersionActiveError
      - NothingActiveError
      - NothingToRollBackError
      - BaseModelMismatchError
      - GoldenPromptFailedError
    + PreconditionFailedError  412
    + TooLargeError            413
    + UnprocessableError       422
      - InvalidUploadError
      - PromptTooLongError
    + OverloadedError          429
    + ServerFailureError       500 and above
      - UnavailableError       503
"""

from __future__ import annotations

from dataclasses import dataclass


class ForewordError(Exception):
    """Base class of every error this client raises on purpose."""


class SetupError(ForewordError):
    """The URL or the API key that the client was given cannot be used."""


class SourceError(ForewordError):
    """What `push` was given is no prefix. Nothing was sent."""


class NoServerError(ForewordError):
    """Nothing answers at the URL. Nothing was sent."""


class ConnectionLostError(ForewordError):
    """The connection ended before the answer did; whether the call took effect is unknown."""


class TimedOutError(ForewordError):
    """The server took longer than this client waits; whether the call took effect is unknown."""


class UnexpectedAnswerError(ForewordError):
    """Something answered, and it does not speak Foreword's protocol."""


class UnfinishedStreamError(ForewordError):
    """The result of a stream was asked for before its end."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a server says about a refusal or a failure (RFC 9457)."""

    status: int
    code: str
    title: str
    detail: str
    request_id: str | None = None
    retry_after_s: float | None = None


class APIStatusError(ForewordError):
    """The server answered with a 4xx or 5xx, or gave up in the middle of a stream."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem.detail or self.problem.title

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def code(self) -> str:
        """Stable, for programs: such as `unknown_task`."""
        return self.problem.code

    @property
    def title(self) -> str:
        return self.problem.title

    @property
    def detail(self) -> str:
        return self.problem.detail

    @property
    def request_id(self) -> str | None:
        """Names the request in the server's log."""
        return self.problem.request_id

    @property
    def retry_after_s(self) -> float | None:
        """When the server suggests to come back."""
        return self.problem.retry_after_s


class BadRequestError(APIStatusError):
    """The request cannot be read unambiguously."""


class AuthenticationError(APIStatusError):
    """No API key, or one that the server does not know."""


class PermissionDeniedError(APIStatusError):
    """The API key is known, and may not do this."""


class NotFoundError(APIStatusError):
    """The server holds nothing under that name."""


class UnknownTaskError(NotFoundError):
    """There is no such task."""


class UnknownVersionError(NotFoundError):
    """The task exists, this version of it does not."""


class ConflictError(APIStatusError):
    """The state of the task does not allow this."""


class TaskExistsError(ConflictError):
    """A task of this name exists already."""


class VersionActiveError(ConflictError):
    """The active version cannot be deleted: activate another one first."""


class NothingActiveError(ConflictError):
    """The task exists and has no active version."""


class NothingToRollBackError(ConflictError):
    """No earlier activation is left to go back to."""


class BaseModelMismatchError(ConflictError):
    """The version was made for another base model than the one the server runs."""


class GoldenPromptFailedError(ConflictError):
    """The version does not answer a golden prompt as expected, so it gets no traffic."""


class PreconditionFailedError(APIStatusError):
    """The task has changed since the `revision` that `if_match` named. Nothing was done."""


class TooLargeError(APIStatusError):
    """The body exceeds what the server takes."""


class UnprocessableError(APIStatusError):
    """The request can be read, and still cannot be served."""


class InvalidUploadError(UnprocessableError):
    """The bytes cannot become a prefix of the server's base model. The detail says why."""


class PromptTooLongError(UnprocessableError):
    """Prefix, prompt and completion together exceed the context."""


class OverloadedError(APIStatusError):
    """The server's queue is full: come back in `retry_after_s`."""


class ServerFailureError(APIStatusError):
    """The server failed; the request was fine. The request id finds the cause in its log."""


class UnavailableError(ServerFailureError):
    """Not now: the same request may succeed in `retry_after_s`."""


BY_CODE: dict[str, type[APIStatusError]] = {
    "unknown_task": UnknownTaskError,
    "unknown_version": UnknownVersionError,
    "task_exists": TaskExistsError,
    "version_active": VersionActiveError,
    "nothing_active": NothingActiveError,
    "nothing_to_roll_back": NothingToRollBackError,
    "base_model_mismatch": BaseModelMismatchError,
    "golden_prompt_failed": GoldenPromptFailedError,
    "prompt_too_long": PromptTooLongError,
    "invalid_upload": InvalidUploadError,
    "invalid_artifact": InvalidUploadError,
    "unsupported_format": InvalidUploadError,
    "unsupported_media_type": InvalidUploadError,
    "incompatible_prefix": InvalidUploadError,
    "wrong_base_model": InvalidUploadError,
    "non_finite_values": InvalidUploadError,
    "prefix_too_long": InvalidUploadError,
}

BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    412: PreconditionFailedError,
    413: TooLargeError,
    422: UnprocessableError,
    429: OverloadedError,
    503: UnavailableError,
}


def of_problem(problem: Problem) -> APIStatusError:
    """The most telling error for a problem: by its code, else by its status."""
    any_of_status = ServerFailureError if problem.status >= 500 else APIStatusError
    kind = BY_CODE.get(problem.code) or BY_STATUS.get(problem.status, any_of_status)
    return kind(problem)
