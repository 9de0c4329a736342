"""The pool without Ray: what becomes of a row."""

import base64
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlgenrm_ray.curation.pool import PoolConfig, settle, within
from vlgenrm_ray.curation.sources.candidate import Candidate, name_hash
from vlgenrm_ray.curation.sources.columns import Columns, candidate
from vlgenrm_ray.curation.sources.files import find
from vlgenrm_ray.curation.sources.jsonl import Lines
from vlgenrm_ray.curation.sources.pieces import repeats
from vlgenrm_ray.errors import InputError

ROW = {"id": "q1", "image": "a.png", "question": "What is it?"}


def png(side: int = 16, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def read(row: object, **columns: str) -> Candidate:
    return candidate(row, id="d.jsonl:1", folder="/data", columns=Columns(**columns))


def test_a_plain_row_is_understood() -> None:
    found = read(ROW | {"reference": "A cat.", "chosen": "A cat.", "rejected": "A dog."})
    assert (found.name, found.text, found.image_uri) == ("q1", "What is it?", "/data/a.png")
    assert (found.reference, found.chosen, found.rejected, found.problem) == ("A cat.", "A cat.", "A dog.", "")


@pytest.mark.parametrize("image", ["/abs/a.png", "s3://bucket/a.png", "file:///x/a.png"])
def test_absolute_addresses_stay_as_they_are(image: str) -> None:
    assert read(ROW | {"image": image}).image_uri == image


@pytest.mark.parametrize(
    "image",
    [
        png(),
        {"bytes": png(), "path": "somewhere.png"},
        [png()],
        base64.b64encode(png()).decode(),
        "data:image/png;base64," + base64.b64encode(png()).decode(),
        {"bytes": base64.b64encode(png()).decode(), "path": None},
    ],
    ids=["bytes", "struct", "list", "base64", "data URL", "struct of base64"],
)
def test_bytes_in_every_usual_wrapping(image: object) -> None:
    found = read(ROW | {"image": image})
    assert found.image_bytes == png()
    assert found.image_uri is None


def test_a_long_path_that_could_be_base64_is_a_path() -> None:
    path = "images/" + "a" * 80
    assert read(ROW | {"image": path}).image_uri == f"/data/{path}"


def test_the_struct_of_hugging_face_with_a_path_only() -> None:
    assert read(ROW | {"image": {"bytes": None, "path": "b.png"}}).image_uri == "/data/b.png"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1, 2], "object with named columns"),
        ({"question": "Q?"}, "no image"),
        ({"image": "a.png"}, "no question"),
        (ROW | {"question": 7}, "question must be a text, not int 7"),
        (ROW | {"question": " <image> "}, "no question"),
        (ROW | {"image": 7}, "image must be a path"),
        (ROW | {"image": ["a.png", "b.png"]}, "2 images"),
        (ROW | {"image": "data:image/png;base64,???"}, "not base64"),
        (ROW | {"id": 1.5}, "id must be a string or an integer"),
        (ROW | {"chosen": "A cat."}, "chosen alone"),
        (ROW | {"rejected": "A cat."}, "rejected alone"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(row: object, says: str) -> None:
    assert says in read(row).problem


def test_columns_can_be_named() -> None:
    found = read({"pic": "a.png", "ask": "Q?", "no": 7}, image="pic", question="ask", id="no")
    assert (found.name, found.text, found.image_uri) == ("7", "Q?", "/data/a.png")


def test_ids_derived_from_content_do_not_depend_on_where_the_data_lie() -> None:
    row = {"image": "a.png", "question": "Q?"}
    here = candidate(row, id="x:1", folder="/here", columns=Columns())
    there = candidate(row, id="y:9", folder="/there", columns=Columns())
    other = candidate(row | {"question": "P?"}, id="x:2", folder="/here", columns=Columns())
    assert here.name == there.name != other.name


def test_chat_turns_become_texts() -> None:
    sharegpt = read(
        {
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog."},
            "images": ["a.png"],
        }
    )
    trl = read(
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
            "rejected": [{"role": "assistant", "content": "A dog."}],
            "image": "a.png",
        }
    )
    assert sharegpt == trl
    assert (trl.text, trl.chosen, trl.rejected) == ("What is it?", "A cat.", "A dog.")
    turns = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "What is it?"}]
    assert "2 turns of the user" in read({"image": "a.png", "prompt": turns}).problem


@given(
    st.dictionaries(
        st.sampled_from(["id", "image", "question", "chosen", "rejected", "reference", "kind"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "role", "value"]), inner)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_row_is_a_candidate_or_has_a_problem(row: dict[str, object]) -> None:
    found = read(row)
    usable = bool(found.name and found.text) and (found.image_uri is None) != (found.image_bytes is None)
    assert usable != bool(found.problem)


@given(st.lists(st.sampled_from("abcdef")))
def test_repeats_name_the_first_of_equals(names: list[str]) -> None:
    expected = {i: names.index(n) for i, n in enumerate(names) if names.index(n) < i}
    assert repeats(map(name_hash, names)) == expected


@given(st.lists(st.text(st.sampled_from("ab "), max_size=9)), st.integers(1, 12), st.booleans())
def test_pieces_of_a_file_hold_each_line_once(lines: list[str], piece: int, final_newline: bool) -> None:
    data = "\n".join(lines).encode() + (b"\n" if final_newline else b"")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(data)
        (file,) = find(str(path), (".jsonl",))
        starts = range(0, len(data), piece)
        found = [line for s in starts for line in Lines(file=file, start=s, end=min(s + piece, len(data)))]
    assert b"".join(found) == data
    assert all(line.count(b"\n") <= 1 for line in found)


def test_settle_stores_bytes_once_and_keeps_no_pixels(tmp_path: Path) -> None:
    config = PoolConfig(source="jsonl", path="data/mine.jsonl")
    one = settle(read(ROW | {"image": png()}), config, tmp_path / "images")
    settle(read(ROW | {"id": "q2", "image": png()}), config, tmp_path / "images")
    (question,) = one.records
    assert [p.name for p in (tmp_path / "images").iterdir()] == [f"{question.image.sha256}.png"]
    assert Path(question.image.uri).read_bytes() == png()
    assert (question.image.width, question.source) == (16, "mine")


@pytest.mark.parametrize(
    ("row", "reason", "id"),
    [
        (Candidate(id="d:1", problem="no image"), "malformed_row", "d:1"),
        (Candidate(id="d:2", name="q", first="d:1", image_bytes=png(), text="Q?"), "duplicate_id", "d:2"),
        (Candidate(id="d:3", name="q", image_uri="/nowhere.png", text="Q?"), "image_missing", "q"),
        (Candidate(id="d:4", name="q", image_uri="https://x.org/a.png", text="Q?"), "image_missing", "q"),
        (Candidate(id="d:5", name="q", image_bytes=png()[:40], text="Q?"), "image_unreadable", "q"),
        (Candidate(id="d:6", name="q", image_bytes=png(200), text="Q?"), "image_too_large", "q"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(row: Candidate, reason: str, id: str, tmp_path: Path) -> None:
    config = PoolConfig.model_validate({"source": "jsonl", "path": "d.jsonl", "limits": {"max_pixels": 10_000}})
    unit = settle(row, config, tmp_path)
    assert not unit.records
    ((dropped,),) = (unit.dropped,)
    assert (dropped.stage, dropped.reason, dropped.id, unit.id) == ("pool", reason, id, row.id)
    assert dropped.detail


def test_no_image_outside_the_root(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    secret.write_bytes(png())
    (root / "link.png").symlink_to(secret)
    (root / "mine.png").write_bytes(png())
    config = PoolConfig(source="jsonl", path="d.jsonl", image_root=str(root))
    for image in (str(secret), f"{root}/../secret.png", f"{root}/link.png", f"file://{secret}", "s3://b/x.png"):
        (dropped,) = settle(Candidate(id="d:1", name="q", text="Q?", image_uri=image), config, tmp_path).dropped
        assert dropped.reason == "image_outside_root", image
    assert settle(Candidate(id="d:1", name="q", text="Q?", image_uri=f"{root}/mine.png"), config, tmp_path).records
    assert within("s3://bucket/a/b.png", "s3://bucket/a")
    assert not within("s3://bucket/a/../b.png", "s3://bucket/a")
    assert not within("s3://other/a/b.png", "s3://bucket/a")


def test_a_missing_file_names_field_value_and_remedy() -> None:
    with pytest.raises(InputError, match=r"pool\.path: 'no/such\.jsonl' names no file; give a \.jsonl"):
        find("no/such.jsonl", (".jsonl",))


def test_files_of_a_folder_and_of_a_pattern(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(ROW))
    assert [f.name for f in find(str(tmp_path), (".jsonl",))] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [f.name for f in find(str(tmp_path / "?.jsonl"), (".jsonl",))] == ["a.jsonl", "b.jsonl"]
    assert find(str(tmp_path / "a.jsonl"), (".jsonl",))[0].folder == str(tmp_path)


def test_a_file_source_without_a_path_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs pool\.path"):
        PoolConfig(source="parquet")
