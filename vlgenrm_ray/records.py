"""Records: the frozen types that are passed between stages.

An id extends its parent's (`q1f3` -> `q1f3/r2` -> `q1f3/r2/c0`), so a record can be traced by its id alone. A
`Response` holds its `Question`, and a `Preference` the texts of both responses. Records do not depend on Ray;
`arrow.py` maps any of them to Arrow and back.
"""

import sys
from dataclasses import dataclass, replace

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from backports.strenum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Address and identity of an image, without its pixels."""

    uri: str
    """Path or `scheme://` address that `images.read` can open on every node."""
    sha256: str
    """Hash of the encoded bytes, in hexadecimal: the image's identity."""
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about an image, or about several.

    `chosen` and `rejected` are set only if the source gave a preference pair.
    """

    id: str
    image: ImageRef
    text: str
    source: str
    kind: str = ""
    """Kind of question (describe, count, ...) if the source knows it; used for reports, never for selection."""
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    more_images: tuple[ImageRef, ...] = ()
    """Images after the first, in order."""
    group: str = ""
    """Questions of one group are scored together, such as those whose rows have the same id; "" without a group."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in order."""
        return (self.image, *self.more_images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a question, sampled from a policy or imported with the data set."""

    id: str
    question: Question
    text: str
    sampler: str
    """Name of the generator, or `imported/chosen`, `imported/rejected`."""
    seed: int | None = None
    num_tokens: int = 0
    finish: str = "stop"


class ClaimKind(StrEnum):
    """Kind of a claim; decides what its `value` means and how it is checked."""

    EXISTENCE = "existence"
    COUNT = "count"
    ATTRIBUTE = "attribute"
    SPATIAL = "spatial"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One checkable statement of a text about the image.

    `subject` is a noun phrase ("red circle"). `value` depends on the kind: existence ""; count the number in digits;
    attribute the attribute's word ("red"); spatial a relation to `other` ("left of") or a place ("top left"); text the
    words that the subject ("sign") bears in the image.
    """

    kind: ClaimKind
    subject: str
    text: str
    start: int
    """Span [start, end) of the claim in its text, in characters."""
    end: int
    value: str = ""
    other: str = ""
    negated: bool = False
    hedged: bool = False


class Truth(StrEnum):
    """Result of checking a claim. `unknown` is never counted as a negative."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A labelled rectangle: pixel corners in the original image, origin top left."""

    label: str
    """Noun; "" for a window of the image."""
    score: float
    """Confidence of the detector in [0, 1]."""
    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def intersection(self, other: "Box") -> float:
        """Area of the intersection with another box, in square pixels."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return width * height if width > 0 and height > 0 else 0.0

    def iou(self, other: "Box") -> float:
        """Intersection over union with another box, in [0, 1]."""
        common = self.intersection(other)
        return common / (self.area + other.area - common) if common else 0.0

    def scaled(self, x: float, y: float) -> "Box":
        """Return the box for an image `x` times as wide and `y` times as high."""
        return replace(self, x0=self.x0 * x, y0=self.y0 * y, x1=self.x1 * x, y1=self.y1 * y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The experts' verdict on one claim."""

    claim: Claim
    truth: Truth
    expert: str
    """The experts that decided, such as `detector+matcher`, or the name of an additional expert."""
    score: float
    """Confidence of the deciding expert in [0, 1]."""
    boxes: tuple[Box, ...] = ()
    """Boxes that the verdict is based on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One object detected in an image, independent of any claim, with the attribute matched on its crop."""

    box: Box
    attribute: str
    """Best matching attribute word of the crop ("red"), "" if undecided."""
    attribute_score: float
    """The matcher's probability of that word within its family of attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScore:
    """One window of the image with the probability that it shows any object of the vocabulary."""

    box: Box
    anything: float
    """The matcher's probability in [0, 1]; 1 if the detector did not search for all of those objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedResponse:
    """A response with the experts' finding on each of its claims. `id` is the response's id."""

    id: str
    response: Response
    findings: tuple[Finding, ...]
    detections: tuple[Detection, ...] = ()
    window_scores: tuple[WindowScore, ...] = ()
    nouns_searched_twice: tuple[str, ...] = ()
    """Nouns that two detectors searched for: those without a detection are absent."""


class Origin(StrEnum):
    """Source of a preference's label."""

    IMPORTED = "imported"
    VERIFIED = "verified"
    EDITED = "edited"
    REPAIRED = "repaired"
    GOLD = "gold"
    """Labelled by the data set or by the world's ground truth; for evaluation only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two responses to one question. `chosen` is the better one; the names never refer to a position."""

    id: str
    question: Question
    chosen: str
    rejected: str
    origin: Origin
    kind: str = ""
    """Kind of the claim or question in which the two responses differ."""
    evidence: str = ""
    """The deciding finding as one line of text, for people."""
    edit_start: int = -1
    edit_end: int = -1
    """Span of a minimal edit in `rejected`; -1 if there was none."""
    chosen_id: str = ""
    rejected_id: str = ""
    """Ids of the responses the texts came from; an edited text has its parent's id with `/e`."""
    detections: tuple[Detection, ...] = ()
    """Objects detected in the image, against which critiques may be checked."""
    window_scores: tuple[WindowScore, ...] = ()
    """Scores of the image's windows, which prove the absence of objects."""
    nouns_searched_twice: tuple[str, ...] = ()
    """Nouns that two detectors searched for: those without a detection are absent."""

    def response(self, side: "Side") -> str:
        """Return the response of one side."""
        return self.chosen if side is Side.CHOSEN else self.rejected


class Side(StrEnum):
    """Side of a preference."""

    CHOSEN = "chosen"
    REJECTED = "rejected"

    @property
    def other(self) -> "Side":
        """The opposite side."""
        return Side.REJECTED if self is Side.CHOSEN else Side.CHOSEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """One rationale of the GenRM about one side of a preference, with its verdict.

    A pairwise judge writes about both sides: `side` is the one that it was shown as response A.
    """

    id: str
    preference_id: str
    side: Side
    round: int
    text: str
    """Full text of the model, verdict included."""
    verdict: str | None
    """"yes" or "no"; of a pairwise judge "a", "b" or "tie". None if no verdict could be read: the critique abstains."""
    p_yes: float | None
    """p(Yes) / (p(Yes) + p(No)) at the verdict position (arXiv 2408.15240); of a pairwise judge the probability that
    response A is better. None if unreadable."""
    verdict_mass: float
    """p(Yes) + p(No) at the verdict position; a small value means that the model did not give a verdict."""
    num_tokens: int
    seed: int


class ExampleKind(StrEnum):
    """Form of a training example: rationale with verdict, verdict alone, or an answer to the question."""

    CRITIQUE = "critique"
    DIRECT = "direct"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example: the loss is computed on `completion` only, and multiplied by `weight`."""

    id: str
    image: ImageRef
    prompt: str
    """User message, without the chat template."""
    completion: str
    kind: ExampleKind
    label: str
    """Verdict ("yes" or "no", "a" or "b") of critiques and direct verdicts, by which they are balanced; "" else."""
    weight: float
    round: int
    stratum: str = ""
    """Kind and value of the judged response's only claim ("count 3"); examples of one stratum are balanced separately.
    "" if the response has several claims or was not parsed."""
    more_images: tuple[ImageRef, ...] = ()
    """Images after the first, in order."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in order."""
        return (self.image, *self.more_images)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCritique:
    """One rationale of the judge with the verdict read after it."""

    id: str
    """`<input>/c<k>`; in sentence-wise judging `<input>/s<i>/c<k>`."""
    text: str
    """The complete text of the model, verdict included."""
    verdict: str | None
    """"yes" or "no"; of a pairwise judge "a", "b" or "tie". None if no verdict could be read: the critique abstains."""
    p_yes: float | None
    """p(Yes) / (p(Yes) + p(No)) at the verdict position (arXiv 2408.15240), in [0, 1]; of a pairwise judge the
    probability that response A is better (see `judge/verdict.py`). None if unreadable."""
    verdict_mass: float
    """p(Yes) + p(No) at the verdict position; a small mass means that the model did not answer the question."""
    num_tokens: int
    seed: int
    """Seed of the input; critique k is the k-th sample of that seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceReward:
    """The judge's reward of one sentence of a response."""

    text: str
    """The sentence as it was judged: a part of the response, perhaps with other whitespace."""
    reward: float
    """Mean of `p_yes` (or share of "yes") over its readable critiques, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The judge's result for one response: a reward, or the reason why there is none.

    The reward of a pairwise judge is the probability that the response is better than the one shown after it.
    """

    id: str
    reward: float | None
    """Mean of `p_yes` (or vote of the verdicts) over readable critiques, in [0, 1]; None unless `status` is `ok`."""
    status: str
    """`ok`, `unreadable_verdict`, `timeout`, or the drop reason with which the engine refused the prompt."""
    critiques: tuple[JudgeCritique, ...] = ()
    num_asked: int = 0
    """Critiques requested; `critiques` has fewer after a deadline."""
    verdict_mass: float = 0.0
    """Mean p(Yes) + p(No) over the critiques."""
    engine_s: float = 0.0
    """Seconds between request and last critique, if judged by a live engine; 0 in a batch."""
    num_prompt_tokens: int = 0
    """Tokens of the prompts, those of images included, if judged by a live engine; 0 in a batch."""
    detail: str = ""
    """Explanation of the status, for people."""
    sentences: tuple[SentenceReward, ...] = ()
    """Judges by the sentence: the judged sentences in order, if all of them have a reward; their lowest is `reward`."""

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all critiques."""
        return sum(critique.num_tokens for critique in self.critiques)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a response with a reward of its own, such as a sentence or a claim."""

    start: int
    """Span [start, end) in the response, in characters."""
    end: int
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sample of a policy in training, with the data that its update needs. Its id is `<question>/s<step>/r<k>`."""

    id: str
    question: Question
    step: int
    version: int
    """Version of the weights that sampled it: the number of optimizer steps they were trained for."""
    ids: tuple[int, ...]
    """Generated tokens, the end-of-turn token included if it was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the distribution it was sampled from, temperature and truncation included."""
    text: str
    finish: str
    """`stop`, `length`, or "" if there is no text."""
    reward: float | None
    """None unless `status` is `ok`."""
    status: str
    """`ok`, or the reason for a missing reward: `unscored`, a drop reason, or the reward's own status."""
    critique: str = ""
    """One critique behind the reward, for people."""
    segments: tuple[Segment, ...] = ()
    """Rewards of parts of the text, in order and without overlap; () if the reward is of the whole response alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Judgements of both sides of a held-out pair; has the preference's id, with `/no-image` if the image was blank.

    Of a pairwise judge, `chosen` is the judgement with the chosen response shown first, `rejected` that with the
    rejected one first. In both cases the pair is ranked right if the reward of `chosen` is higher.
    """

    id: str
    preference_id: str
    kind: str
    """Kind of the preference."""
    chosen: Judgement
    rejected: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that leaves the pipeline. Every input id gets either child records or a `Dropped`."""

    stage: str
    id: str
    reason: str
    """Value of `errors.DropReason`."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model folder with its provenance."""

    uri: str
    round: int
    parent: str
    """Model it was trained from: its path in the run folder, or `<name>@<hash of its content>`. Equal trainings have
    equal records, wherever the run folder and the package lie."""
    metrics: dict[str, float]
