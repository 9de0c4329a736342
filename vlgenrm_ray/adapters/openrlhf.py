"""OpenRLHF (run: 0.11.2): `--train.agent_func_path .../vlgenrm_ray/adapters/openrlhf.py`.

The executor generates as OpenRLHF's own and then asks the judge. Images are the sample's (`--data.image_key`): paths,
base64 or bytes. The question is the last turn of the prompt; `--data.label_key` is a label (`judge/label.py`) or a
plain text, which becomes the reference answer. OpenRLHF's `--reward.remote_url` needs no Python, but sends no image and
takes the token only in the URL (`/get_reward`, `serving/gateways/`).
OpenRLHF cannot mask a sample: an item without a reward raises, see `rewards.py`, and ends the run with its reason. Over
`--reward.remote_url` OpenRLHF logs that reason as INFO and ends with an AttributeError.
"""

from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client, check_service
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import read_label


class AgentExecutor(optional_import("openrlhf.utils.agent:SingleTurnAgentExecutor")):  # type: ignore[misc]
    """Executor of one turn whose reward is that of the judge. OpenRLHF looks for this name."""

    def __init__(self) -> None:
        super().__init__()
        check_service()

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Generate a response and return OpenRLHF's record of it with reward and score."""
        record: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=images
        )
        ((start, end),) = record["action_ranges"]
        # With the special tokens, some of which mark a thinking; the service removes the others.
        response = hf_tokenizer.decode(record["observation_tokens"][start:end], skip_special_tokens=False)
        score_input = build_score_input(
            response, prompt=prompt, images=sample_images({"images": images}), label=read_label(label)
        )
        (reply,) = replies = await async_judge_client().score([score_input])
        (reward,) = required_rewards(replies)
        logs = {"verdict_mass": reply.verdict_mass, "scored": float(reply.reward is not None)}
        return record | {"reward": reward, "scores": reward, "extra_logs": logs}
