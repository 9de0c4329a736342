"""JSON types of the scoring API: `POST /v1/score`, `/v1/compare`, `/v1/rank`, `/v1/images`.

An item that could not be scored has `reward: null` and a status with the reason, never the reward 0: 0 is a verdict.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from vlgenrm_ray.errors import DropReason, InputError
from vlgenrm_ray.judge import tournament
from vlgenrm_ray.judge.chat_templates import mentions_image, strip_special_tokens
from vlgenrm_ray.judge.conversation import image_urls, strip_tokens, to_openai_messages
from vlgenrm_ray.judge.tournament import combine_orders

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from backports.strenum import StrEnum

MAX_TEXT = 64_000
"""Most characters of a question, response or reference."""
MAX_ITEMS = 512
"""Most items of a request."""
MAX_CRITIQUES = 64
"""Most critiques a client may request per item."""
_MAX_FIELD = 200
"""Most characters of the name of an invalid field."""


class Status(StrEnum):
    """The outcome of an item: `ok` with a reward, or the reason why there is none."""

    OK = "ok"
    UNREADABLE_VERDICT = "unreadable_verdict"
    TIMEOUT = "timeout"
    EMPTY_TEXT = "empty_text"
    FORGED_CRITIQUE = "forged_critique"
    BAD_IMAGE = "bad_image"
    NO_IMAGE = "no_image"
    NO_QUESTION = "no_question"
    BAD_REQUEST = "bad_request"
    """The item is malformed, its texts cannot be read, or the model's processor does not take it."""
    TOO_LARGE = "too_large"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"

    @property
    def http_status(self) -> int:
        """HTTP status of a reply about this item alone: 200, 422 (would fail again) or 503 (may succeed later)."""
        if self is Status.OK:
            return 200
        return 503 if self in (Status.TIMEOUT, Status.OVERLOADED, Status.INTERNAL) else 422


_STATUS_OF_REASON = {
    DropReason.IMAGE_MISSING: Status.BAD_IMAGE,
    DropReason.IMAGE_UNREADABLE: Status.BAD_IMAGE,
    DropReason.IMAGE_OUTSIDE_ROOT: Status.BAD_IMAGE,
    DropReason.BENCHMARK_IMAGE: Status.BAD_IMAGE,
    DropReason.IMAGE_TOO_LARGE: Status.TOO_LARGE,
    DropReason.PROMPT_TOO_LONG: Status.TOO_LARGE,
    DropReason.TOO_MANY_IMAGES: Status.TOO_LARGE,
    DropReason.UNREADABLE_VERDICT: Status.UNREADABLE_VERDICT,
    DropReason.EMPTY_TEXT: Status.EMPTY_TEXT,
    DropReason.FORGED_CRITIQUE: Status.FORGED_CRITIQUE,
    DropReason.ENGINE_ERROR: Status.INTERNAL,
    DropReason.IMAGE_UNREACHABLE: Status.INTERNAL,
}


def status_of_reason(reason: DropReason) -> Status:
    """Return the status of an item that a stage would drop for `reason`. All but `is_transient` ones are permanent."""
    return _STATUS_OF_REASON.get(reason, Status.BAD_REQUEST)


def parse_status(value: str) -> Status:
    """Convert the status of a judgement or an engine's answer. It is a wire status already, or a drop reason."""
    try:
        return Status(value)
    except ValueError:
        return status_of_reason(DropReason(value))


ResponseText = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(strip_special_tokens)]
"""A response, without the special tokens of the policy's chat template, such as a final `<|im_end|>`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreItem(_Strict):
    """One response to judge.

    Special tokens of chat templates and image placeholders are removed from all texts, whoever sends them: the judge
    has a template of its own. A placeholder in an item without an image sets `image_expected`.
    """

    image: str | None = Field(default=None, max_length=64 * 1024 * 1024)
    """`data:image/...;base64,...`, plain base64, `sha256:<64 hex digits>` of an uploaded image, or a path below a
    folder that the operator allowed. None: the judge sees no image."""
    images: list[str] = Field(default_factory=list, max_length=16)
    """Several images in order, instead of `image`. More than the service's engines take give `too_large`."""
    image_expected: bool | None = None
    """True: the item is about an image, hence `no_image` if it has none. Set by image placeholders in the texts."""
    allow_blind: bool | None = None
    """True: judge without an image if there is none, whatever the service's setting `blind_judging`."""
    question: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[dict[str, Any]] | None = Field(default=None, max_length=64)
    """A conversation in OpenAI's form, instead of `question`; its image parts follow `images`."""
    response: ResponseText
    other: ResponseText | None = None
    """Second response, for a service whose model is a pairwise judge, which is shown `response` first. The reward is
    then the probability that `response` is the better one; `/v1/compare` asks in both orders."""
    reference: str | None = Field(default=None, max_length=MAX_TEXT)
    """A right answer, which the judge sees."""
    mode: Literal["cot", "direct"] | None = None
    """`cot` or `direct`. None: the server's setting; the same holds for the following fields."""
    num_critiques: int | None = Field(
        default=None, ge=1, le=MAX_CRITIQUES, validation_alias=AliasChoices("num_critiques", "K", "k")
    )
    """K, critiques to sample; the `direct` mode always samples one."""
    aggregator: Literal["mean", "vote", "weighted"] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _strip_tokens(cls, fields: Any) -> Any:
        """Remove special tokens and image placeholders from question, messages and reference."""
        if not isinstance(fields, Mapping):
            return fields
        fields = dict(fields)
        has_image = bool(fields.get("image") or fields.get("images"))
        mentioned = False
        for name in ("question", "reference"):
            if isinstance(text := fields.get(name), str):
                mentioned = mentioned or (name == "question" and mentions_image(text))
                fields[name] = strip_special_tokens(text)
        if isinstance(fields.get("messages"), list):
            try:
                turns = to_openai_messages(fields["messages"])
            except InputError:
                # Reported for this item alone, when it is scored.
                return fields
            fields["messages"], in_messages = strip_tokens(turns)
            mentioned = mentioned or in_messages
            has_image = has_image or bool(image_urls(turns))
        if mentioned and not has_image:
            fields["image_expected"] = True
        return fields

    @model_validator(mode="after")
    def _check_exclusive_fields(self) -> Self:
        if (self.question is None) == (self.messages is None):
            raise ValueError("give exactly one of `question` and `messages`")
        if self.image is not None and self.images:
            raise ValueError("give `image` or `images`, not both")
        return self


class InvalidItem(_Strict):
    """An item that is no valid `ScoreItem`. It gets a reply of its own, and does not affect the others."""

    status: Status
    field: str
    """Path of the first invalid field, "" for the item as a whole."""
    problem: str

    @property
    def detail(self) -> str:
        """Field and problem in words."""
        return f"{self.field}: {self.problem}" if self.field else self.problem


def validate_item(fields: Any) -> ScoreItem | InvalidItem:
    """Validate the fields of an item. Nothing is raised."""
    try:
        return ScoreItem.model_validate(fields)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    too_large = all(e["type"] in ("string_too_long", "too_long") for e in errors)
    return InvalidItem(
        status=Status.TOO_LARGE if too_large else Status.BAD_REQUEST,
        # A field that items do not have is named by the client, at any length.
        field=".".join(map(str, errors[0]["loc"]))[:_MAX_FIELD],
        problem=errors[0]["msg"].removeprefix("Value error, "),
    )


def _validate_alone(value: Any, validate: ValidatorFunctionWrapHandler) -> ScoreItem | InvalidItem:
    return value if isinstance(value, InvalidItem) else validate_item(value)


def _accept_any_text(value: Any, validate: ValidatorFunctionWrapHandler) -> str:
    """Accept a text that no item may have, such as one that is too long: only its own item is refused for it."""
    return value if isinstance(value, str) else str(validate(value))


_AnyText = Annotated[str, WrapValidator(_accept_any_text), AfterValidator(strip_special_tokens)]


class ScoreRequest(_Strict):
    """`POST /v1/score`. An item that is invalid has a reply of its own."""

    items: list[Annotated[ScoreItem | SkipJsonSchema[InvalidItem], WrapValidator(_validate_alone)]] = Field(
        max_length=MAX_ITEMS
    )
    deadline_s: float | None = Field(default=None, gt=0, le=3600)
    """Seconds from arrival after which the reply is sent with the critiques finished by then."""


class WireCritique(_Strict):
    """One critique of a reply."""

    text: str
    p_yes: float | None
    """p(Yes) / (p(Yes) + p(No)) at its verdict, in [0, 1]; None if unreadable."""


class WireSentence(_Strict):
    """The reward of one sentence of the response."""

    text: str
    """The sentence as it was judged, perhaps with other whitespace than in the response."""
    reward: float
    """In [0, 1]."""


class Timings(_Strict):
    """Time of an item in the queue, in the engine and in total, in seconds."""

    queued_s: float = 0.0
    engine_s: float = 0.0
    total_s: float = 0.0


class TokenUsage(_Strict):
    """Tokens that an item took."""

    prompt_tokens: int = 0
    """Tokens of the judge's prompts, those of images included. Critiques of one prompt share it."""
    completion_tokens: int = 0
    """Tokens of all critiques, without special ones."""


class ScoreReply(_Strict):
    """The result of one item."""

    reward: float | None
    """In [0, 1]; None unless `status` is `ok`."""
    status: Status
    detail: str = ""
    """Explanation and remedy if there is no reward."""
    critiques: list[WireCritique] = Field(default_factory=list)
    sentences: list[WireSentence] = Field(default_factory=list)
    """Judges with `unit: sentence`: the reward of each sentence, in order; their lowest is `reward`."""
    num_asked: int = 0
    """K, critiques requested. `critiques` has fewer if the deadline passed first."""
    verdict_mass: float = 0.0
    """Mean p(Yes) + p(No) over the critiques; a small mass means that the judge was not answering."""
    model_version: str = ""
    """Version of the weights that judged."""
    usage: TokenUsage = TokenUsage()
    """Tokens of the computation; a cached reply has those of the first one."""
    cached: bool = False
    timings: Timings = Timings()

    @model_validator(mode="after")
    def _check_status(self) -> Self:
        if (self.reward is not None) != (self.status is Status.OK):
            raise ValueError(f"status {self.status.value} with reward {self.reward}")
        return self


class ScoreResponse(_Strict):
    """Reply to `POST /v1/score`: one entry per item, in order."""

    items: list[ScoreReply]


class CompareRequest(_Strict):
    """`POST /v1/compare`: two responses to one question; each replaces the `response` of `item`."""

    item: ScoreItem
    first: _AnyText
    second: _AnyText
    deadline_s: float | None = Field(default=None, gt=0, le=3600)


class CompareResponse(_Strict):
    """The better of two responses."""

    better: Literal["first", "second", "tie"] | None
    """None if either has no reward."""
    margin: float | None
    """reward(first) - reward(second). Of a pairwise judge, whose replies are one per order, this is 2 p_first - 1."""
    first: ScoreReply
    """Reply about the first response; of a pairwise judge, with the first response shown first."""
    second: ScoreReply
    """Reply about the second response; of a pairwise judge, with the second response shown first."""
    p_first: float | None = None
    """Pairwise judges: probability that the first response is better, the mean over both orders; 1/2 is a tie."""
    position_bias: float | None = None
    """Pairwise judges: probability with which the response shown first wins, the mean over both orders, minus 1/2."""
    orders_agree: bool | None = None
    """Pairwise judges: True if both orders prefer the same response. If not, the position decided."""


class RankRequest(_Strict):
    """`POST /v1/rank`: N responses to one question; best-of-N."""

    item: ScoreItem
    responses: list[_AnyText] = Field(min_length=1, max_length=MAX_ITEMS)
    deadline_s: float | None = Field(default=None, gt=0, le=3600)


class RankResponse(_Strict):
    """Responses from best to worst."""

    order: list[int]
    """Indices into `responses`, best first; those without a reward come last, in their order."""
    best: int | None
    """None if no response has a reward."""
    items: list[ScoreReply]
    """One per response, in the request's order."""


class ImageResponse(_Strict):
    """Reply to `POST /v1/images`, whose body is the encoded image."""

    sha256: str


def compare_replies(first: ScoreReply, second: ScoreReply, *, pairwise: bool = False) -> CompareResponse:
    """Compare two replies by their rewards; undecided if either has none.

    Args:
        first: Reply about the first response, or of a pairwise judge to the pair with the first response shown first.
        second: Reply about the second response, or to the pair with the second response shown first.
        pairwise: The replies are those of a pairwise judge.
    """
    if first.reward is None or second.reward is None:
        return CompareResponse(better=None, margin=None, first=first, second=second)
    margin = first.reward - second.reward
    fields: dict[str, Any] = {}
    if pairwise:
        fields = {
            "p_first": combine_orders(first.reward, second.reward),
            "position_bias": (first.reward + second.reward - 1.0) / 2.0,
            "orders_agree": (first.reward > 0.5) is (second.reward < 0.5),
        }
    better = "first" if margin > 0 else "second" if margin < 0 else "tie"
    return CompareResponse.model_validate(
        {"better": better, "margin": margin, "first": first, "second": second, **fields}
    )


def rank_by_comparisons(responses: Sequence[str], orders: Mapping[tuple[int, int], ScoreReply]) -> RankResponse:
    """Rank responses by a tournament of a pairwise judge (see `tournament`): a reward is the mean chance of winning.

    Args:
        responses: The N responses.
        orders: (i, j) -> reply to the pair with response i shown first and j second; each pair in both orders.
    """
    p_first = {(i, j): combine_orders(orders[i, j].reward, orders[j, i].reward) for i, j in orders if i < j}
    items = []
    for index, rate in enumerate(tournament.win_rates(responses, p_first)):
        own = [reply for (i, _), reply in orders.items() if i == index]
        if rate is not None:
            items.append(ScoreReply(reward=rate, status=Status.OK, num_asked=sum(reply.num_asked for reply in own)))
        else:
            missing = next(r for (i, j), r in orders.items() if index in (i, j) and r.reward is None)
            items.append(ScoreReply(reward=None, status=missing.status, detail=missing.detail))
    return rank_replies(items)


def rank_replies(replies: Sequence[ScoreReply]) -> RankResponse:
    """Rank replies from best to worst. Ties keep their order; replies without a reward come last."""
    order = sorted(range(len(replies)), key=lambda i: (replies[i].reward is None, -(replies[i].reward or 0.0)))
    best = order[0] if order and replies[order[0]].reward is not None else None
    return RankResponse(order=order, best=best, items=list(replies))
