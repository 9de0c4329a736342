"""TRL's real GRPOTrainer on the embedded world's policy, with the adapter as its only reward function."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running_service import USER_SECRET

from vlgenrm_ray.adapters import clients, rewards
from vlgenrm_ray.adapters.trl import vlgenrm_reward, vlgenrm_reward_async
from vlgenrm_ray.bench.items import BenchItem, draw_shapes_items
from vlgenrm_ray.errors import RemoteError
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
from vlgenrm_ray.shapes import pack_path

GROUP = 4
STEPS = 2
# Two responses to a picture are drawn; of each picture the question is wanted once.
ITEMS = draw_shapes_items(4 * STEPS, seed=7)[::2]
ENDLESS = "word " * 5000
"""A reference that no prompt has room for: the judge gives `too_large`."""


@pytest.fixture(autouse=True)
def _fresh(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is named as an operator names it, by the environment."""
    monkeypatch.setenv(clients.URL_VARIABLE, str(http.base_url))
    monkeypatch.setenv(clients.TOKEN_VARIABLE, USER_SECRET)
    rewards.reset_counts()


def train(folder: Path, items: Sequence[BenchItem], reward: Any = vlgenrm_reward, **columns: list[Any]) -> list[Any]:
    """A few steps, two groups of completions each; TRL's own record of every completion."""
    from datasets import Dataset
    from transformers import AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    rows = {
        "prompt": [[{"role": "user", "content": item.question}] for item in items],
        "image": [open_image(item) for item in items],
    }
    trainer = GRPOTrainer(
        model=str(pack_path("vlm")),
        reward_funcs=reward,
        processing_class=AutoProcessor.from_pretrained(pack_path("vlm")),
        train_dataset=Dataset.from_dict(rows | columns),
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            max_steps=len(items) // 2,
            per_device_train_batch_size=2 * GROUP,
            num_generations=GROUP,
            max_completion_length=48,
            learning_rate=1e-4,
            shuffle_dataset=False,
            logging_steps=1,
            log_completions=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    assert trainer.state.global_step == len(items) // 2
    tables = [pq.read_table(path) for path in sorted((folder / "completions").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def open_image(item: BenchItem) -> Image.Image:
    return Image.open(io.BytesIO(item.image)).convert("RGB")


def test_every_completion_has_the_reward_of_its_image(http: httpx.Client, tmp_path: Path) -> None:
    rows = train(tmp_path, ITEMS)
    assert len(rows) == STEPS * 2 * GROUP
    rewards = [row["vlgenrm_reward"] for row in rows]
    assert all(0.0 <= reward <= 1.0 for reward in rewards)
    assert len(set(rewards)) > 1
    # What the trainer was told is what the judge says of this question, this completion and this very picture: the
    # answer comes from the cache, whose key holds all three.
    with RemoteJudge(str(http.base_url), token=USER_SECRET) as judge:
        replies = judge.score([ask(row) for row in rows])
    assert all(reply.cached for reply in replies)
    assert [reply.reward for reply in replies] == pytest.approx(rewards, abs=1e-6)


def ask(row: dict[str, Any]) -> ScoreInput:
    question = text(row["prompt"])
    (item,) = [item for item in ITEMS if item.question == question]
    return ScoreInput(image=open_image(item), question=question, response=text(row["completion"]))


def text(messages: Sequence[dict[str, Any]]) -> str:
    (message,) = messages
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def test_samples_without_a_reward_are_masked_and_not_zero(tmp_path: Path) -> None:
    rows = train(tmp_path, ITEMS[:2], vlgenrm_reward_async, reference=[None, ENDLESS])
    groups = {name: [row for row in rows if text(row["prompt"]) == ITEMS[i].question] for i, name in enumerate("ab")}
    assert [len(group) for group in groups.values()] == [GROUP, GROUP]
    assert all(0.0 <= row["vlgenrm_reward_async"] <= 1.0 for row in groups["a"])
    # NaN in the trainer, nothing in its table.
    assert all(row["vlgenrm_reward_async"] is None for row in groups["b"])
    assert all(row["advantage"] == 0.0 for row in groups["b"])


def test_a_service_that_is_not_there_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(clients.URL_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(clients, "RETRIES", 1)
    monkeypatch.setattr(clients, "PROBE_S", 0.0)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        train(tmp_path, ITEMS[:2])
    assert not list(tmp_path.rglob("*.parquet"))
