"""
Errors of the prefix store, independent of HTTP.

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
    + TrafficSplit
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
    """Base class of all errors of the prefix store. Messages may be shown to users."""

    code: ClassVar[str] = "prefix_store_error"


class InvalidName(PrefixStoreError):
    """Not a task name: 1 to 63 characters of a-z, 0-9, `_` and `-`, starting with a-z or 0-9."""

    code = "invalid_name"


class NotFound(PrefixStoreError):
    """The store has nothing under that name."""

    code = "not_found"


class UnknownTask(NotFound):
    """There is no such task."""

    code = "unknown_task"


class UnknownVersion(NotFound):
    """The task exists but has no such version."""

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
    """There is no earlier activation to go back to."""

    code = "nothing_to_roll_back"


class LastAdminKey(Conflict):
    """The last key with the scope `admin` cannot be revoked: create another one first."""

    code = "last_admin_key"


class VersionQuarantined(Conflict):
    """The version's stored bytes are corrupt. Uploading the same bytes again repairs it."""

    code = "version_quarantined"


class RequestInProgress(Conflict):
    """Another request with the same idempotency key has not been answered yet."""

    code = "request_in_progress"


class TrafficSplit(Conflict):
    """The definition cannot change while versions share the traffic."""

    code = "traffic_split"


class ActivationOvertaken(Conflict):
    """The active version changed while this request was running."""

    code = "activation_overtaken"


class QuotaExceeded(PrefixStoreError):
    """The limit of tasks, or of versions per task, is reached."""

    code = "quota_exceeded"


class StoreFull(QuotaExceeded):
    """The limit of bytes stored for prefixes is reached."""


class PreconditionFailed(PrefixStoreError):
    """The task is not in the state that the change requires."""

    code = "precondition_failed"


class IdempotencyMismatch(PrefixStoreError):
    """The idempotency key was used for another request."""

    code = "idempotency_mismatch"


class InvalidUpload(PrefixStoreError):
    """The uploaded bytes cannot become a prefix of this server's base model."""

    code = "invalid_upload"


class UnsupportedMediaType(InvalidUpload):
    """Uploads of this media type are not supported."""

    code = "unsupported_media_type"


class InvalidArtifact(InvalidUpload):
    """The bytes are not a well-formed file of their format."""

    code = "invalid_artifact"


class UnsupportedFormat(InvalidUpload):
    """A well-formed file of an unsupported kind, such as a LoRA."""

    code = "unsupported_format"


class IncompatiblePrefix(InvalidUpload):
    """The shapes do not match the base model. The message states expected and actual."""

    code = "incompatible_prefix"


class WrongBaseModel(InvalidUpload):
    """The artifact was made for another base model."""

    code = "wrong_base_model"


class NonFiniteValues(InvalidUpload):
    """Values are NaN or infinite, before or after the cast to the serving dtype."""

    code = "non_finite_values"


class OutOfRange(InvalidUpload):
    """The norm of a key or value exceeds the base model's own by orders of magnitude."""

    code = "out_of_range"


class PrefixTooLong(InvalidUpload):
    """The prefix has more virtual tokens than the server allows."""

    code = "prefix_too_long"


class DigestMismatch(PrefixStoreError):
    """The stored bytes do not match their digest."""

    code = "digest_mismatch"


class StorageFailure(PrefixStoreError):
    """The disk, network or database failed; nothing was changed."""

    code = "storage_failure"
