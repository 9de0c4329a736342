"""The recipe for photographs, on real ones with a real detector and OCR. Needs VLGENRM_REAL_DATA."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.entrypoints import shipped_recipe, train_reward
from vlgenrm_ray.records import Origin, Preference

pytestmark = pytest.mark.skipif("VLGENRM_REAL_DATA" not in os.environ, reason="VLGENRM_REAL_DATA is unset")
NUM_PHOTOS = 40
COCO = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,
handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,
surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,
broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,
mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,
teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
"""COCO's 80 classes, in the order of the label files."""


def write_pairs(root: Path, folder: Path) -> tuple[Path, int]:
    """Write two pairs for each photograph, by its labels: one with the right order, one with the wrong order."""
    rows: list[dict[str, Any]] = []
    for labels in sorted((root / "labels").glob("*.txt")):
        classes = sorted({int(line.split()[0]) for line in labels.read_text().splitlines() if line.strip()})
        image = next((root / "images").glob(f"{labels.stem}.*"), None)
        if not classes or image is None:
            continue
        noun = COCO[classes[0]]
        yes, no = f"Yes, there is a {noun}.", f"No, there is no {noun}."
        question = {"image": str(image), "question": f"Is there a {noun} in the image?"}
        rows.append(question | {"id": f"{labels.stem}-right", "chosen": yes, "rejected": no})
        rows.append(question | {"id": f"{labels.stem}-wrong", "chosen": no, "rejected": yes})
        if len(rows) >= 2 * NUM_PHOTOS:
            break
    sign = folder / "sign.png"
    sign_image = Image.new("RGB", (480, 240), "white")
    ImageDraw.Draw(sign_image).text((70, 70), "STOP", fill="black", font=ImageFont.load_default(110))
    sign_image.save(sign)
    question = {"image": str(sign), "question": "What does the sign say?", "id": "sign"}
    rows.append(question | {"chosen": 'The sign says "STOP".', "rejected": 'The sign says "EXIT".'})
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path, len(rows)


@pytest.mark.usefixtures("ray_local")
def test_pairs_about_photographs_are_kept_or_turned_by_what_the_experts_see(tmp_path: Path) -> None:
    real = Path(os.environ["VLGENRM_REAL_DATA"])
    path, num_rows = write_pairs(real / "photos" / "coco128_train", tmp_path)
    (detector,) = sorted((real / "detector").glob("*.onnx"))[:1]
    run = tmp_path / "run"
    settings = [f"pool.path={path}", f"experts.detector.model={detector}"]
    results = train_reward(shipped_recipe("photos"), overrides=settings, run=run, until="preferences")
    assert results["stages"]["pool"]["rows_out"] == num_rows
    preferences = {p.question.id: p for p in StageFolder(run / "preferences").records(Preference)}
    turned = {id: p.chosen.startswith("Yes") for id, p in preferences.items() if id.endswith("-wrong")}
    left = {id: p.chosen.startswith("Yes") for id, p in preferences.items() if id.endswith("-right")}
    # The labels are COCO's. What the detector does not see is unknown, and leaves a pair as its source ordered it.
    assert sum(left.values()) >= 0.95 * NUM_PHOTOS
    assert sum(turned.values()) >= 0.4 * NUM_PHOTOS
    assert preferences["sign"].chosen == 'The sign says "STOP".'
    assert {p.origin for p in preferences.values()} <= {Origin.IMPORTED, Origin.VERIFIED, Origin.REPAIRED}
    page = (run / "report.html").read_text()
    assert 'class="supported"' in page
    assert read_json(run / "summary.json")["until"] == "preferences"
