"""The pool stage on Ray Data, on files."""

import gzip
import importlib
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_rows import ADDRESSES, TEXTS, special_files
from PIL import Image

from vlgenrm_ray.curation import pool
from vlgenrm_ray.curation.pool import HeldoutConfig, PoolConfig
from vlgenrm_ray.curation.sources.containers.json_lines import JsonLines
from vlgenrm_ray.curation.sources.files import list_files
from vlgenrm_ray.curation.sources.rows import Columns
from vlgenrm_ray.curation.sources.schema import RowReader
from vlgenrm_ray.curation.sources.stream import OpenedSource, PieceReader, read_pieces
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.records import Question

pytestmark = pytest.mark.usefixtures("ray_local")


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16 + index, 16), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def fill(config: PoolConfig, run_folder: Path, max_dropped: float = 0.05) -> tuple[pool.Manifest, StageFolder]:
    target = StageFolder(run_folder / "pool")
    return pool.run(config, target=target, max_dropped=max_dropped), target


def test_json_lines_with_usable_and_unusable_rows(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows: list[str] = [
        json.dumps({"id": "q1", "image": "a.png", "question": "What?", "reference": "Red."}),
        "",
        "{broken",
        json.dumps({"id": "q1", "image": "a.png", "question": "Again?"}),
        json.dumps({"id": "q2", "image": "lost.png", "question": "Where?"}),
        json.dumps({"image": "a.png", "question": "No id?"}),
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(rows))
    manifest, target = fill(PoolConfig(source="jsonl", path=str(data)), run_folder)
    assert (manifest.rows_in, manifest.rows_out) == (5, 3)
    questions = {q.text: (q.id, q.group) for q in target.records(Question)}
    assert {text: questions[text] for text in ("What?", "Again?")} == {"What?": ("q1", "q1"), "Again?": ("q1#2", "q1")}
    assert "No id?" in questions
    assert manifest.metrics["source"] == {
        "format": "JSON Lines",
        "schema": "labelled",
        "unused_columns": [],
        "repeated_ids": 1,
        "first_repeated_id": "d.jsonl:4",
    }
    lost = {d.id: (d.reason, d.detail) for d in target.dropped()}
    assert {id: reason for id, (reason, _) in lost.items()} == {
        "d.jsonl:3": "malformed_row",
        "q2": "image_missing",
    }
    assert "d.jsonl:5" in lost["q2"][1]
    again, _ = fill(PoolConfig(source="jsonl", path=str(data)), run_folder)
    assert again == manifest


def test_hostile_rows_are_dropped_and_the_others_stay(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    images = [*ADDRESSES, *special_files(tmp_path)]
    rows = [json.dumps({"id": f"i{n}", "image": image, "question": "Q?"}) for n, image in enumerate(images)]
    rows += [json.dumps({"id": text, "image": "lost.png", "question": text}) for text in TEXTS]
    rows += ["[" * 200_000, '{"question": ' + "[" * 50_000 + "]" * 50_000 + "}"]
    good = json.dumps({"id": "good", "image": "a.png", "question": "What?"})
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join([*rows, good]))
    manifest, target = fill(PoolConfig(source="jsonl", path=str(data)), run_folder, max_dropped=1.0)
    assert (manifest.rows_in, manifest.rows_out) == (len(rows) + 1, 1)
    assert [q.id for q in target.records(Question)] == ["good"]
    assert all(dropped.detail for dropped in target.dropped())
    assert sum(manifest.dropped.values()) == len(rows)


def test_small_pieces_give_the_same_rows(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"id": i % 37, "image": "a.png", "question": "Q?"}) for i in range(50)))
    (file,) = list_files(str(data))

    def open_in_pieces(num_bytes: int) -> OpenedSource:
        container = JsonLines()
        container.piece_bytes = num_bytes
        reader = PieceReader(container, RowReader(schema="columns", columns=Columns()))
        return read_pieces(reader, container.split(file), {})

    whole, pieces = open_in_pieces(1 << 20), open_in_pieces(100)
    assert (whole.total, pieces.total) == (50, 50)
    rows = sorted(whole.rows.take_all(), key=lambda r: int(r["id"].split(":")[1]))
    assert sorted(pieces.rows.take_all(), key=lambda r: int(r["id"].split(":")[1])) == rows
    assert [r["question_id"] for r in rows[36:39]] == ["36", "0#2", "1#2"]


def test_parquet_as_hugging_face_stores_preferences(tmp_path: Path, run_folder: Path) -> None:
    rows = [
        {
            "image": {"bytes": png(i % 3), "path": f"{i}.png"},
            "question": f"Question {i}?",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "idx": i,
        }
        for i in range(7)
    ]
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]]), tmp_path / "train-0.parquet", row_group_size=3)
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "train-1.parquet")
    manifest, target = fill(PoolConfig(source="parquet", path=str(tmp_path), name="rlaif-v"), run_folder)
    questions = list(target.records(Question))
    assert (manifest.rows_in, len(questions), manifest.dropped) == (9, 9, {})
    assert sum(q.id.endswith("#2") for q in questions) == sum(q.id.endswith("#3") for q in questions) == 1
    assert {(q.chosen, q.source) for q in questions} == {("A cat.", "rlaif-v")}
    assert len(list((target.path / "images").iterdir())) == 3


def test_one_json_array_and_rows_of_several_pairs(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [
        {"id": "x", "query": "Q?", "response": ["A", "B", "C"], "human_ranking": [2, 0, 1], "image": "a.png"},
        {"id": "x", "query": "Q?", "response": ["A", "B"], "human_ranking": [0, 0], "image": "a.png"},
        {"id": "y", "query": "Q?", "response": ["A", "B"], "human_ranking": [0, 1], "image": "a.png"},
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=2))
    manifest, target = fill(PoolConfig(source="jsonl", path=str(tmp_path / "d.json")), run_folder)
    assert {(q.id, q.chosen, q.rejected) for q in target.records(Question)} == {
        ("x-2v1", "B", "A"),
        ("x-3v1", "C", "A"),
        ("x-2v3", "B", "C"),
        ("y", "A", "B"),
    }
    assert (manifest.rows_in, manifest.dropped) == (5, {"tie": 1})
    assert manifest.metrics["source"]["format"] == "JSON array"


def test_questions_of_the_embedded_world(run_folder: Path) -> None:
    manifest, target = fill(PoolConfig(source="shapes", count=70, split="heldout"), run_folder)
    questions = list(target.records(Question))
    assert manifest.rows_out == len({q.id for q in questions}) == 70
    assert all(Path(q.image.uri).is_relative_to(target.path / "images") for q in questions)
    assert {q.kind for q in questions} == {"describe", "existence", "count", "attribute", "spatial"}


def test_labelled_pairs_of_the_embedded_world(run_folder: Path) -> None:
    manifest, target = fill(HeldoutConfig(source="shapes", count=70, split="test"), run_folder)
    assert manifest.rows_out == 70
    for question in target.records(Question):
        assert question.chosen == question.reference != question.rejected


def test_a_format_of_a_users_package(tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    (tmp_path / "user_tsv.py").write_text(
        "from vlgenrm_ray.curation.sources.files import FileFormat\n\n"
        "class Tsv(FileFormat):\n"
        "    suffixes = ('.tsv',)\n\n"
        "    def rows(self, file):\n"
        "        with file.reader() as reader:\n"
        "            for line in reader:\n"
        "                yield dict(zip(('id', 'image', 'question'), line.decode().rstrip().split('\\t')))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # The Ray of the tests started before this package existed: its workers cannot import it.
    ray.cloudpickle.register_pickle_by_value(importlib.import_module("user_tsv"))
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "d.tsv").write_text("q1\ta.png\tWhat?\nq2\ta.png\nq1\ta.png\tAgain?\nq3\tlost.png\tWhere?\n")
    manifest, target = fill(PoolConfig(source="user_tsv:Tsv", path=str(tmp_path)), run_folder)
    assert {q.id: q.text for q in target.records(Question)} == {"q1": "What?", "q1#2": "Again?"}
    assert manifest.dropped == {"image_missing": 1, "malformed_row": 1}


def test_an_empty_pool_is_explained(tmp_path: Path, run_folder: Path) -> None:
    empty, useless = tmp_path / "empty.jsonl", tmp_path / "useless.jsonl"
    empty.write_text("\n")
    useless.write_text('{"id": "q1", "image": "lost.png", "question": "Q?"}\n')
    with pytest.raises(InputError, match=r"pool\.path: .*empty\.jsonl' has no rows; give"):
        fill(PoolConfig(source="jsonl", path=str(empty)), run_folder / "a")
    for _ in range(2):  # finished, but of no use: the same command says so again
        with pytest.raises(StageError, match=r"pool is empty: none of 1 rows .*image_missing 1.*useless\.jsonl:1"):
            fill(PoolConfig(source="jsonl", path=str(useless)), run_folder / "b")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match="no readable Parquet file"):
        fill(PoolConfig(source="parquet", path=str(tmp_path / "cut.parquet")), run_folder / "c")


REAL = os.environ.get("VLGENRM_REAL_DATA", "")


@pytest.mark.skipif(not REAL, reason="VLGENRM_REAL_DATA is not set")
@pytest.mark.parametrize(
    ("file", "folder", "num_questions", "num_images"),
    [
        ("rlaif_v/examples/detail_test_30_input.jsonl", "rlaif_v", 30, 30),
        ("llamafactory/data/v1_multimodal_demo.jsonl", "llamafactory", 24, 32),
        ("llamafactory/data/mllm_demo.json", None, 6, 8),
    ],
)
def test_real_rows_with_their_images(
    file: str, folder: str | None, num_questions: int, num_images: int, run_folder: Path
) -> None:
    rows = Path(REAL) / "rows"
    image_folder = None if folder is None else str(rows / folder)
    config = PoolConfig(source="files", path=str(rows / file), image_folder=image_folder, image_root=str(rows))
    manifest, target = fill(config, run_folder)
    questions = list(target.records(Question))
    assert (manifest.rows_out, manifest.dropped) == (num_questions, {})
    assert len({q.id for q in questions}) == num_questions
    assert sum(len(q.images) for q in questions) == num_images


def test_every_container_gives_the_same_questions(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [{"id": f"q{i}", "image": "a.png", "question": f"Q{i}?", "chosen": "A", "rejected": "B"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(
        "id,image,question,chosen,rejected\n" + "".join(",".join(r.values()) + "\n" for r in rows)
    )
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for row in rows:
            data = json.dumps({name: value for name, value in row.items() if name != "image"}).encode()
            for suffix, content in (("json", data), ("png", png(0))):
                info = tarfile.TarInfo(f"{row['id']}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for suffix in ("jsonl", "json", "json.gz", "parquet", "csv", "arrow", "tar"):
        _, target = fill(PoolConfig(source="files", path=str(tmp_path / f"rows.{suffix}")), run_folder / suffix)
        questions = {(q.id, q.text, q.chosen, q.rejected, q.image.width) for q in target.records(Question)}
        assert questions == {(f"q{i}", f"Q{i}?", "A", "B", 16) for i in range(5)}, suffix


def test_a_stage_stops_where_half_of_the_images_are_missing_and_goes_on_when_they_are_back(
    tmp_path: Path, run_folder: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(64):
        (folder / f"{n}.png").write_bytes(png(n))
    data = tmp_path / "d.jsonl"
    rows = [json.dumps({"id": f"q{n}", "image": f"images/{n}.png", "question": "What?"}) for n in range(64)]
    data.write_text("\n".join(rows))
    away = tmp_path / "away"
    away.mkdir()
    for n in range(32):
        (folder / f"{n}.png").rename(away / f"{n}.png")
    config = PoolConfig(source="jsonl", path=str(data))
    with pytest.raises(StageError, match=r"stage 'pool' stopped: 32 of 64 rows .*image_missing 32.*--set max_dropped="):
        fill(config, run_folder)
    for path in away.iterdir():
        path.rename(folder / path.name)
    manifest, target = fill(config, run_folder)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (64, 64, {})
    assert len(list(target.records(Question))) == 64
