"""Prompts of a judge as a source, to train the judge as a policy: one question for each side of a run's preferences.

The text of a question is the judge's own prompt about a response of a pair, or about the pair in one order, and its
reference is the right verdict by the preference, hence by the experts; no ground truth is read. The id is
`<preference>/<side>`, by which the reward of critiques (`rewards/critique_reward.py`) looks up the evidence.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.stream import OpenedSource
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table, to_table
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import Preference, Side
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources import SourceConfig

JUDGE_PROMPTS = "judge_prompts"
SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 10
"""One image of this many is held out, with all pairs about it."""


def open_judge_prompts(config: "SourceConfig", image_store: Path, seed: int) -> OpenedSource:
    """Open the judge prompts of the reward-model run in the folder `config.path`, of a split or of all its images.

    Raises:
        InputError: The folder holds no run with finished preferences, or its judge's prompts cannot be read.
    """
    # Tasks run in other working directories than the user's command.
    folder = Path(config.path or "").absolute()
    source = StageFolder(folder / "preferences")
    if source.manifest() is None:
        raise InputError(
            f"pool.path: {folder} holds no finished preferences; name the folder of a reward-model run (`vlgenrm run`)"
        )
    judge = judge_of_run(folder, config.options)
    texts = [prompts.load(name, pairwise=judge.is_pairwise) for name in judge.prompt_names()]
    total = sum(_in_split(sha, config.split) for sha in _image_hashes(source)) * len(Side)
    build = _BuildPrompts(judge, config.split)
    return OpenedSource(
        rows=flow.read_records(source).map_batches(build, **flow.LIGHT),
        total=total,
        data_hash=digest([JUDGE_PROMPTS, source.data_hash(), judge.result_settings(), texts, config.split]),
    )


def judge_of_run(folder: Path, options: dict[str, Any]) -> JudgeConfig:
    """Return the judge of a reward-model run: its recipe's with the settings in `options`, of its best model's kind.

    Raises InputError if the run's recipe cannot be read.
    """
    path = folder / "config.yaml"
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))["judge"]
        judge = JudgeConfig.model_validate(stated | options)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: the judge of the run cannot be read ({error}); give the folder of a run") from error
    return judge.of_model(folder / "best")


def _image_hashes(source: StageFolder) -> Iterator[str]:
    for shard in source.shards():
        for question in source.read_records(shard, columns=["question"]).column("question").to_pylist():
            yield question["image"]["sha256"]


def _in_split(image_sha256: str, split: str | None) -> bool:
    held_out = int.from_bytes(hashlib.sha256(image_sha256.encode()).digest()[:8], "big") % _HELDOUT_SHARE == 0
    return split is None or (split == "heldout") is held_out


@dataclass(frozen=True)
class _BuildPrompts:
    """Ray Data operator: a table of Preference -> a table of SourceRow."""

    config: JudgeConfig
    split: str | None

    def __call__(self, preferences: "pa.Table") -> "pa.Table":
        judge = Judge(self.config, None)
        rows = [
            judge_prompt(judge, preference, side)
            for preference in from_table(Preference, preferences)
            if _in_split(preference.question.image.sha256, self.split)
            for side in Side
        ]
        return to_table(SourceRow, rows)


def judge_prompt(judge: Judge[None], preference: Preference, side: Side) -> SourceRow:
    """Build the prompt about one side of a preference; of a pairwise judge, about the pair with this side first."""
    id = f"{preference.id}/{side.value}"
    item = JudgeInput(
        id=id,
        images=(),
        question=preference.question.text,
        response=preference.response(side),
        other=preference.response(side.other) if judge.config.is_pairwise else "",
    )
    if (refused := judge.refusal(item)) is not None:
        return SourceRow(id=id, question_id=id, problem=refused.detail, reason=refused.reason.value)
    words = judge.config.verdict_words
    return SourceRow(
        id=id,
        question_id=id,
        images=tuple(SourceImage(uri=image.uri) for image in preference.question.images),
        text=judge.prompt(item, ()).text,
        kind=preference.kind,
        reference=words.better if side is Side.CHOSEN else words.worse,
    )
