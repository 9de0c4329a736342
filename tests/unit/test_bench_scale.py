"""The bench of growth: its generated rows pass the real stages, its table states pace and targets."""

import json
from pathlib import Path

import pytest

from vlgenrm_ray import config, pipeline
from vlgenrm_ray.bench import scale
from vlgenrm_ray.bench.scale import StageMeasurement, build_rows, exponent
from vlgenrm_ray.bench.table import format_rows
from vlgenrm_ray.curation.preferences import build_image_pairs
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import ImageRef, Origin, Question
from vlgenrm_ray.reward.examples import JudgeTemplates
from vlgenrm_ray.reward.selection import select_examples


def measurement(stage: str, num_rows: int, seconds: float) -> StageMeasurement:
    return StageMeasurement(
        stage=stage, num_rows=num_rows, seconds=seconds, driver_s=num_rows * 1e-4, driver_gib=0.5, num_shards=2
    )


def test_generated_rows_become_pairs_and_examples(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in scale.write_questions(tmp_path, 70).read_text().splitlines()]
    assert len(rows) == 70
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    row = rows[67]
    image = ImageRef(uri=str(tmp_path / row["image"]), sha256="0", width=32, height=32)
    texts = {"text": row["question"], "chosen": row["chosen"], "rejected": row["rejected"], "kind": row["kind"]}
    question = Question(id=row["id"], image=image, source="scale", **texts)
    recipe = config.load(shipped_recipe("shapes"))
    vocabulary, thresholds = load_vocabulary(recipe.experts.vocabulary), recipe.experts.fitted_thresholds()
    pairs = build_image_pairs(scale._check_question(question), recipe.preferences, vocabulary, thresholds, 0).records
    assert (pairs[0].chosen, pairs[0].rejected, pairs[0].origin) == (row["chosen"], row["rejected"], Origin.IMPORTED)
    templates, checker = JudgeTemplates.load(recipe.judge), pipeline.critique_checker(recipe)
    unit = select_examples(scale._criticise_pair(pairs[0]), pairs[0], recipe.selection, templates, checker)
    assert unit.records, unit.dropped


def test_the_table_states_pace_per_core_growth_and_the_drivers_part() -> None:
    runs = [measurement("pool", 10_000, 1.0), measurement("pool", 100_000, 10.0)]
    assert exponent(runs) == pytest.approx(1.0)
    rows = {row.label: row for row in build_rows(runs, 2)}
    assert rows["pool, 100,000 rows"].measured == 5_000
    assert rows["pool, driver per 10^6 rows"].measured == pytest.approx(100.0)
    assert [label for label, row in rows.items() if row.met is False] == ["pool, driver per 10^6 rows"]
    assert max(map(len, format_rows(rows.values()))) <= 80
    assert list(build_rows([], 2)) == []
