"""The committed VLMs load in transformers and in vLLM, see, and answer."""

from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sampling
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.judge.prompts import load
from vlgenrm_ray.judge.prompts import render as fill
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.basic import draw_item
from vlgenrm_ray.shapes.building.vlm_evaluation import evaluate_judge, evaluate_policy, policy_outcomes
from vlgenrm_ray.shapes.language import cot_prompt, direct_prompt
from vlgenrm_ray.shapes.render import render
from vlgenrm_ray.shapes.world import BASIC, HARD, load_world

VLM = pack_path("vlm")
HARD_VLM = pack_path("hard/vlm")


def test_the_judge_uses_the_prompts_of_the_training() -> None:
    for name, training_prompt in (("shapes_cot", cot_prompt), ("shapes_direct", direct_prompt)):
        question, response = "Is there a red circle?", "Yes, there is a red circle."
        assert fill(load(name), question, response) == training_prompt(question, response)


def test_pack_is_small() -> None:
    assert sum(f.stat().st_size for f in VLM.parent.rglob("*") if f.is_file()) < 15 * 1024 * 1024


@pytest.mark.parametrize("vlm", [VLM, HARD_VLM], ids=["basic", "hard"])
@pytest.mark.parametrize("side", [48, 96, 240, 333, 1000])
def test_square_images_become_nine_tokens(side: int, vlm: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(vlm)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    batch = processor(text=[text], images=[Image.new("RGB", (side, side))], return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 9


@pytest.mark.parametrize(("world", "vlm"), [(BASIC, VLM), (HARD, HARD_VLM)], ids=["basic", "hard"])
def test_every_word_of_the_world_is_one_token(world: str, vlm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vlm)
    draw = load_world(world).draw_item
    words = {word.strip(".,?") for i in range(400) for word in draw(0, "train", i)[1].reference.split()}
    # A word of a sign stands between quotation marks.
    texts = {word.strip('"') if word.startswith('"') else f" {word.lower()}" for word in words}
    assert {text for text in texts if len(tokenizer.encode(text)) != 1} == set()


def test_answers_in_transformers_depend_on_the_image() -> None:
    """The right answer to a question about one scene is likelier with that scene's picture than with another's."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(VLM)
    model = AutoModelForImageTextToText.from_pretrained(VLM, dtype=torch.float32)
    scenes = [draw_item(2, "heldout", i) for i in range(0, 100, 5)]
    scene_images = [render(scene) for scene, _ in scenes]
    texts = []
    for _, item in scenes:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.text}]}
        texts.append(processor.apply_chat_template([turn], add_generation_prompt=True) + item.reference)
    losses = []
    for shown_images in (scene_images, scene_images[1:] + scene_images[:1]):
        batch = processor(text=texts, images=shown_images, padding=True, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            losses.append(float(model(**batch, labels=batch["input_ids"]).loss))
    assert losses[0] < losses[1] - 0.05


def test_vllm_answers_and_judges(tmp_path: Path) -> None:
    """As the model card has it: answers often but not always true, critiques readable, judging above chance at most."""
    generator = VllmGenerator(VllmConfig(model=str(VLM), max_model_len=512))
    right = [answer.truth[answer.samples[0]] for answer in evaluate_policy(generator, tmp_path, seed=3, count=100)]
    assert 0.3 <= sum(right) / len(right) <= 0.85
    judge = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), generator)
    judgements = [
        j for _, result in evaluate_judge(judge, tmp_path, seed=3, count=25) for j in (result.chosen, result.rejected)
    ]
    assert sum(j.status == "ok" for j in judgements) >= 0.9 * len(judgements)
    assert all(0.0 <= j.reward <= 1.0 for j in judgements if j.reward is not None)
    (outcome,) = generator.generate(
        [Prompt(images=(render(draw_item(2, "test", 0)[0]),), text="Hello?")], Sampling(max_tokens=8)
    )
    assert not isinstance(outcome, Refusal), "text outside the world's language is still text"
    generator.close()


def test_the_hard_worlds_vlm_sees_the_truth_and_answers_with_the_prior(tmp_path: Path) -> None:
    """As its card has it: greedy answers follow the prior in most conflicts; samples find the truth all the same."""
    generator = VllmGenerator(VllmConfig(model=str(HARD_VLM), max_model_len=512))
    items: dict[str, Any] = {"seed": 3, "world": HARD, "split": "validation"}
    outcomes = policy_outcomes(evaluate_policy(generator, tmp_path, count=160, num_samples=8, **items))
    share = {name: sum(value for _, value in values) / len(values) for name, values in outcomes.items()}
    assert 0.35 <= share["greedy"] <= 0.7
    assert share["prior_share"] >= 0.4
    assert share["any"] >= share["greedy"] + 0.15
    judge = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), generator)
    judged = evaluate_judge(judge, tmp_path, count=24, **items)
    judgements = [j for _, result in judged for j in (result.chosen, result.rejected)]
    assert sum(j.status == "ok" for j in judgements) >= 0.9 * len(judgements)
    generator.close()
