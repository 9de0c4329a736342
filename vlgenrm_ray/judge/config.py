"""Settings of a judge: its kind, prompts, sampling, aggregation and calibration."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.model_folder import JudgeKind
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.thinking import Thinking
from vlgenrm_ray.judge.verdict import A_OR_B, YES_NO, Aggregator, VerdictWords
from vlgenrm_ray.settings import RemovedSetting, Settings


class JudgeConfig(Settings):
    """Prompts, sampling and aggregation of a judge."""

    removed: ClassVar = {
        "hint_prompt": RemovedSetting(
            "cot_hint", "the prompt with a hint is the one named like judge.prompt with `_hint` after it; rename yours"
        ),
        "min_mass": RemovedSetting(0.1, "set selection.min_mass if training should demand more"),
    }

    kind: JudgeKind | None = None
    """`pointwise`: the judge rewards one response. `pairwise`: it compares two, in both orders. `discriminative`: it
    scores one response without a text, by the log-odds of the verdict. None: as the model's folder states
    (`judge.json`, written with each export); pointwise if it states nothing."""
    mode: Literal["cot", "direct"] = "cot"
    """`cot`: a rationale, then the verdict. `direct`: the verdict alone, deterministic. A discriminative judge has no
    modes."""
    prompt: str = "cot"
    """Prompt of the `cot` mode: a name in `judge/prompts/`, or a path. A pairwise judge takes the one with `_pair`
    after its name: of `cot` `cot_pair`, of `a.txt` `a_pair.txt`."""
    direct_prompt: str = "direct"
    """Prompt of the `direct` mode, and of discriminative judges; `direct_pair` for a pairwise judge."""
    num_critiques: int = Field(default=4, ge=1, le=256)
    """K, critiques per response (or sentence). The `direct` mode always samples one, a discriminative judge none."""
    unit: Literal["response", "sentence"] = "response"
    """Unit that is judged: the whole response, or each sentence by itself; the reward is then the lowest of them."""
    thinking: Thinking = "answer"
    """Part of a thinking policy's response that is judged. `answer`: what follows `</think>` (see `judge/thinking.py`).
    `whole`: the thinking too. `required`: as `answer`, and responses without `</think>` have no answer, for policies
    whose prompt opens the thinking. A response without an answer has the status `empty_text`."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Sampling temperature of critiques."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling: probability mass of the tokens to sample from."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest critique in tokens, verdict included."""
    aggregator: Aggregator = "mean"
    """`mean`: average of p_yes over readable critiques. `vote`: share of "yes" among them. `weighted`: average of p_yes
    weighted by |2 p_yes - 1|."""
    early_stop: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Draw critiques in growing portions (2, 2, 4, 8, ...), and no more once the standard deviation of the mean p_yes
    is at most this (see `verdict.is_settled`): 0.15 stops at 4 sure critiques that agree, 0.2 at 2. `num_critiques` is
    then the most. Saves tokens and adds waiting time. 0: all critiques at once."""
    reward_temperature: float = Field(default=1.0, gt=0.0)
    """Temperature T of the calibration: reward = sigmoid((logit(r) - b) / T). It changes no order of rewards. A model
    folder that was calibrated (`vlgenrm calibrate`) sets T and b where both are at their defaults."""
    reward_bias: float = 0.0
    """Bias b of the calibration, in log-odds: a reward of sigmoid(b) becomes 1/2."""
    seed: int = Field(default=0, ge=0)
    """Seed of all critiques; with the id of an input it decides the critiques of that input."""

    @model_validator(mode="after")
    def _reject_equal_critiques(self) -> Self:
        if self.mode == "cot" and self.temperature == 0.0 and self.num_critiques > 1:
            raise ValueError(
                f"temperature 0 with num_critiques {self.num_critiques}: all critiques would be the same; "
                "set num_critiques to 1, or temperature above 0"
            )
        return self

    @model_validator(mode="after")
    def _reject_pairs_of_sentences(self) -> Self:
        if self.is_pairwise and self.unit == "sentence":
            raise ValueError(
                "unit sentence judges the sentences of one response; for a pairwise judge set unit: response"
            )
        return self

    @property
    def is_pairwise(self) -> bool:
        """True for a judge that compares two responses."""
        return self.kind == "pairwise"

    @property
    def is_discriminative(self) -> bool:
        """True for a judge that scores without a text."""
        return self.kind == "discriminative"

    @property
    def verdict_words(self) -> VerdictWords:
        """Words in which this judge writes its verdict."""
        return A_OR_B if self.is_pairwise else YES_NO

    @property
    def critique_prompt(self) -> str:
        """Prompt for critiques of this kind of judge."""
        return _with_suffix(self.prompt, "_pair") if self.is_pairwise else self.prompt

    @property
    def verdict_prompt(self) -> str:
        """Prompt for verdicts without a rationale of this kind of judge."""
        return _with_suffix(self.direct_prompt, "_pair") if self.is_pairwise else self.direct_prompt

    @property
    def hint_prompt(self) -> str:
        """Prompt that states the right verdict, for hint-and-strip: of `cot` `cot_hint`, of `a.txt` `a_hint.txt`."""
        return _with_suffix(self.critique_prompt, "_hint")

    def prompt_names(self, *, hint: bool = False) -> tuple[str, ...]:
        """Return the names or paths of all prompts that this judge uses. `hint`: with that for hint-and-strip."""
        return (self.critique_prompt, self.verdict_prompt, *((self.hint_prompt,) if hint else ()))

    def with_kind(self, kind: JudgeKind) -> Self:
        """Return these settings for a kind of judge. Raises ConfigError if the kind does not fit them."""
        try:
            return type(self).model_validate(self.model_dump() | {"kind": kind})
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"judge.kind {kind}: {reason}") from error

    def of_model(self, folder: Path) -> Self:
        """Return these settings with the kind of judge that the model in a folder is, unless they state one.

        Raises:
            InputError: The folder's `judge.json` cannot be read.
            ConfigError: The kind does not fit the settings.
        """
        return self if self.kind is not None else self.with_kind(model_folder.judge_kind(folder) or "pointwise")

    def of_pointwise_model(self, folder: Path) -> Self:
        """Return these settings for a model that must reward single responses.

        Raises:
            InputError: The folder's `judge.json` cannot be read.
            ConfigError: The model is a pairwise judge, or the settings say so.
        """
        judge = self.of_model(folder)
        if judge.is_pairwise:
            raise ConfigError(
                f"{folder} is a pairwise judge, which compares two responses and rewards none by itself; name a "
                "pointwise judge, or serve this one and POST /v1/compare"
            )
        return judge


def _with_suffix(prompt: str, suffix: str) -> str:
    """Return the name or path of the variant of a prompt: of `cot` `cot<suffix>`, of `a.txt` `a<suffix>.txt`."""
    path = Path(prompt)
    return str(path.with_name(f"{path.stem}{suffix}{path.suffix}"))
