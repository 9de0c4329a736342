"""Responses are brought together by image, wherever they lie. The pure part; the stage's test does it under Ray."""

from pathlib import Path

from factories import image, question, response

from vlgenrm_ray.curation import by_image
from vlgenrm_ray.records import Response, to_table
from vlgenrm_ray.store import StageFolder, Unit, write_units


def told(question_id: str, sha: str, *names: str) -> Unit[Response]:
    asked = question(question_id, image=image(sha256=sha))
    return Unit(id=question_id, records=tuple(response(f"{question_id}/{n}", question=asked) for n in names))


def test_images_are_counted_and_those_in_several_shards_found(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "responses")
    folder.begin("f", {})
    write_units(folder, Response, [told("q0", "a", "r0", "r1"), told("q1", "b", "r0"), told("q2", "a", "r0")])
    write_units(folder, Response, [told("q3", "b", "r0"), told("q4", "c", "r0"), Unit(id="q5", num_tokens=1)])
    assert by_image.index(folder) == (3, ["b"])


def test_an_empty_stage_has_no_images(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "responses")
    folder.begin("f", {})
    assert by_image.index(folder) == (0, [])


def test_rows_of_one_image_become_one_row_in_the_order_of_their_ids() -> None:
    import pyarrow as pa

    units = [told("q2", "b", "r0"), told("q1", "a", "r1", "r0"), told("q0", "b", "r0")]
    records = to_table(Response, [r for unit in units for r in unit.records]).to_struct_array()
    rows = pa.table({"id": pa.array(["b", "a", "a", "b"]), "response": records})
    grouped = by_image.group(rows).to_pylist()
    assert [(row["id"], [r["id"] for r in row["responses"]]) for row in grouped] == [
        ("a", ["q1/r0", "q1/r1"]),
        ("b", ["q0/r0", "q2/r0"]),
    ]
    assert by_image.group(rows.slice(0, 0)).num_rows == 0
