"""Rewards of an exported model folder in other engines, at the verdict position of training examples."""

from pathlib import Path

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.records import Example


def prefix(example: Example) -> str:
    """Return the completion up to its verdict."""
    return example.completion.removesuffix("Yes").removesuffix("No").rstrip()


def rewards_in_transformers(folder: Path, examples: list[Example]) -> list[float]:
    """Compute rewards with transformers alone: the processor's tokens and pixels, and a plain forward pass."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    words = processor.tokenizer.get_vocab()
    token_ids = {w: [i for t, i in words.items() if t.strip("Ġ ").casefold() == w] for w in ("yes", "no")}
    rewards = []
    for example in examples:
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        image = images.read(example.image, ImageLimits())
        inputs = processor(text=[text + prefix(example)], images=[image], return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, -1].softmax(-1)
        yes, no = (float(probabilities[token_ids[w]].sum()) for w in ("yes", "no"))
        rewards.append(yes / (yes + no))
    return rewards


def rewards_in_vllm(folder: Path, examples: list[Example]) -> list[float]:
    """Compute rewards with vLLM."""
    from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sampling
    from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator

    generator = VllmGenerator(VllmConfig(model=str(folder), dtype="float32", max_model_len=256, kv_cache_gib=0.25))
    prompts = [Prompt(images=(images.read(e.image, ImageLimits()),), text=e.prompt, prefix=prefix(e)) for e in examples]
    answers = generator.generate(prompts, Sampling(temperature=0.0, max_tokens=1, tracked_words=("Yes", "No")))
    generator.close()
    rewards = []
    for answer in answers:
        assert not isinstance(answer, Refusal), answer
        probabilities = answer[0].tokens[0].tracked_probabilities
        rewards.append(probabilities["Yes"] / (probabilities["Yes"] + probabilities["No"]))
    return rewards
