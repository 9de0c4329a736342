"""The pool without Ray: parsing rows, finding and splitting files, resolving rows to questions."""

import base64
import importlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from source_rows import parse_row, png

from vlgenrm_ray import plugins
from vlgenrm_ray.curation import pool
from vlgenrm_ray.curation.pool import PoolConfig, is_within, resolve_row
from vlgenrm_ray.curation.sources import SOURCES, open_source
from vlgenrm_ray.curation.sources.containers.json_lines import LineRange
from vlgenrm_ray.curation.sources.files import find_files
from vlgenrm_ray.curation.sources.rows import Columns, SourceRow, hash_id
from vlgenrm_ray.curation.sources.schema import RowReader
from vlgenrm_ray.curation.sources.stream import PieceReader, count_repeats, number_id
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import units_from_table
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.records import ImageRef, Question

ROW = {"id": "q1", "image": "a.png", "question": "What is it?"}


def parse(row: object, **columns: str) -> SourceRow:
    return parse_row(row, columns=Columns(**columns))


def row_of(*images: SourceImage) -> SourceRow:
    return SourceRow(id="d:9", question_id="q", images=images, text="Q?")


def only_uri(row: SourceRow) -> str | None:
    (image,) = row.images
    return image.uri


def test_a_row_with_the_usual_columns_is_parsed() -> None:
    parsed = parse(ROW | {"reference": "A cat.", "chosen": "A cat.", "rejected": "A dog."})
    assert (parsed.question_id, parsed.text, only_uri(parsed)) == ("q1", "What is it?", "/data/a.png")
    assert (parsed.reference, parsed.chosen, parsed.rejected, parsed.problem) == ("A cat.", "A cat.", "A dog.", "")


@pytest.mark.parametrize("image", ["/abs/a.png", "s3://bucket/a.png", "file:///x/a.png"])
def test_absolute_addresses_are_unchanged(image: str) -> None:
    assert only_uri(parse(ROW | {"image": image})) == image


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
def test_image_bytes_are_read_in_every_usual_form(image: object) -> None:
    parsed = parse(ROW | {"image": image})
    assert parsed.images == (SourceImage(data=png()),)


def test_a_long_path_that_could_be_base64_is_a_path() -> None:
    path = "images/" + "a" * 80
    assert only_uri(parse(ROW | {"image": path})) == f"/data/{path}"


def test_a_hugging_face_image_may_have_only_a_path() -> None:
    assert only_uri(parse(ROW | {"image": {"bytes": None, "path": "b.png"}})) == "/data/b.png"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1, 2], "object with named columns"),
        ({"question": "Q?"}, "no image"),
        ({"image": "a.png"}, "no question"),
        (ROW | {"question": 7}, "question must be a text or a list of turns, not int 7"),
        (ROW | {"question": " <image> "}, "no question"),
        (ROW | {"image": 7}, "image must be a path"),
        (ROW | {"image": []}, "no image"),
        (ROW | {"question": "<image><image> What?"}, "2 <image> in the text for 1 images"),
        (ROW | {"video": "a.mp4", "image": None}, "video: only still images are supported"),
        (ROW | {"image": "data:image/png;base64,???"}, "not base64"),
        (ROW | {"id": 1.5}, "id must be a string or an integer"),
        (ROW | {"chosen": "A cat."}, "chosen alone"),
        (ROW | {"rejected": "A cat."}, "rejected alone"),
    ],
)
def test_a_malformed_row_has_a_problem(row: object, says: str) -> None:
    assert says in parse(row).problem


def test_column_names_can_be_configured() -> None:
    parsed = parse({"pic": "a.png", "ask": "Q?", "no": 7}, image="pic", question="ask", id="no")
    assert (parsed.question_id, parsed.text, only_uri(parsed)) == ("7", "Q?", "/data/a.png")


def test_ids_derived_from_content_do_not_depend_on_the_location_of_the_data() -> None:
    row = {"image": "a.png", "question": "Q?"}
    here = parse_row(row, id="x:1", folder="/here")
    there = parse_row(row, id="y:9", folder="/there")
    other = parse_row(row | {"question": "P?"}, id="x:2", folder="/here")
    assert here.question_id == there.question_id != other.question_id


def test_chat_turns_become_texts() -> None:
    sharegpt = parse(
        {
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog."},
            "images": ["a.png"],
        }
    )
    trl = parse(
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
    assert parse({"image": "a.png", "prompt": turns}).text == "User: Hello\nUser: What is it?"


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
def test_any_row_is_usable_or_has_a_problem(row: dict[str, object]) -> None:
    parsed = parse(row)
    usable = bool(parsed.question_id and parsed.text and parsed.images)
    assert usable != bool(parsed.problem)


@given(st.lists(st.sampled_from("abcdef")))
def test_repeated_ids_are_counted_in_their_order(names: list[str]) -> None:
    expected = {i: names[: i + 1].count(n) for i, n in enumerate(names) if names[: i + 1].count(n) > 1}
    assert count_repeats(map(hash_id, names)) == expected


@given(st.lists(st.sampled_from(["q", "q#2", "q#3", "q#2+", "q#2#2"]), max_size=12))
def test_numbered_ids_are_unique_also_among_ids_of_that_form(ids: list[str]) -> None:
    repeats = count_repeats(map(hash_id, ids))
    taken = frozenset(id for id in ids if "#" in id)
    unique = [number_id(id, repeats[i], taken) if i in repeats else id for i, id in enumerate(ids)]
    assert len(set(unique)) == len(unique)


@given(st.lists(st.text(st.sampled_from("ab "), max_size=9)), st.integers(1, 12), st.booleans())
def test_line_ranges_contain_each_line_once(lines: list[str], piece: int, final_newline: bool) -> None:
    data = "\n".join(lines).encode() + (b"\n" if final_newline else b"")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(data)
        (file,) = find_files(str(path), (".jsonl",))
        starts = range(0, len(data), piece)
        parsed = [line for s in starts for line in LineRange(file=file, start=s, end=min(s + piece, len(data)))]
    assert b"".join(parsed) == data
    assert all(line.count(b"\n") <= 1 for line in parsed)


def test_image_bytes_are_stored_once(tmp_path: Path) -> None:
    config = PoolConfig(source="jsonl", path="data/mine.jsonl")
    one = resolve_row(parse(ROW | {"image": png()}), config, tmp_path / "images")
    resolve_row(parse(ROW | {"id": "q2", "image": png()}), config, tmp_path / "images")
    (question,) = one.records
    assert [p.name for p in (tmp_path / "images").iterdir()] == [f"{question.image.sha256}.png"]
    assert Path(question.image.uri).read_bytes() == png()
    assert (question.image.width, question.source) == (16, "mine")


@pytest.mark.parametrize(
    ("row", "reason", "id"),
    [
        (SourceRow(id="d:1", problem="no image"), "malformed_row", "d:1"),
        (SourceRow(id="d:2", problem="video", reason="video"), "video", "d:2"),
        (row_of(SourceImage(uri="/nowhere.png")), "image_missing", "q"),
        (row_of(SourceImage(uri="https://x.org/a.png")), "image_missing", "q"),
        (row_of(SourceImage(data=png()[:40])), "image_unreadable", "q"),
        (row_of(SourceImage(data=png(200))), "image_too_large", "q"),
        (row_of(SourceImage(data=png()), SourceImage(uri="/nowhere.png")), "image_missing", "q"),
    ],
)
def test_an_unusable_row_is_dropped_with_its_reason(row: SourceRow, reason: str, id: str, tmp_path: Path) -> None:
    config = PoolConfig.model_validate({"source": "jsonl", "path": "d.jsonl", "images": {"max_pixels": 10_000}})
    unit = resolve_row(row, config, tmp_path)
    assert not unit.records
    ((dropped,),) = (unit.dropped,)
    assert (dropped.stage, dropped.reason, dropped.id, unit.id) == ("pool", reason, id, row.id)
    assert dropped.detail


def test_images_outside_the_root_are_not_opened(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    secret.write_bytes(png())
    (root / "link.png").symlink_to(secret)
    (root / "mine.png").write_bytes(png())
    config = PoolConfig(source="jsonl", path="d.jsonl", image_root=str(root))
    outside = (str(secret), f"{root}/../secret.png", f"{root}/link.png", f"file://{secret}", "s3://b/x.png")
    for image in (*outside, f"file://{root}/%2e%2e/secret.png", f"file://{root}/link%2Epng"):
        row = row_of(SourceImage(uri=image))
        (dropped,) = resolve_row(row, config, tmp_path).dropped
        assert dropped.reason == "image_outside_root", image
    row = row_of(SourceImage(uri=f"{root}/mine.png"))
    assert resolve_row(row, config, tmp_path).records
    assert is_within("s3://bucket/a/b.png", "s3://bucket/a")
    assert not is_within("s3://bucket/a/../b.png", "s3://bucket/a")
    assert not is_within("s3://other/a/b.png", "s3://bucket/a")


def test_a_missing_file_names_field_value_and_remedy() -> None:
    with pytest.raises(InputError, match=r"pool\.path: 'no/such\.jsonl' names no file; give a \.jsonl"):
        find_files("no/such.jsonl", (".jsonl",))


def test_files_of_a_folder_and_of_a_pattern(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(ROW))
    assert [f.name for f in find_files(str(tmp_path), (".jsonl",))] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [f.name for f in find_files(str(tmp_path / "?.jsonl"), (".jsonl",))] == ["a.jsonl", "b.jsonl"]
    assert find_files(str(tmp_path / "a.jsonl"), (".jsonl",))[0].folder == str(tmp_path)


def test_a_file_source_without_a_path_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs pool\.path"):
        PoolConfig(source="parquet")


USER_PACKAGE = """
import csv
import io

from vlgenrm_ray.curation.sources.files import FileFormat


class Csv(FileFormat):
    suffixes = (".csv",)

    def rows(self, file):
        with file.open() as opened:
            text = opened.read().decode()
        yield from csv.DictReader(io.StringIO(text), delimiter=self.options.get("delimiter", ","))


def open_nothing(config, image_store, seed):
    return config.path, image_store.name, seed
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a temporary package with data sources of a user."""
    (tmp_path / "user_sources.py").write_text(USER_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_sources", raising=False)
    return "user_sources"


def test_a_format_of_a_users_package_needs_only_its_rows(package: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("id;image;question\nq1;a.png;What is it?\nq1;b.png;\n")
    csv_format = importlib.import_module(package).Csv({"delimiter": ";"})
    (piece,) = csv_format.split(*find_files(str(tmp_path), csv_format.suffixes))
    reader = PieceReader(csv_format, RowReader(schema="columns", columns=Columns()))
    index = reader.index(piece)
    assert (index.num_lines, index.row_lines) == (2, (0, 1))
    good, bad = reader.read(piece, 1, {}, frozenset())
    assert (good.id, good.question_id, only_uri(good)) == ("d.csv:1", "q1", f"{tmp_path}/a.png")
    assert (bad.id, "no question" in bad.problem) == ("d.csv:2", True)
    assert index.id_hashes[0] == hash_id("q1") != index.id_hashes[1]


def test_a_source_is_named_by_its_import_path(package: str, tmp_path: Path) -> None:
    config = PoolConfig(source=f"{package}:open_nothing", path="x", seed=3)
    assert open_source(config, image_store=tmp_path / "images", seed=9) == ("x", "images", 3)
    with pytest.raises(
        ValidationError, match="'xls' is unknown; choose from arrow, csv, files, json, jsonl, judge_prompts, parquet,"
    ):
        PoolConfig(source="xls")
    with pytest.raises(ConfigError, match=r"pool\.source: 'user_sources:Missing' cannot be imported"):
        open_source(PoolConfig(source=f"{package}:Missing"), image_store=tmp_path, seed=0)


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_every_source_of_the_table_can_be_imported(source: str) -> None:
    opener = plugins.load(SOURCES[source], {}, "source")
    assert callable(opener)


def test_an_image_of_several_rows_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    opened: list[str] = []
    original = images.probe

    def count(uri: str, limits: ImageLimits) -> ImageRef:
        opened.append(uri)
        return original(uri, limits)

    monkeypatch.setattr(images, "probe", count)
    rows = [
        SourceRow(id=f"{i}", question_id=f"q{i}", images=(SourceImage(uri=str(tmp_path / name)),), text="What?")
        for i, name in enumerate(("a.png", "a.png", "lost.png", "a.png"))
    ]
    resolve = pool._ResolveRows(PoolConfig(source="jsonl", path="x"), tmp_path)
    units = units_from_table(Question, resolve(to_table(SourceRow, rows)))
    assert [len(unit.records) for unit in units] == [1, 1, 0, 1]
    assert sorted(Path(uri).name for uri in opened) == ["a.png", "lost.png"]


@pytest.mark.parametrize(("num_rows", "rows"), [(1, 64), (4_096, 64), (10_000, 156), (100_000, 1024)])
def test_large_stages_without_engines_have_larger_blocks(num_rows: int, rows: int) -> None:
    assert flow.light_block_rows(num_rows) == rows
    assert flow.light_block_rows(num_rows, 200) == min(rows, 200)
