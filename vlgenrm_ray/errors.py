"""Exceptions of this package, and the reasons for which rows are dropped.

    VlGenRMError
    |-- ConfigError                a setting is unknown, out of range, or does not fit another one
    |-- InputError                 a file or model folder that the user named cannot be used
    |-- ResourceError              the cluster does not have the resources that a stage requests
    |-- StageError                 a stage cannot continue, such as for lack of input
    |   |-- DamagedShardError      a shard of a stage cannot be read
    |   `-- StorageFullError       a file cannot be written, such as on a full disk
    |-- EngineLostError            an engine died; its requests can be repeated on another engine
    |-- WeightSyncError            new weights did not reach an engine; it keeps those it has
    |   `-- TransferBrokenError    an engine was lost during a transfer from GPU to GPU; start it again and repeat
    `-- RemoteError                a served judge cannot be reached, or its reply is not valid
        `-- RemoteRefusalError     a served judge rejects the request, and would reject it again

Messages name the field or file, its value and a remedy. A row that cannot be used raises none of these: it becomes a
`Dropped` record with a `DropReason`, and the run continues.
"""

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from backports.strenum import StrEnum


class VlGenRMError(Exception):
    """Base of all exceptions that this package raises on purpose. The command line prints them without a traceback."""


class ConfigError(VlGenRMError, ValueError):
    """A configuration that a run must not start with."""


class InputError(VlGenRMError, ValueError):
    """A file or folder named by the user that is missing or cannot be used."""


class ResourceError(VlGenRMError, RuntimeError):
    """Resources requested by a stage that the cluster will never have."""


class StageError(VlGenRMError, RuntimeError):
    """A stage that failed, or produced no input for the next one."""


class DamagedShardError(StageError):
    """A shard whose content was truncated or overwritten after it was written."""


class StorageFullError(StageError, OSError):
    """A file that the file system does not take: the disk is full, a quota is used up, or writing failed."""


class RemoteError(VlGenRMError, RuntimeError):
    """A served judge that cannot be reached, replies with an error, or returns no reward where one is required."""


class RemoteRefusalError(RemoteError):
    """A request that a served judge rejects (4xx): a wrong token, address or setting."""


class WeightSyncError(VlGenRMError, RuntimeError):
    """New weights that did not reach an engine, or arrived damaged."""


class TransferBrokenError(WeightSyncError):
    """A transfer of weights from GPU to GPU that was interrupted by the loss of an engine, which is restarted."""


class EngineLostError(VlGenRMError, RuntimeError):
    """An engine whose process died or failed permanently. Its requests can be repeated on another engine."""


class DropReason(StrEnum):
    """Reasons for which a row is dropped. Each manifest counts them per stage."""

    IMAGE_MISSING = "image_missing"
    """There is no such file, or its address cannot be opened."""
    IMAGE_UNREACHABLE = "image_unreachable"
    """The storage failed, did not answer or refused access; another attempt may succeed."""
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_OUTSIDE_ROOT = "image_outside_root"
    """The image is outside `pool.image_root`."""
    MALFORMED_ROW = "malformed_row"
    VIDEO = "video"
    """The row shows a video; only still images are supported."""
    TIE = "tie"
    """The data set rates all responses of the row alike."""
    EMPTY_TEXT = "empty_text"
    FORGED_CRITIQUE = "forged_critique"
    """The response is nothing but a verdict or critique in the form of the judge's own."""
    DUPLICATE_TEXT = "duplicate_text"
    """Another response of the question has the same text."""
    PROMPT_TOO_LONG = "prompt_too_long"
    TOO_MANY_IMAGES = "too_many_images"
    """The prompt has more images than `engine.max_images`."""
    PROMPT_REFUSED = "prompt_refused"
    """The engine, or the model's image processor, does not take the prompt and never will."""
    ENGINE_ERROR = "engine_error"
    """The engine failed on the prompt; another attempt may succeed."""
    NO_RESPONSE = "no_response"
    """No generator was assigned to the question."""
    NO_EVIDENCE = "no_evidence"
    """The experts know too little about the claims."""
    NO_CONTRAST = "no_contrast"
    """The two sides of a pair are equal, or no responses differ in a checked claim."""
    LENGTH_UNBALANCED = "length_unbalanced"
    """The two sides of a pair differ too much in length."""
    BENCHMARK_IMAGE = "benchmark_image"
    """The image is one of `experts.decontamination.benchmarks`."""
    OVER_LIMIT = "over_limit"
    """More pairs of a question, or combinations of critiques, than allowed."""
    CONTRADICTED_CHOSEN = "contradicted_chosen"
    """The experts contradict the chosen response."""
    UNREADABLE_VERDICT = "unreadable_verdict"
    """The critique has no verdict with enough probability."""
    WRONG_VERDICT = "wrong_verdict"
    """The verdict of the critique is wrong."""
    SMALL_MARGIN = "small_margin"
    """The margin between the two sides is below `selection.tau`."""
    CONTRADICTED_CRITIQUE = "contradicted_critique"
    """The experts contradict the critique's statements about the image."""
    UNFAITHFUL_CRITIQUE = "unfaithful_critique"
    """The critique attributes claims to the response that it does not make."""
    EXAMPLE_TOO_LONG = "example_too_long"
    """The example has more tokens than a micro-batch."""

    @property
    def is_transient(self) -> bool:
        """Return True if another attempt may succeed; a rerun processes such a row again."""
        return self in (DropReason.IMAGE_UNREACHABLE, DropReason.ENGINE_ERROR)

    @property
    def is_fault(self) -> bool:
        """Return True if the reason speaks of a fault of storage, files or engines, which `max_dropped` limits.

        All other reasons are decisions about the data, such as a tie or an experts' contradiction, however many.
        """
        return self.is_transient or self in (DropReason.IMAGE_MISSING, DropReason.IMAGE_UNREADABLE)


FAULTS = frozenset(reason.value for reason in DropReason if reason.is_fault)
"""Values of the reasons that speak of faults. Runs of other versions may have reasons that this one does not know."""
TRANSIENT_FAULTS = frozenset(reason.value for reason in DropReason if reason.is_transient)
