"""A judge in an actor of the run, on the real engine: its rewards are those of any other judge."""

import asyncio
import io
from pathlib import Path

import factories
from PIL import Image

from vlgenrm_ray.data.images import ImageLimits, keep
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.rewards.local_judge import LocalJudgeConfig, start_local_judge
from vlgenrm_ray.shapes import pack_path


def test_a_local_judge_scores_rollouts(ray_local: None, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (48, 48), (200, 30, 30)).save(data, "PNG")
    readable = factories.question(image=keep(data.getvalue(), tmp_path, ImageLimits()))
    missing = factories.question(image=factories.image(uri=str(tmp_path / "lost.png")))
    rollouts = [
        factories.rollout(f"{i}", text="Yes.", question=question) for i, question in enumerate((readable, missing))
    ]
    engine = VllmConfig(model=str(pack_path("vlm")), max_model_len=384, kv_cache_gib=0.05, threads=1)
    config = LocalJudgeConfig(
        engine=engine, judge=JudgeConfig(prompt="shapes_cot", num_critiques=8, max_tokens=192), num_cpus=0.5
    )

    async def scenario() -> None:
        reward = start_local_judge(config, ImageLimits())
        await reward.check()
        (one, other), (again, _) = await asyncio.gather(reward.score(rollouts), reward.score(rollouts))
        assert one.status == "ok"
        assert one.reward is not None
        assert 0.0 <= one.reward <= 1.0
        assert one.critique
        assert again == one
        assert (other.reward, other.status) == (None, "image_missing")
        await reward.close()

    asyncio.run(scenario())
