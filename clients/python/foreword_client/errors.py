"""
Errors of the client.

* ForewordError
  x SetupError                 the URL or the API key cannot be used
  x SourceError                the source given to `push` is not a prefix
  x NoServerError              the URL is unreachable
  x ConnectionLostError        the connection broke before the response was complete
  x TimedOutError              the response took longer than the client's timeout
  x UnexpectedAnswerError      the response is not from Foreword
  x UnfinishedStreamError      the stream has not ended, so it has no result
  x APIStatusError             the server returned a 4xx or 5xx with its reason
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
    """Base class of all errors of this client."""


class SetupError(ForewordError):
    """The URL or the API key cannot be used."""


class SourceError(ForewordError):
    """The source given to `push` is not a prefix. Nothing was sent."""


class NoServerError(ForewordError):
    """The URL is unreachable. Nothing was sent."""


class ConnectionLostError(ForewordError):
    """The connection broke before the response was complete. The call may have taken effect."""


class TimedOutError(ForewordError):
    """The response took longer than the client's timeout. The call may have taken effect."""


class UnexpectedAnswerError(ForewordError):
    """The response does not follow Foreword's protocol."""


class UnfinishedStreamError(ForewordError):
    """The result of a stream was read before the stream ended."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem details of a refusal or a failure (RFC 9457)."""

    status: int
    code: str
    title: str
    detail: str
    request_id: str | None = None
    retry_after_s: float | None = None


class APIStatusError(ForewordError):
    """The server returned a 4xx or 5xx, or an error in the middle of a stream."""

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
        """Stable identifier for programs, such as `unknown_task`."""
        return self.problem.code

    @property
    def title(self) -> str:
        return self.problem.title

    @property
    def detail(self) -> str:
        return self.problem.detail

    @property
    def request_id(self) -> str | None:
        """Id of the request in the server's log."""
        return self.problem.request_id

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the server suggests a retry."""
        return self.problem.retry_after_s


class BadRequestError(APIStatusError):
    """The request is malformed or ambiguous."""


class AuthenticationError(APIStatusError):
    """There is no API key, or the server does not know it."""


class PermissionDeniedError(APIStatusError):
    """The API key is valid but lacks the permission."""


class NotFoundError(APIStatusError):
    """The named resource does not exist."""


class UnknownTaskError(NotFoundError):
    """There is no such task."""


class UnknownVersionError(NotFoundError):
    """The task has no such version."""


class ConflictError(APIStatusError):
    """The state of the task does not allow this."""


class TaskExistsError(ConflictError):
    """A task of this name already exists."""


class VersionActiveError(ConflictError):
    """The version is active and cannot be deleted: activate another one first."""


class NothingActiveError(ConflictError):
    """The task has no active version."""


class NothingToRollBackError(ConflictError):
    """There is no earlier activation to roll back to."""


class BaseModelMismatchError(ConflictError):
    """The version was made for a different base model than the server's."""


class GoldenPromptFailedError(ConflictError):
    """The version fails a golden prompt, so it gets no traffic."""


class PreconditionFailedError(APIStatusError):
    """The task has changed since the `revision` in `if_match`. Nothing was changed."""


class TooLargeError(APIStatusError):
    """The body exceeds the server's limit."""


class UnprocessableError(APIStatusError):
    """The request is well-formed but cannot be served."""


class InvalidUploadError(UnprocessableError):
    """The upload is not a prefix for the server's base model. The detail gives the reason."""


class PromptTooLongError(UnprocessableError):
    """Prefix, prompt and completion exceed the context length."""


class OverloadedError(APIStatusError):
    """The server's queue is full: retry after `retry_after_s`."""


class ServerFailureError(APIStatusError):
    """The server failed on a valid request. Its log has the cause under the request id."""


class UnavailableError(ServerFailureError):
    """The server is temporarily unavailable: retry after `retry_after_s`."""


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
    """Return the most specific error for a problem: by its code, else by its status."""
    any_of_status = ServerFailureError if problem.status >= 500 else APIStatusError
    kind = BY_CODE.get(problem.code) or BY_STATUS.get(problem.status, any_of_status)
    return kind(problem)
