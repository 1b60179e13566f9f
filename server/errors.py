"""
What the server can refuse or fail to do. Nothing here knows about HTTP.

* ServerError
  x MalformedRequest
  x InvalidRequest
    + PromptTooLong
    + TemplateMismatch
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
    """Base class of every error the server raises on purpose. Messages are fit for users."""

    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None


class MalformedRequest(ServerError):
    """The request cannot be read unambiguously."""

    code = "malformed_request"


class InvalidRequest(ServerError):
    """The request parses, and still cannot be served."""

    code = "invalid_request"
    param: str | None = None
    """The field that is wrong, where it is one."""


class PromptTooLong(InvalidRequest):
    """Prefix, prompt and completion together exceed the context."""

    code = "prompt_too_long"

    def __init__(
        self, *, prefix_tokens: int, prompt_tokens: int, max_tokens: int | None, limit: int
    ) -> None:
        """`max_tokens` None: the prompt was not tokenised, and has `prompt_tokens` at least."""
        if max_tokens is None:
            said = f"{prefix_tokens} prefix tokens + at least {prompt_tokens} prompt tokens"
        else:
            said = (
                f"{prefix_tokens} prefix tokens + {prompt_tokens} prompt tokens + {max_tokens} "
                f"max_tokens = {prefix_tokens + prompt_tokens + max_tokens}"
            )
        super().__init__(f"{said}, the context holds {limit}")


class TemplateMismatch(InvalidRequest):
    """The task's template and the request's fields do not fit together."""

    code = "template_mismatch"


class UnsupportedParameter(InvalidRequest):
    """A field that this server does not know, or a value of it that it does not serve."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str | None = None) -> None:
        super().__init__(message or f"`{param}` is not supported by this server")
        self.param = param


class InvalidGrammar(InvalidRequest):
    """What the answer is to be cannot be understood, or takes too much to follow."""

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
    """The waiting queue is full: come back later."""

    code = "overloaded"
    retry_after_s = 1


class Unavailable(ServerError):
    """Not now; the same request may succeed soon."""

    code = "unavailable"
    retry_after_s = 5


class EngineUnavailable(Unavailable):
    """The engine process is starting, or died under this request and is being replaced."""

    code = "engine_unavailable"


class Draining(Unavailable):
    """The server is shutting down and takes nothing new."""

    code = "draining"


class EngineFailure(ServerError):
    """The engine lives, and could not do this."""

    code = "engine_failure"


class StepFailed(EngineFailure):
    """The step that ran this request failed. Other requests are not affected."""

    code = "step_failed"


class PrefixUnavailable(EngineFailure):
    """The prefix's bytes could not be read or do not hash to their digest."""

    code = "prefix_unavailable"


class CompileFailed(EngineFailure):
    """The forward pass that turns text or a soft prompt into a prefix failed."""

    code = "compile_failed"


class PinRefused(ServerError):
    """Pinned prefixes would take too much of the device."""

    code = "pin_refused"


class PrefixInUse(ServerError):
    """The prefix cannot be evicted: requests run behind it, or it is pinned."""

    code = "prefix_in_use"


class UnusablePrefix(ServerError):
    """The model cannot run behind this prefix, or the prefix changes nothing."""

    code = "unusable_prefix"


class GoldenPromptFailed(ServerError):
    """The version does not answer one of its golden prompts as it is expected to."""

    code = "golden_prompt_failed"


class HeadTooLarge(ServerError):
    """The address and the headers together exceed what a request needs."""

    code = "head_too_large"


class BodyTooLarge(ServerError):
    """The body exceeds what this route takes."""

    code = "body_too_large"


class BodyTimeout(ServerError):
    """The client stopped sending its body."""

    code = "body_timeout"


class UnsupportedBody(ServerError):
    """A content type or content encoding that this route does not take."""

    code = "unsupported_body"


class AccessDenied(ServerError):
    """Not with this key, or not now."""

    code = "access_denied"


class Unauthenticated(AccessDenied):
    """No key, or none that is valid. Which of the two, and why, is not told."""

    code = "unauthenticated"


class InsufficientScope(AccessDenied):
    """The key is valid, and not for this."""

    code = "insufficient_scope"


class ForeignOrigin(AccessDenied):
    """There is no key, and a web page of another site has a browser send this."""

    code = "foreign_origin"


class UnknownHost(AccessDenied):
    """There is no key, and the request calls the server by a name that is not the server's."""

    code = "unknown_host"


class KeyLimitReached(AccessDenied):
    """The key's own limit of requests in a second, or at once."""

    code = "key_limit_reached"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyAttempts(AccessDenied):
    """Wrong keys, one after another, from one address."""

    code = "too_many_attempts"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGone(ServerError):
    """Nobody reads the answer any more."""

    code = "client_gone"
