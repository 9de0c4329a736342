"""ms-swift's GRPO: `--external_plugins plugin.py --reward_funcs vlgenrm`, where plugin.py is the one line
`import vlgenrm_ray.adapters.ms_swift`. (Not this file: ms-swift would put its folder before others on the path, and
find our `trl.py` where it wants TRL.)

The images are the sample's own (`images`), the question the conversation before the answer, unless the data set has a
column `label` (`judge/label.py`); a column `reference` is shown to the judge.
ms-swift turns None into 0: so no reward raises, see `failures.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask, peer
from vlgenrm_ray.adapters.connection import async_judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import Label, read
from vlgenrm_ray.judge.protocol import ScoreInput

NAME = "vlgenrm"
_PLACE = "<image>"
"""Where the text shows an image's place."""


class JudgeReward(peer("swift.rewards.orm:AsyncORM")):  # type: ignore[misc]
    """An asynchronous reward function of ms-swift."""

    def __init__(self, args: Any = None, **_: Any) -> None:
        self.args = args

    async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """One reward per completion."""
        asks = [_ask(completion, columns, row) for row, completion in enumerate(completions)]
        return required(await async_judge().score(asks))


def _ask(completion: str, columns: Mapping[str, Any], row: int) -> ScoreInput:
    def column(name: str) -> Any:
        values = columns.get(name)
        return None if values is None else values[row]

    messages = [_without_places(m) for m in column("messages") or ()]
    if messages and messages[-1]["role"] == "assistant":
        # The completion itself, or the data set's answer in its place.
        messages.pop()
    images = column("images") or ()
    label = read(column("label")) if columns.get("label") is not None else Label(reference=column("reference"))
    return ask(
        completion, prompt=messages, images=[images] if isinstance(images, str | Mapping) else images, label=label
    )


def _without_places(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": content.replace(_PLACE, "").strip()} if isinstance(content, str) else message


def register() -> None:
    """Give the reward function its name; done at import where ms-swift is installed."""
    table = peer("swift.rewards.orm:orms", None)
    if table is not None:
        table[NAME] = JudgeReward


register()
