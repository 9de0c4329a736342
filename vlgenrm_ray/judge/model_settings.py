"""Settings that a judge's model folder states about itself, in `judge.json`.

    {"kind": "discriminative", "reward_temperature": 1.8, "reward_bias": -0.2, ...}

A discriminative judge scores with the prompt that it was trained with, `judge_prompt.txt` beside it. A calibration adds
temperature and bias of the rewards. Whoever loads the folder, for evaluation, benchmarks, service or rewards, applies
them.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vlgenrm_ray.data.files import write_text
from vlgenrm_ray.engines.model_folder import JUDGE_PROMPT, JUDGE_SETTINGS, JudgeKind
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.settings import Settings


class JudgeModelSettings(Settings):
    """Content of `judge.json`."""

    kind: JudgeKind = "pointwise"
    """Kind of judge that the model was trained to be."""
    reward_temperature: float = Field(default=1.0, gt=0.0)
    """Temperature of the calibrated rewards; 1 without a calibration."""
    reward_bias: float = 0.0
    """Bias of the calibrated rewards, in log-odds."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """Data and result of the calibration, for readers."""

    def as_text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def read_settings(folder: Path) -> JudgeModelSettings:
    """Read the settings of a model folder; the defaults if it states none. Raises InputError for a damaged file."""
    path = folder / JUDGE_SETTINGS
    try:
        return JudgeModelSettings.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return JudgeModelSettings()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path}: cannot be read as the settings of a judge ({error}); calibrate or export the model again"
        ) from error


def write_settings(settings: JudgeModelSettings, folder: Path) -> None:
    """Write the settings into a model folder."""
    write_text(folder / JUDGE_SETTINGS, settings.as_text())


def with_model_settings(config: JudgeConfig, folder: Path) -> JudgeConfig:
    """Return the judge's settings with those that its model folder states: kind, prompt of the head, and calibration.

    A kind or a calibration that `config` states itself takes precedence.

    Raises:
        InputError: The folder's settings cannot be read.
        ConfigError: The kind does not fit the settings.
    """
    settings, config = read_settings(folder), config.of_model(folder)
    changes: dict[str, Any] = {}
    if config.is_discriminative and settings.kind == config.kind:
        changes["direct_prompt"] = str(folder / JUDGE_PROMPT)
    if config.reward_temperature == 1.0 and config.reward_bias == 0.0:
        changes |= {"reward_temperature": settings.reward_temperature, "reward_bias": settings.reward_bias}
    return config.model_copy(update=changes)
