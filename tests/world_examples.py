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
    made: list[Example] = []
    for index, pair in enumerate(gold_pairs(images, seed=SEED, split="train", count=pairs)):
        scene, _ = draw_item(SEED, "train", index)
        question = pair.question.text
        for label, response in (("yes", pair.chosen), ("no", pair.rejected)):
            asked = prompts.render(cot, question=question, response=response)
            said = reference_critique(scene, question, response)
            made.append(_example(pair.id, pair.question.image, ExampleKind.CRITIQUE, label, asked, said))
            asked = prompts.render(direct, question=question, response=response)
            made.append(_example(pair.id, pair.question.image, ExampleKind.DIRECT, label, asked, label.capitalize()))
        made.append(_example(pair.id, pair.question.image, ExampleKind.ANSWER, "", question, pair.chosen))
    return made


def _example(pair: str, image: object, kind: ExampleKind, label: str, asked: str, said: str) -> Example:
    return Example(
        id=f"{pair}/{label or 'best'}/{kind.value}",
        image=image,  # type: ignore[arg-type]
        prompt=asked,
        completion=said,
        kind=kind,
        label=label,
        weight=1.0,
        round=1,
    )


def stage_folder(path: Path, made: list[Example]) -> StageFolder:
    """The examples as a finished stage."""
    folder = StageFolder(path)
    folder.begin("test", {})
    write_units(folder, Example, [Unit(id=f"u/{e.id}", records=(e,)) for e in made])
    folder.finish(seconds=0.0)
    return folder
