"""Protocols of generators, detectors, matchers and text readers, and the types of their arguments and results.

Callers depend on these protocols, not on a particular engine. The vLLM generators and the scripted one pass the same
contract tests (`tests/integration/test_generator_contract.py`).
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One user turn: images in order, then text. The engine applies the model's own chat template."""

    images: "tuple[PIL.Image.Image, ...]"
    """Any number up to the engine's `max_images`."""
    text: str
    prefix: str = ""
    """Beginning of the assistant's turn, such as a rationale after which the verdict is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | None, ...]
    """Texts in order. None marks the place of the conversation's next image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns to which the model adds the next one. The engine applies the model's own chat template."""

    images: "tuple[PIL.Image.Image, ...]"
    """As many as the turns have marks; any number up to the engine's `max_images`."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one prompt."""

    n: int = 1
    """Number of samples."""
    first: int = 0
    """Number of the first sample. Sample k of a prompt's seed is the same text whatever `first` and `n` are, so samples
    can be drawn in several calls."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    """Seed of the first prompt of a call; prompt i uses seed + i, so that equal prompts get different samples."""
    tracked_words: tuple[str, ...] = ()
    """Words whose probability is returned at every position, summed over their token forms ("Yes", " yes", ...)."""
    only_tracked: bool = False
    """Sample tokens of tracked words only. Their probabilities are those among all tokens nevertheless."""
    stop: tuple[str, ...] = ()
    """Texts before which a sample ends. `Sample.text` is without them, `Sample.tokens` may have them."""
    json_schema: str = ""
    """JSON schema, as JSON, that the text follows unless it is cut at `max_tokens`; "" for free text."""
    logprobs: bool = False
    """Return `Sample.ids` and `Sample.logprobs`, for training on the sample."""


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
    """Tokens without special ones such as the end of turn."""
    finish: str
    """`stop` (end of turn, or a text of `Sampling.stop`) or `length` (cut at `max_tokens`)."""
    num_prompt_tokens: int = 0
    """Tokens of the prompt, those of images included."""
    ids: tuple[int, ...] = ()
    """All generated tokens, with special ones and the end of turn; empty unless `Sampling.logprobs`."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each of `ids` in the distribution it was sampled from (after temperature and banned tokens; at
    temperature 0 that of temperature 1). Empty unless `Sampling.logprobs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Result of a prompt that the engine does not accept. The other prompts of the call are not affected."""

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


def refuse_extra_images(num_images: int, limit: int) -> Refusal | None:
    """Return a refusal if a prompt has more images than `VllmConfig.max_images`, else None."""
    if num_images <= limit:
        return None
    detail = f"{num_images} images; the engine accepts {limit}; raise its setting engine.max_images"
    return Refusal(reason=DropReason.TOO_MANY_IMAGES, detail=detail)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the part of a text before the first of the texts in `stop`; the whole text without one."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


class Generator(Protocol):
    """A vision-language model that generates text."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        """Generate samples.

        Args:
            prompts: Prompts of one call.
            sampling: Sampling parameters of all of them.
            seeds: One seed per prompt, in place of `sampling.seed`.

        Returns:
            For each prompt, in order, `sampling.n` samples or a refusal.
        """
        ...


class StreamingGenerator(Generator, Protocol):
    """A generator that returns finished prompts while others are still generated."""

    def generate_stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Sample] | Refusal]]:
        """Yield the result of each prompt with the prompt's index, in the order in which they finish.

        Closing the iterator aborts the others. Raises EngineLostError if the engine died.
        """
        ...


class PolicyGenerator(StreamingGenerator, Protocol):
    """A generator whose weights are replaced while it runs, by those of a trainer."""

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Load new weights, named as in the Hugging Face folder; others stay unchanged.

        No request may be running. Raises WeightSyncError if they do not fit; samples are then meaningless until a
        complete set is loaded.
        """
        ...

    @property
    def llm(self) -> Any:
        """The vendor's engine object, for weight transfers into its GPU memory (`weight_sync.gpu_receiver`)."""
        ...


class LiveGenerator(Protocol):
    """A generator for concurrent requests."""

    def generate_stream(
        self, prompt: Prompt | Conversation, sampling: Sampling, seed: int
    ) -> AsyncIterator[tuple[int, Sample | Refusal]]:
        """Yield `sampling.n` samples of a prompt as they finish, each with its number 0 ... n - 1.

        Sample k equals the k-th sample of a `Generator` with the same seed. Closing the iterator aborts the others.
        Raises EngineLostError if the engine died.
        """
        ...


class Detector(Protocol):
    """An object detector."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The nouns it can detect; empty for an open-vocabulary detector."""
        ...

    def detect(self, images: "Sequence[PIL.Image.Image]", nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        """Return the boxes of `nouns` in each image, best score first. A detector with `labels` ignores other nouns."""
        ...


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of text in an image."""

    text: str
    box: Box
    """Bounding box, with the confidence of the reading as its score."""


class TextReader(Protocol):
    """An OCR engine."""

    def read(self, images: "Sequence[PIL.Image.Image]") -> list[tuple[TextLine, ...]]:
        """Return the lines of text in each image, in reading order."""
        ...


class Matcher(Protocol):
    """An image-text matcher."""

    def match(self, images: "Sequence[PIL.Image.Image]", texts: Sequence[str]) -> list[list[float]]:
        """Return for each image the probability of each of `texts`: a softmax over them, so rows sum to 1."""
        ...
