"""ms-swift's GRPO (read: 4.6.0): `--external_plugins plugin.py --reward_funcs vlgenrm`, where plugin.py is the one line
`import vlgenrm_ray.adapters.ms_swift`. Do not pass this file itself: ms-swift would put its folder first on the import
path and find our `trl.py` instead of TRL.

Images are the sample's `images`, the question is the conversation before the answer; a column `label` replaces both
(`judge/label.py`), and a column `reference` is the reference.
ms-swift turns None into 0: an item without a reward raises, see `rewards.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client, check_service
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import Label, read_label, reference_text
from vlgenrm_ray.judge.protocol import ScoreInput

NAME = "vlgenrm"


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


def register() -> None:
    """Register the reward function under its name; called at import if ms-swift is installed."""
    table = optional_import("swift.rewards.orm:orms", None)
    if table is not None:
        table[NAME] = JudgeReward


register()
