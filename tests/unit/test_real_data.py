"""Real rows, as they were found: every file is recognised, or refused with a precise reason.

The folder is named by VLGENRM_REAL_DATA; none of it belongs to this repository.
"""

import os
from pathlib import Path

import pytest
from source_rows import parse_rows

from vlgenrm_ray.curation.inspection import SourceReport, inspect
from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.sources.sample import take_sample
from vlgenrm_ray.errors import InputError

FOLDER = os.environ.get("VLGENRM_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="VLGENRM_REAL_DATA is not set")
ROWS = Path(FOLDER) / "rows"

FILES = {
    "coco_pope_random.json": ("JSON Lines", "pope", 3000, {"image_missing": 3000}, 0),
    "hallusionbench/HallusionBench.json": (
        "JSON array",
        "hallusionbench",
        1129,
        {"image_missing": 951, "malformed_row": 178},
        0,
    ),
    "hallusionbench/HallusionBench_result_sample.json": (
        "JSON array",
        "hallusionbench",
        254,
        {"malformed_row": 254},
        0,
    ),
    "llamafactory/data/mllm_demo.json": ("JSON array", "messages", 6, {}, 0),
    "llamafactory/data/v1_multimodal_demo.jsonl": ("JSON Lines", "messages", 24, {}, 18),
    "lmm_r1/test_message.jsonl": ("JSON Lines", "messages", 2, {"image_missing": 2}, 0),
    "location_error.jsonl": ("JSON Lines", "vlrmbench", 126, {"image_missing": 126}, 0),
    "mdpo_vlfeedback/sample_data.json": ("JSON array", "pairs", 2, {"image_missing": 2}, 0),
    "mm_rlhf_rewardbench_half.jsonl": ("JSON Lines", "mm_rlhf", 86, {"image_missing": 68, "video": 18}, 52),
    "mmhal-bench_answer_template.json": ("JSON array", "mmhal", 96, {"image_missing": 96}, 0),
    "ms_swift/multi_modal_2.jsonl": ("JSON Lines", "ms_swift", 3, {"image_missing": 3}, 0),
    "pope_random_answers.jsonl": ("JSON Lines", "model_answers", 3000, {"malformed_row": 3000}, 0),
    "rlaif_v/examples/detail_test_30_input.jsonl": ("JSON Lines", "rlaif_v", 30, {}, 0),
    "superclevr_test200_counting_problems.jsonl": ("JSON Lines", "labelled", 200, {"image_missing": 200}, 0),
    "vl_rewardbench_quarter.json": ("JSON array", "ranked", 313, {"image_missing": 313}, 2),
}
"""File -> format, schema, rows, drops, repeated ids. Only a few come with their images."""


def report_of(name: str) -> SourceReport:
    (report,) = inspect(PoolConfig(source="files", path=str(ROWS / name)))
    return report


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_recognised(name: str) -> None:
    format, schema, num_rows, dropped, repeated_ids = FILES[name]
    report = report_of(name)
    assert (report.format, report.schema, report.num_rows, report.is_exact) == (format, schema, num_rows, True)
    assert dict(report.dropped) == dropped
    assert report.repeated_ids == repeated_ids
    for label in ("label", "ground_truth", "human_ranking", "gt_answer", "task_gt"):
        if label in report.columns:
            is_used = label not in report.unused_columns
            assert is_used or any(label in note for note in report.notes)


def test_every_real_file_of_rows_is_listed() -> None:
    files = {str(path.relative_to(ROWS)) for path in ROWS.rglob("*.json*")}
    assert files - set(FILES) == {"llamafactory/data/dataset_info.json"}
    with pytest.raises(InputError, match="describes data sets and holds none"):
        report_of("llamafactory/data/dataset_info.json")


@pytest.mark.parametrize("name", [name for name, expected in FILES.items() if expected[1] != "model_answers"])
def test_every_real_row_is_read(name: str) -> None:
    """Only rows without a figure and videos have a problem."""
    sample = take_sample(PoolConfig(source="files", path=str(ROWS / name)), seconds=10)
    questions = [q for row in sample.rows for q in parse_rows(row.value, schema=sample.schema)]
    problems = {q.problem for q in questions if q.problem}
    assert all("no image" in problem or "video" in problem for problem in problems)
    assert all("<image>" not in q.text and "ASSISTANT:" not in q.text for q in questions)


def test_real_questions_with_images_need_the_folder_that_is_found() -> None:
    report = report_of("rlaif_v/examples/detail_test_30_input.jsonl")
    assert report.settings["image_folder"] == str(ROWS / "rlaif_v")
    assert (report.num_usable, report.num_opened) == (30, 30)
    assert report_of("llamafactory/data/v1_multimodal_demo.jsonl").num_multi_image == 8


def test_real_conversations_stay_conversations() -> None:
    example = report_of("llamafactory/data/mllm_demo.json").examples[0]
    assert example.text.splitlines()[0] == "User: (image 1) Who are they?"
    assert example.text.splitlines()[-1] == "User: What are they doing? (image 2)"
    assert len(example.images) == 2
