"""The verbs the other rooms depend on. A vendor's engine and the scripted one are held to the same contract tests."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One user turn: images in order, then text. The engine applies the model's own chat template."""

    images: "tuple[PIL.Image.Image, ...]"
    """None to several, see `too_many`."""
    text: str
    prefix: str = ""
    """Beginning of the assistant's turn, already written (for instance a rationale, to read the verdict after it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample from one prompt."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    """Seed of the first prompt of a call; prompt i uses seed + i, so that equal prompts differ."""
    tracked_words: tuple[str, ...] = ()
    """Words whose probability is wanted at every position, summed over their token forms ("Yes", " yes", ...)."""
    logprobs: bool = False
    """Whether `Sample.ids` and `Sample.logprobs` are wanted, to learn from what was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token."""

    id: int
    text: str
    tracked_probabilities: Mapping[str, float]
    """Word of `Sampling.tracked_words` -> its probability at this position, before temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One generated text."""

    text: str
    tokens: tuple[Token, ...]
    """Without special tokens such as the end of turn."""
    finish: str
    """`stop` (end of turn) or `length` (cut at `max_tokens`)."""
    ids: tuple[int, ...] = ()
    """Every generated token, special ones and the end of turn included; empty unless `Sampling.logprobs`."""
    logprobs: tuple[float, ...] = ()
    """Of each of `ids`, in the distribution it was drawn from: with temperature, without what is never sampled. At
    temperature 0 that of temperature 1. Empty unless `Sampling.logprobs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A prompt the engine would not take; the others of the call are not harmed."""

    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    """Name of the torch dtype without `torch.`, for instance `bfloat16`."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: "torch.Tensor") -> Self:
        """Return the spec of a tensor."""
        return cls(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def refuse_extra_images(num_images: int, most: int) -> Refusal | None:
    """The refusal of a prompt with more images than an engine takes (`VllmConfig.max_images`); None where it may be."""
    if num_images <= most:
        return None
    detail = f"{num_images} images; the engine takes {most}, see its setting engine.max_images"
    return Refusal(reason=DropReason.TOO_MANY_IMAGES, detail=detail)


class Generator(Protocol):
    """A vision-language model that writes."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        """For each prompt, in order, `sampling.n` samples, or why none.

        `seeds` (one per prompt) override `sampling.seed`.
        """
        ...


class StreamingGenerator(Generator, Protocol):
    """A vision-language model that writes, and hands over what is finished while it writes the rest."""

    def generate_stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Sample] | Refusal]]:
        """What `generate` returns, each with its prompt's place, in the order in which prompts are finished.

        Closing the iterator gives up what is not finished. Raises EngineLostError where the engine is gone.
        """
        ...


class PolicyGenerator(StreamingGenerator, Protocol):
    """A vision-language model that writes while its weights are learnt elsewhere."""

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Take new weights by the names of the Hugging Face folder; what is not among them stays as it is.

        No sample may be under way. Raises WeightSyncError where they do not fit; until a whole set comes, what is then
        sampled means nothing.
        """
        ...

    @property
    def llm(self) -> Any:
        """The vendor's engine object, for weight transfers into its GPU memory (`weight_sync.gpu_receiver`)."""
        ...


class LiveGenerator(Protocol):
    """A vision-language model that writes for many callers at once, as their requests come."""

    def generate_stream(
        self, prompt: Prompt, sampling: Sampling, seed: int
    ) -> AsyncIterator[tuple[int, Sample | Refusal]]:
        """`sampling.n` samples of a prompt in the order they are finished, each with its number 0 ... n - 1.

        Sample k is the k-th that a `Generator` gives with that seed. Closing the iterator aborts what is not finished.
        Raises EngineLostError where the engine is gone.
        """
        ...


class Detector(Protocol):
    """An object detector."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The nouns it can detect; empty for an open-vocabulary detector."""
        ...

    def detect(self, images: "Sequence[PIL.Image.Image]", nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        """For each image its boxes, best score first, of any of `nouns` (a closed detector ignores nouns it lacks)."""
        ...


class Matcher(Protocol):
    """An image-text matcher."""

    def match(self, images: "Sequence[PIL.Image.Image]", texts: Sequence[str]) -> list[list[float]]:
        """For each image, the probability of each text among `texts` (softmax over them; rows sum to 1)."""
        ...
