"""Exceptions and drop reasons.

    VlGenRMError
    |-- ConfigError        a setting is unknown or out of range; names the field, the value and the remedy
    |-- InputError         a file or model folder the user named cannot be used
    |-- ResourceError      the cluster cannot give what a stage asks for
    |-- StageError         a stage cannot go on (empty input, too many rows dropped)
    |-- EngineLostError    an engine died; whoever holds it must start another and ask that one
    |-- WeightSyncError    an engine did not get a policy's new weights; it keeps those it has
        |-- TransferBrokenError    an engine was lost while it got them straight from the learner; send them again
    |-- RemoteError        a served judge cannot be reached, or does not answer as it should
        |-- RemoteRefusalError   it refuses the request, and would again

A user's mistake raises one of these. A row that cannot be used never raises: it becomes a `Dropped` record
whose reason is one of `DropReason`, and the run goes on.
"""

from enum import StrEnum


class VlGenRMError(Exception):
    """Root of every error this package raises on purpose; the command line prints it without a traceback."""


class ConfigError(VlGenRMError, ValueError):
    """A configuration the run must not start with."""


class InputError(VlGenRMError, ValueError):
    """A path the user named does not hold what it should."""


class ResourceError(VlGenRMError, RuntimeError):
    """The cluster lacks a resource that a stage asks for, now and for good."""


class StageError(VlGenRMError, RuntimeError):
    """A stage ended without what the next one needs."""


class RemoteError(VlGenRMError, RuntimeError):
    """A served judge did not answer, refused the request, or gave no reward where one is needed."""


class RemoteRefusalError(RemoteError):
    """A served judge refused the request (4xx): a wrong token, address or setting. It would again."""


class WeightSyncError(VlGenRMError, RuntimeError):
    """New weights did not come to an engine, or not as they were sent."""


class TransferBrokenError(WeightSyncError):
    """A transfer of weights from GPU to GPU broke off with an engine; its engines start again and can be sent to."""


class EngineLostError(VlGenRMError, RuntimeError):
    """An engine's process died or failed beyond repair. What it was asked may be asked again, of another."""


class DropReason(StrEnum):
    """The one vocabulary of reasons a row leaves the flow. Counted per stage in each manifest."""

    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_OUTSIDE_ROOT = "image_outside_root"
    MALFORMED_ROW = "malformed_row"
    DUPLICATE_ID = "duplicate_id"
    EMPTY_TEXT = "empty_text"
    DUPLICATE_TEXT = "duplicate_text"
    PROMPT_TOO_LONG = "prompt_too_long"
    TOO_MANY_IMAGES = "too_many_images"
    ENGINE_ERROR = "engine_error"
    NO_RESPONSE = "no_response"
    NO_CLAIM = "no_claim"
    NO_EVIDENCE = "no_evidence"
    NO_CONTRAST = "no_contrast"
    LENGTH_UNBALANCED = "length_unbalanced"
    OVER_LIMIT = "over_limit"
    CONTRADICTED_CHOSEN = "contradicted_chosen"
    UNREADABLE_VERDICT = "unreadable_verdict"
    WRONG_VERDICT = "wrong_verdict"
    SMALL_MARGIN = "small_margin"
    CONTRADICTED_CRITIQUE = "contradicted_critique"
    UNFAITHFUL_CRITIQUE = "unfaithful_critique"
    EXAMPLE_TOO_LONG = "example_too_long"
