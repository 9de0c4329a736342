"""Training examples of the embedded world, true by construction."""

from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Example, ExampleKind, ImageRef, Preference
from vlgenrm_ray.shapes.basic import draw_item
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.reference_critiques import reference_critique

SEED = 11


def draw_examples(images: Path, num_pairs: int) -> list[Example]:
    """Draw five examples per pair: critique and direct verdict of both sides, and the chosen answer."""
    cot, direct = prompts.load("shapes_cot"), prompts.load("shapes_direct")
    examples: list[Example] = []
    for index, pair in enumerate(gold_pairs(images, seed=SEED, split="train", count=num_pairs)):
        scene, _ = draw_item(SEED, "train", index)
        image, question = pair.question.image, pair.question.text
        for label, response in (("yes", pair.chosen), ("no", pair.rejected)):
            prompt = prompts.render(cot, question=question, response=response)
            critique = reference_critique(scene, question, response)
            examples.append(_example(pair.id, image, ExampleKind.CRITIQUE, label, prompt, critique))
            prompt = prompts.render(direct, question=question, response=response)
            examples.append(_example(pair.id, image, ExampleKind.DIRECT, label, prompt, label.capitalize()))
        examples.append(_example(pair.id, image, ExampleKind.ANSWER, "", question, pair.chosen))
    return examples


def _example(pair: str, image: ImageRef, kind: ExampleKind, label: str, prompt: str, completion: str) -> Example:
    return Example(
        id=f"{pair}/{label or 'best'}/{kind.value}",
        image=image,
        prompt=prompt,
        completion=completion,
        kind=kind,
        label=label,
        weight=1.0,
        round=1,
    )


def write_stage_folder(path: Path, records: Sequence[Example] | Sequence[Preference]) -> StageFolder:
    """Write the records as a finished stage."""
    folder = StageFolder(path)
    folder.begin("test", {})
    write_units(folder, type(records[0]), [Unit(id=f"u/{record.id}", records=(record,)) for record in records])
    folder.finish(seconds=0.0)
    return folder
