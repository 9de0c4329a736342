"""What goes to an engine replica and what comes back."""

import hashlib
import json
from dataclasses import dataclass

from vlgenrm_ray.judge.conversation import image_urls, message_text, to_openai_messages
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.judge.wire import ScoreItem, ScoreReply, Status
from vlgenrm_ray.serving.images import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One response to judge, with everything decided."""

    images: tuple[Stored, ...]
    """What is shown, in order."""
    question: str
    response: str
    config: JudgeConfig
    deadline_s: float
    """Seconds from now on. Relative, as no two machines have the same clock."""

    def id(self) -> str:
        """Decides the seeds: by content, so K more critiques continue the first K, and a repetition repeats them."""
        hashes = [image.sha256 for image in self.images]
        # One image counts by its own hash, not as a list of one: what it is judged by is the same either way.
        shown = hashes if len(hashes) > 1 else next(iter(hashes), None)
        return _hash([shown, self.question, self.response, self.config.mode])

    def key(self, version: str) -> str:
        """What the result depends on; equal keys have equal results."""
        return _hash([self.id(), self.config.model_dump(mode="json"), version])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an engine replica says to a task."""

    reward: float | None
    status: Status
    version: str
    detail: str = ""
    critiques: tuple[str, ...] = ()
    p_yes: tuple[float | None, ...] = ()
    num_asked: int = 0
    verdict_mass: float = 0.0
    num_tokens: int = 0
    engine_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which weights are to judge. A higher number is later; a replica that is behind loads it first."""

    number: int
    folder: str
    version: str


def question_of(item: ScoreItem) -> tuple[str, list[str]]:
    """What was asked, reference included, and the images shown: the item's own, then the conversation's.

    Raises InputError where the conversation cannot be read.
    """
    shown = [item.image] if item.image is not None else list(item.images)
    if item.messages is None:
        question = item.question or ""
    else:
        turns = to_openai_messages(item.messages)
        shown += image_urls(turns)
        said = [(turn["role"], message_text(turn)) for turn in turns]
        # A lone question needs no label; in a longer conversation the judge must see who said what.
        question = said[0][1] if len(said) == 1 else "\n".join(f"{role.capitalize()}: {text}" for role, text in said)
    if item.reference is not None:
        question = f"{question}\nReference answer: {item.reference}"
    return question, shown


def config_of(item: ScoreItem, served: JudgeConfig) -> JudgeConfig:
    """The server's configuration with what the item asks for instead."""
    asked = {
        "mode": item.mode,
        "num_critiques": item.num_critiques,
        "aggregator": item.aggregator,
        "seed": item.seed,
    }
    config = served.model_copy(update={name: value for name, value in asked.items() if value is not None})
    if config.mode == "direct" or config.temperature == 0.0:
        # One look: without chance, more would say the same.
        config = config.model_copy(update={"num_critiques": 1})
    return config


def failed(status: Status, detail: str) -> ScoreReply:
    """The reply to an item that no engine has seen."""
    return ScoreReply(reward=None, status=status, detail=detail)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
