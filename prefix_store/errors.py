"""
What can go wrong in a prefix store. Nothing here knows about HTTP.

* PrefixStoreError
  x InvalidName
  x NotFound
    + UnknownTask
    + UnknownVersion
    + UnknownDigest
    + UnknownKey
  x Conflict
    + TaskExists
    + VersionActive
    + NothingActive
    + NothingToRollBack
    + LastAdminKey
    + VersionQuarantined
    + RequestInProgress
    + DefinitionMismatch
    + ActivationOvertaken
  x QuotaExceeded
    + StoreFull
  x PreconditionFailed
  x IdempotencyMismatch
  x InvalidUpload
    + UnsupportedMediaType
    + InvalidArtifact
    + UnsupportedFormat
    + IncompatiblePrefix
    + WrongBaseModel
    + NonFiniteValues
    + OutOfRange
    + PrefixTooLong
  x DigestMismatch
  x StorageFailure
"""

from __future__ import annotations

from typing import ClassVar


class PrefixStoreError(Exception):
    """Base class of every error a prefix store raises. Messages are fit for a user's eyes."""

    code: ClassVar[str] = "prefix_store_error"


class InvalidName(PrefixStoreError):
    """A task's name is 1 to 63 of a-z, 0-9, `_` and `-`, and starts with a letter or a digit."""

    code = "invalid_name"


class NotFound(PrefixStoreError):
    """The store holds nothing under that name."""

    code = "not_found"


class UnknownTask(NotFound):
    """There is no such task."""

    code = "unknown_task"


class UnknownVersion(NotFound):
    """The task exists, this version of it does not."""

    code = "unknown_version"


class UnknownDigest(NotFound):
    """No blob has this digest."""

    code = "unknown_digest"


class UnknownKey(NotFound):
    """No key has this id."""

    code = "unknown_key"


class Conflict(PrefixStoreError):
    """The state of the task does not allow this."""

    code = "conflict"


class TaskExists(Conflict):
    """A task of this name exists already."""

    code = "task_exists"


class VersionActive(Conflict):
    """The active version cannot be deleted: activate another one first."""

    code = "version_active"


class NothingActive(Conflict):
    """The task exists and has no active version."""

    code = "nothing_active"


class NothingToRollBack(Conflict):
    """No earlier activation is left to go back to."""

    code = "nothing_to_roll_back"


class LastAdminKey(Conflict):
    """The last key with the scope `admin` is not revoked: create another one first."""

    code = "last_admin_key"


class VersionQuarantined(Conflict):
    """The version's stored bytes have changed. Uploading the same bytes again heals it."""

    code = "version_quarantined"


class RequestInProgress(Conflict):
    """Another request with the same idempotency key has not been answered yet."""

    code = "request_in_progress"


class DefinitionMismatch(Conflict):
    """The upload says that prompts are made in another way than its task makes them."""

    code = "definition_mismatch"


class ActivationOvertaken(Conflict):
    """Another activation came first, after this request had begun."""

    code = "activation_overtaken"


class QuotaExceeded(PrefixStoreError):
    """The server keeps no more tasks, or no more versions of this one."""

    code = "quota_exceeded"


class StoreFull(QuotaExceeded):
    """The server keeps no more bytes of prefixes."""


class PreconditionFailed(PrefixStoreError):
    """The task is not in the state that the change was meant for."""

    code = "precondition_failed"


class IdempotencyMismatch(PrefixStoreError):
    """The idempotency key was used for another request."""

    code = "idempotency_mismatch"


class InvalidUpload(PrefixStoreError):
    """The uploaded bytes cannot become a prefix of this server's base model."""

    code = "invalid_upload"


class UnsupportedMediaType(InvalidUpload):
    """The body's type is none that an upload can have."""

    code = "unsupported_media_type"


class InvalidArtifact(InvalidUpload):
    """The bytes are not a well-formed file of the kind they claim to be."""

    code = "invalid_artifact"


class UnsupportedFormat(InvalidUpload):
    """A well-formed file of a kind this server does not take, such as LoRA."""

    code = "unsupported_format"


class IncompatiblePrefix(InvalidUpload):
    """The shapes do not fit the base model. The message says expected and got."""

    code = "incompatible_prefix"


class WrongBaseModel(InvalidUpload):
    """The artifact was made for another base model."""

    code = "wrong_base_model"


class NonFiniteValues(InvalidUpload):
    """NaN or infinite values, before or after the cast to the serving dtype."""

    code = "non_finite_values"


class OutOfRange(InvalidUpload):
    """Keys or values are longer than any of the base model's own by orders of magnitude."""

    code = "out_of_range"


class PrefixTooLong(InvalidUpload):
    """More virtual tokens than the server takes."""

    code = "prefix_too_long"


class DigestMismatch(PrefixStoreError):
    """The stored bytes do not hash to their own name."""

    code = "digest_mismatch"


class StorageFailure(PrefixStoreError):
    """The disk or the database refused: nothing was changed."""

    code = "storage_failure"
