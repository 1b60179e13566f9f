"""
Errors of the server, independent of HTTP.

* ServerError
  x MalformedRequest
  x InvalidRequest
    + PromptTooLong
    + TemplateMismatch
    + NotAChat
    + UnsupportedParameter
    + InvalidGrammar
  x BaseModelMismatch
  x Overloaded
  x Unavailable
    + EngineUnavailable
    + Draining
  x EngineFailure
    + StepFailed
    + PrefixUnavailable
    + CompileFailed
  x PinRefused
  x PrefixInUse
  x UnusablePrefix
  x GoldenPromptFailed
  x HeadTooLarge
  x BodyTooLarge
  x BodyTimeout
  x UnsupportedBody
  x AccessDenied
    + Unauthenticated
    + InsufficientScope
    + ForeignOrigin
    + UnknownHost
    + KeyLimitReached
    + TooManyAttempts
  x ClientGone
"""

from __future__ import annotations

from typing import ClassVar


class ServerError(Exception):
    """Base class of all errors that the server raises. Messages may be shown to users."""

    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None


class MalformedRequest(ServerError):
    """The request cannot be read unambiguously."""

    code = "malformed_request"


class InvalidRequest(ServerError):
    """The request is well-formed but cannot be served."""

    code = "invalid_request"
    param: str | None = None
    """Name of the invalid field, if it is a single one."""


class PromptTooLong(InvalidRequest):
    """Prefix, prompt and completion together exceed the context."""

    code = "prompt_too_long"

    def __init__(
        self, *, prefix_tokens: int, prompt_tokens: int, max_tokens: int | None, limit: int
    ) -> None:
        """`max_tokens` None: the prompt was not tokenised; `prompt_tokens` is a lower bound."""
        if max_tokens is None:
            said = f"{prefix_tokens} prefix tokens + at least {prompt_tokens} prompt tokens"
        else:
            said = (
                f"{prefix_tokens} prefix tokens + {prompt_tokens} prompt tokens + {max_tokens} "
                f"max_tokens = {prefix_tokens + prompt_tokens + max_tokens}"
            )
        super().__init__(f"{said}, the context holds {limit}")


class TemplateMismatch(InvalidRequest):
    """The request's fields do not match the task's template."""

    code = "template_mismatch"


class NotAChat(InvalidRequest):
    """The request has several messages, but the task takes a single prompt."""

    code = "not_a_chat"


class UnsupportedParameter(InvalidRequest):
    """The server does not support this field, or this value of it."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str | None = None) -> None:
        super().__init__(message or f"`{param}` is not supported by this server")
        self.param = param


class InvalidGrammar(InvalidRequest):
    """The answer constraint is invalid, or too expensive to enforce."""

    code = "invalid_grammar"

    def __init__(self, why: str) -> None:
        super().__init__(f"the schema, expression or choice cannot be served: {why}")

    @classmethod
    def not_installed(cls) -> InvalidGrammar:
        return cls("the package `llguidance` is not installed on this server")


class BaseModelMismatch(ServerError):
    """The version was made for another base model than the one that is loaded."""

    code = "base_model_mismatch"


class Overloaded(ServerError):
    """The queue is full; the client should retry later."""

    code = "overloaded"
    retry_after_s = 1


class Unavailable(ServerError):
    """Temporarily unavailable; the same request may succeed soon."""

    code = "unavailable"
    retry_after_s = 5


class EngineUnavailable(Unavailable):
    """The engine process is starting, or died during this request and is being replaced."""

    code = "engine_unavailable"


class Draining(Unavailable):
    """The server is shutting down and accepts no new requests."""

    code = "draining"


class EngineFailure(ServerError):
    """The engine is running but the operation failed."""

    code = "engine_failure"


class StepFailed(EngineFailure):
    """The step that ran this request failed. Other requests are not affected."""

    code = "step_failed"


class PrefixUnavailable(EngineFailure):
    """The prefix could not be read, is corrupt, or does not fit in memory."""

    code = "prefix_unavailable"


class CompileFailed(EngineFailure):
    """The forward pass that turns text or a soft prompt into a prefix failed."""

    code = "compile_failed"


class PinRefused(ServerError):
    """Pinned prefixes would take too much device memory."""

    code = "pin_refused"


class PrefixInUse(ServerError):
    """The prefix cannot be evicted: requests are using it, or it is pinned."""

    code = "prefix_in_use"


class UnusablePrefix(ServerError):
    """The model cannot run with this prefix, or the prefix has no effect."""

    code = "unusable_prefix"


class GoldenPromptFailed(ServerError):
    """The version fails one of its golden prompts."""

    code = "golden_prompt_failed"


class HeadTooLarge(ServerError):
    """The request line and headers are too large."""

    code = "head_too_large"


class BodyTooLarge(ServerError):
    """The body exceeds the route's limit."""

    code = "body_too_large"


class BodyTimeout(ServerError):
    """The client stopped sending its body."""

    code = "body_timeout"


class UnsupportedBody(ServerError):
    """The route does not accept this content type or content encoding."""

    code = "unsupported_body"


class AccessDenied(ServerError):
    """Access is denied with this key, or at this time."""

    code = "access_denied"


class Unauthenticated(AccessDenied):
    """The key is missing or invalid; the response does not reveal which, or why."""

    code = "unauthenticated"


class InsufficientScope(AccessDenied):
    """The key is valid but does not permit this."""

    code = "insufficient_scope"


class ForeignOrigin(AccessDenied):
    """The server has no keys, and a web page of another site made the browser send this."""

    code = "foreign_origin"


class UnknownHost(AccessDenied):
    """The server has no keys, and the Host header does not name this server."""

    code = "unknown_host"


class KeyLimitReached(AccessDenied):
    """The key's limit of requests per second, or of concurrent requests, is reached."""

    code = "key_limit_reached"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyAttempts(AccessDenied):
    """Too many invalid keys came from one address."""

    code = "too_many_attempts"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGone(ServerError):
    """The client has closed the connection."""

    code = "client_gone"
