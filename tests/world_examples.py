"""Training examples of the embedded world, true by construction."""

from pathlib import Path

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Example, ExampleKind
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.world import draw_item

SEED = 11


def examples(images: Path, pairs: int) -> list[Example]:
    """Build five examples per pair: critique and direct verdict of both sides, and the chosen answer."""
    cot, direct = prompts.load("shapes_cot"), prompts.load("shapes_direct")
    rows: list[Example] = []
    for index, pair in enumerate(gold_pairs(images, seed=SEED, split="train", count=pairs)):
        scene, _ = draw_item(SEED, "train", index)
        question = pair.question.text
        for label, response in (("yes", pair.chosen), ("no", pair.rejected)):
            prompt = prompts.render(cot, question=question, response=response)
            completion = reference_critique(scene, question, response)
            rows.append(_example(pair.id, pair.question.image, ExampleKind.CRITIQUE, label, prompt, completion))
            prompt = prompts.render(direct, question=question, response=response)
            rows.append(_example(pair.id, pair.question.image, ExampleKind.DIRECT, label, prompt, label.capitalize()))
        rows.append(_example(pair.id, pair.question.image, ExampleKind.ANSWER, "", question, pair.chosen))
    return rows


def _example(pair: str, image: object, kind: ExampleKind, label: str, prompt: str, completion: str) -> Example:
    return Example(
        id=f"{pair}/{label or 'best'}/{kind.value}",
        image=image,  # type: ignore[arg-type]
        prompt=prompt,
        completion=completion,
        kind=kind,
        label=label,
        weight=1.0,
        round=1,
    )


def stage_folder(path: Path, rows: list[Example]) -> StageFolder:
    """The examples as a finished stage."""
    folder = StageFolder(path)
    folder.begin("test", {})
    write_units(folder, Example, [Unit(id=f"u/{e.id}", records=(e,)) for e in rows])
    folder.finish(seconds=0.0)
    return folder
