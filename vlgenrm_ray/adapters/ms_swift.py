"""ms-swift's GRPO (run: 4.6.0): `--external_plugins plugin.py`, where plugin.py is the one line
`import vlgenrm_ray.adapters.ms_swift`. Do not pass this file itself: ms-swift would put its folder first on the import
path and find our `trl.py` instead of TRL.

Served judge: `--reward_funcs vlgenrm`. Judge in the trainer's process: `--reward_model JUDGE_FOLDER` with
`--reward_model_plugin vlgenrm` (critiques) or `vlgenrm_direct` (one verdict, faster). It needs no service, but Python
3.11, and ms-swift generates with transformers, many times slower than vLLM.

Images are the sample's `images`, the question is the conversation before the answer; a column `label` replaces both
(`judge/label.py`), and a column `reference` is the reference.
ms-swift turns None into 0: an item without a reward raises, see `rewards.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlgenrm_ray.adapters.clients import async_judge_client, check_service
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.data.images import ImageError, ImageLimits, decode
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.conversation import message_text
from vlgenrm_ray.judge.images import ImageUploads
from vlgenrm_ray.judge.label import Label, read_label, reference_text
from vlgenrm_ray.judge.protocol import ScoreInput, build_score_item, image_references
from vlgenrm_ray.judge.wire import ScoreReply, Status, status_of_reason

if TYPE_CHECKING:
    from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
    from vlgenrm_ray.judge.judge import JudgeInput
    from vlgenrm_ray.records import Judgement

NAME = "vlgenrm"
_NUM_CANDIDATES = 20
"""Most probable tokens per position in which the verdict's words are looked up."""


class JudgeReward(optional_import("swift.rewards.orm:AsyncORM")):  # type: ignore[misc]
    """Asynchronous reward function of ms-swift."""

    def __init__(self, args: Any = None, **_: Any) -> None:
        self.args = args
        check_service()

    async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """Return one reward per completion."""
        inputs = [_score_input(completion, columns, row) for row, completion in enumerate(completions)]
        return required_rewards(await async_judge_client().score(inputs))


def _score_input(completion: str, columns: Mapping[str, Any], row: int) -> ScoreInput:
    def column(name: str) -> Any:
        values = columns.get(name)
        return None if values is None else values[row]

    messages = list(column("messages") or ())
    if messages and messages[-1]["role"] == "assistant":
        # The completion itself, or the data set's answer.
        messages.pop()
    has_label = columns.get("label") is not None
    label = read_label(column("label")) if has_label else Label(reference=reference_text(column("reference")))
    images = sample_images({name: column(name) for name in ("images", "image")})
    return build_score_input(completion, prompt=messages, images=images, label=label)


class SwiftGenerator:
    """The model of an engine of ms-swift as the `Generator` of a `Judge`. Samples follow the trainer's own seed."""

    def __init__(self, engine: Any) -> None:
        """`engine`: an object with `TransformersEngine.infer` of ms-swift."""
        self._engine = engine

    def generate(
        self, prompts: "Sequence[Prompt]", sampling: "Sampling", seeds: Sequence[int] | None = None
    ) -> "list[list[Sample] | Refusal]":
        """See `Generator.generate`. Every sample is a request of its own."""
        config = optional_import("swift.infer_engine:RequestConfig", dict)(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            logprobs=True,
            top_logprobs=_NUM_CANDIDATES,
        )
        requests = [request for prompt in prompts for request in [_request(prompt)] * sampling.n]
        replies = iter(self._engine.infer(requests, config, use_tqdm=False) if requests else [])
        return [[_sample(next(replies), sampling.tracked_words) for _ in range(sampling.n)] for _ in prompts]


class JudgePlugin:
    """Reward model plugin of ms-swift: the reward model writes critiques, and its verdicts are the reward."""

    mode: ClassVar[str] = "cot"

    def __init__(self, model: Any, template: Any) -> None:
        """`model` and `template` are the reward model and its template, as ms-swift has loaded them."""
        # The judge needs Python 3.11, which the served one does not.
        from vlgenrm_ray.judge.config import JudgeConfig
        from vlgenrm_ray.judge.judge import Judge

        engine = optional_import("swift.infer_engine:TransformersEngine")(model, template=template, max_batch_size=0)
        self._judge = Judge(JudgeConfig.model_validate({"mode": self.mode}), SwiftGenerator(engine))

    def __call__(self, inputs: Sequence[Mapping[str, Any]], **_: Any) -> list[float]:
        """Return the reward of each row, whose last message is the response."""
        replies: dict[int, ScoreReply] = {}
        items: dict[int, JudgeInput] = {}
        for i, row in enumerate(inputs):
            # Columns of one row, as the reward functions get those of a batch.
            score_input = _score_input(message_text(row["messages"][-1]), {name: [row[name]] for name in row}, 0)
            item = _judge_input(str(row.get("request_id") or i), score_input)
            if isinstance(item, ScoreReply):
                replies[i] = item
            else:
                items[i] = item
        judgements = self._judge.score(list(items.values()))
        replies |= {i: _reply(judgement) for i, judgement in zip(items, judgements, strict=True)}
        return required_rewards([replies[i] for i in range(len(inputs))])


class DirectJudgePlugin(JudgePlugin):
    """As `JudgePlugin`, with one verdict and no critique."""

    mode = "direct"


def _judge_input(id: str, score_input: ScoreInput) -> "JudgeInput | ScoreReply":
    """Build the judge's input, or the reply if it has no image or question, or cannot be read."""
    from vlgenrm_ray.judge.judge import JudgeInput

    uploads = ImageUploads()
    item = build_score_item(score_input, uploads)
    if isinstance(item, ScoreReply):
        return item
    turns = [(turn["role"], message_text(turn)) for turn in item.messages or []]
    question = item.question or (
        turns[0][1] if len(turns) == 1 else "\n".join(f"{r.capitalize()}: {t}" for r, t in turns)
    )
    encoded = [uploads.encoded[reference] for reference in image_references(item)]
    if not encoded and not item.allow_blind:
        return ScoreReply(reward=None, status=Status.NO_IMAGE, detail="the row has no images")
    if not question.strip():
        return ScoreReply(reward=None, status=Status.NO_QUESTION, detail="the row has no question")
    if item.reference:
        question = f"{question}\nReference answer: {item.reference}"
    try:
        pixels = tuple(decode(data, ImageLimits()) for data in encoded)
    except ImageError as error:
        return ScoreReply(reward=None, status=status_of_reason(error.reason), detail=error.detail)
    return JudgeInput(id=id, images=pixels, question=question, response=item.response)


def _reply(judgement: "Judgement") -> ScoreReply:
    try:
        status = Status(judgement.status)
    except ValueError:
        status = status_of_reason(DropReason(judgement.status))
    mass = judgement.verdict_mass
    return ScoreReply(reward=judgement.reward, status=status, detail=judgement.detail, verdict_mass=mass)


def _request(prompt: "Prompt") -> dict[str, Any]:
    parts = [*({"type": "image", "image": image} for image in prompt.images), {"type": "text", "text": prompt.text}]
    return {"messages": [{"role": "user", "content": parts}]}


def _sample(reply: Any, tracked_words: Sequence[str]) -> "Sample":
    """Read a reply in OpenAI's form, with the most probable tokens of each position."""
    from vlgenrm_ray.engines.contracts import Sample, Token

    choice = reply.choices[0]
    tokens: list[Token] = []
    for entry in (choice.logprobs or {}).get("content", ()):
        # The end of turn is no part of the text.
        if sum(len(token.text) for token in tokens) >= len(choice.message.content):
            break
        probabilities = dict.fromkeys(tracked_words, 0.0)
        for candidate in {c["token"]: c for c in entry["top_logprobs"]}.values():
            for word in tracked_words:
                if candidate["token"].strip().casefold() == word.casefold():
                    probabilities[word] += math.exp(candidate["logprob"])
        tokens.append(Token(id=-1, text=entry["token"], tracked_probabilities=probabilities))
    return Sample(text=choice.message.content, tokens=tuple(tokens), finish=choice.finish_reason or "stop")


def register() -> None:
    """Register reward function and plugins by their names; called at import if ms-swift is installed."""
    functions = optional_import("swift.rewards.orm:orms", None)
    if functions is not None:
        functions[NAME] = JudgeReward
        plugins = optional_import("swift.rewards.rm_plugin:rm_plugins")
        plugins |= {NAME: JudgePlugin, f"{NAME}_direct": DirectJudgePlugin}


register()
