"""Running cells: each stage once, finished cells never again, failed cells as rows; statistics, tables and page."""

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from vlgenrm_ray import cli
from vlgenrm_ray.ablation import config as ablation_config
from vlgenrm_ray.ablation import diagnosis, run, tables
from vlgenrm_ray.ablation.config import AblationConfig
from vlgenrm_ray.ablation.plan import CellPlan
from vlgenrm_ray.ablation.results import CellResult, PairScores, RoundMeasurement, prior_agreement, summarise, yes_bias
from vlgenrm_ray.ablation.run import CellOutcome
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, write_units
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.entrypoints import RECIPES
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.evaluation import metrics
from vlgenrm_ray.evaluation.pairs import NO_IMAGE
from vlgenrm_ray.records import Checkpoint, Critique, Example, Judgement, PairResult, Preference, Side
from vlgenrm_ray.reward.selection import SelectionConfig
from vlgenrm_ray.reward.training import TrainingResult
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker

NUM_PAIRS, NUM_TEST = 6, 8
FACTORS = {
    "labels": {"experts": {}, "self": {"labels": "self"}},
    "selection": {"mrs": {}, "all": {"overrides": ["selection.strategy=keep_all"]}},
    "mode": {"cot": {}, "direct": {"overrides": ["judge.mode=direct"]}},
}


class FakeStages:
    """Stages that write small records at once, and count how often they are started."""

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter()
        self.broken = ""
        """Start of the address of a stage that fails."""

    def write(self, target: StageFolder, cls: type, units: list[Any], **inputs: str) -> Manifest:
        self.starts[target.path.name] += 1
        if self.broken and target.path.name.startswith(self.broken):
            raise StageError(f"{self.broken} is broken")
        target.begin("fake", inputs)
        write_units(target, cls, units)
        return target.finish(seconds=2.0)

    def prepare(self, *_: Any, target: StageFolder, **__: Any) -> None:
        """Write pairs, or test pairs of which two each are about one image."""
        is_test = target.path.name.startswith("heldout-")
        ids = [f"t{i}" for i in range(NUM_TEST)] if is_test else [f"q{i}" for i in range(NUM_PAIRS)]
        questions = [factories.question(id, image=factories.image(sha256=str(i // 2))) for i, id in enumerate(ids)]
        pairs = [factories.preference(f"{q.id}/p0", question=q) for q in questions]
        self.write(target, Preference, [Unit(id=p.id, records=(p,)) for p in pairs])

    def critiques(self, config: Any, *, source: StageFolder, target: StageFolder, **_: Any) -> None:
        units = []
        for pair in sorted(source.records(Preference), key=lambda p: p.id):
            p_yes = {Side.CHOSEN: 0.9, Side.REJECTED: 0.2}
            records = tuple(
                factories.critique(f"{pair.id}/{s.value}/c0", preference_id=pair.id, side=s, p_yes=p_yes[s])
                for s in Side
            )
            units.append(Unit(id=pair.id, records=records, num_tokens=5))
        self.write(target, Critique, units, preferences=source.data_hash())

    def selection(self, config: Any, *, source: StageFolder, target: StageFolder, **_: Any) -> None:
        units = [
            Unit(id=unit.id, records=tuple(factories.example(f"{c.id}/example") for c in unit.records))
            for unit in source.units(Critique)
        ]
        self.write(target, Example, units)

    def training(self, config: Any, *, base: Path, examples: StageFolder, target: Path, **_: Any) -> TrainingResult:
        folder = StageFolder(target)
        manifest = folder.manifest()
        if manifest is None:
            checkpoint = Checkpoint(uri=str(target / "model"), round=1, parent=str(base), metrics={})
            self.write(folder, Checkpoint, [Unit(id="t", records=(checkpoint,), num_tokens=7)])
            manifest = folder.finish(seconds=3.0, metrics={"steps": config.max_steps})
        return TrainingResult(model=target / "model", manifest=manifest)

    def evaluation(self, config: Any, *, judge: Any, model: Path, source: StageFolder, target: StageFolder) -> None:
        is_trained = model.name == "model"
        units = []
        for index, pair in enumerate(sorted(source.records(Preference), key=lambda p: p.id)):
            right = index % 4 != 0 or (is_trained and index % 8 == 0)
            records = [result(pair.id, pair.id, 0.8 if right else 0.3)]
            if index % 2 == 0:
                records.append(result(f"{pair.id}{NO_IMAGE}", pair.id, 0.8))
            units.append(Unit(id=pair.id, records=tuple(records), num_tokens=20))
        self.write(target, PairResult, units)


def result(
    id: str, preference_id: str, chosen: float, rejected: float = 0.5, texts: tuple[str, ...] = ()
) -> PairResult:
    def judgement(reward: float) -> Judgement:
        critiques = tuple(factories.judge_critique(text, p_yes=reward) for text in texts)
        return Judgement(id=id, reward=reward, status="ok", critiques=critiques)

    return PairResult(
        id=id, preference_id=preference_id, kind="count", chosen=judgement(chosen), rejected=judgement(rejected)
    )


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fakes = FakeStages()
    for module in (run.pool, run.responses, run.experts, run.preferences, run.heldout):
        monkeypatch.setattr(module, "run", fakes.prepare)
    monkeypatch.setattr(run.critiques, "run", fakes.critiques)
    monkeypatch.setattr(run.selection, "run", fakes.selection)
    monkeypatch.setattr("vlgenrm_ray.reward.training.run", fakes.training)
    monkeypatch.setattr("vlgenrm_ray.evaluation.pairs.run", fakes.evaluation)
    monkeypatch.setattr(model_folder, "locate", Path)
    return fakes


def load(folder: Path, **changes: Any) -> AblationConfig:
    values = {
        "recipe": str(RECIPES / "shapes.yaml"),
        "factors": FACTORS,
        "test": {"source": "shapes", "split": "test", "count": NUM_TEST},
        "num_examples": 8,
        "num_steps": 4,
        "truth": "vlgenrm_ray.shapes.world:response_is_true",
    }
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return ablation_config.load(path)


def execute(config: AblationConfig, folder: Path, **options: Any) -> tuple[dict[str, Any], list[CellOutcome]]:
    outcomes: list[CellOutcome] = []
    return run.run(config, folder, on_cell=outcomes.append, **options), outcomes


@pytest.fixture(autouse=True)
def _known_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlgenrm_ray.shapes.world.response_is_true", lambda question, text: text.startswith("Yes"))


def test_every_stage_is_run_once_and_a_finished_cell_never_again(tmp_path: Path, stages: FakeStages) -> None:
    config = load(tmp_path)
    summary, outcomes = execute(config, tmp_path / "run")
    assert [o.plan.cell.name for o in outcomes if o.result] == [
        "reference",
        "labels=self",
        "selection=all",
        "mode=direct",
    ]
    assert set(stages.starts.values()) == {1}
    assert (summary["num_finished"], summary["num_cells"], summary["failures"]) == (4, 4, [])
    started = stages.starts.copy()
    again, _ = execute(config, tmp_path / "run")
    assert stages.starts == started
    assert again == summary


def test_a_longer_recipe_runs_only_what_is_new(tmp_path: Path, stages: FakeStages) -> None:
    execute(load(tmp_path, cells=[{"selection": "all"}]), tmp_path / "run")
    started = set(stages.starts)
    execute(load(tmp_path, cells=[{"selection": "all"}, {"labels": "self"}]), tmp_path / "run")
    new = {name.rsplit("-", 1)[0] for name in set(stages.starts) - started}
    assert new == {"selection", "training", "evaluation"}
    assert set(stages.starts.values()) == {1}


def test_an_interrupted_cell_continues_with_the_first_unfinished_stage(tmp_path: Path, stages: FakeStages) -> None:
    config = load(tmp_path, cells=[])
    stages.broken = "training"
    summary, _ = execute(config, tmp_path / "run")
    assert summary["failures"] == [{"cell": "reference", "seed": 0, "error": "training is broken"}]
    assert summary["rows"] == []
    stages.broken = ""
    started = stages.starts.copy()
    summary, _ = execute(config, tmp_path / "run")
    assert {name.rsplit("-", 1)[0] for name in stages.starts - started} == {"training", "evaluation"}
    assert [row["cell"] for row in summary["rows"]] == ["base", "reference"]


def test_a_failed_cell_is_a_row_and_the_others_go_on(tmp_path: Path, stages: FakeStages) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the engine is gone\nfor good")

    config = load(tmp_path)
    plans = run.plan_all(config)
    broken = plans[1].rounds[0].training
    training = stages.training

    def train(*args: Any, target: Path, **options: Any) -> TrainingResult:
        if target.name == broken:
            refuse()
        return training(*args, target=target, **options)

    stages.training = train  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlgenrm_ray.reward.training.run", train)
        summary, outcomes = execute(config, tmp_path / "run")
    assert summary["failures"] == [{"cell": "labels=self", "seed": 0, "error": "RuntimeError: the engine is gone"}]
    assert [o.error != "" for o in outcomes] == [False, True, False, False]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.accuracy_table(summary))
    assert "failed" in console.export_text()


def test_only_the_named_cells_are_run(tmp_path: Path, stages: FakeStages) -> None:
    summary, outcomes = execute(load(tmp_path), tmp_path / "run", only=["mode=*"])
    assert [outcome.plan.cell.name for outcome in outcomes] == ["mode=direct"]
    assert [row["cell"] for row in summary["rows"]] == ["base", "mode=direct"]


def test_rows_have_equal_examples_costs_and_labels(tmp_path: Path, stages: FakeStages) -> None:
    summary, _ = execute(load(tmp_path, rounds=2), tmp_path / "run")
    last_rounds = {judge["cell"]: Path(judge["model"]).parent.parent for judge in summary["models"]}
    assert set(last_rounds) == {"reference", "labels=self", "selection=all", "mode=direct"}
    assert set(last_rounds.values()) == {tmp_path / "run" / "stages"}
    rows = {(row["cell"], row["round"]): row for row in summary["rows"]}
    assert set(rows) == {("base", 0)} | {
        (cell, number) for cell in ("reference", "labels=self", "selection=all", "mode=direct") for number in (1, 2)
    }
    first, second = rows["reference", 1], rows["reference", 2]
    assert (first["num_examples"], first["num_available"], first["num_steps"]) == ([8], [12], 4)
    # Each round writes the critiques of six pairs; seconds and tokens add up over the rounds.
    assert second["num_generated"] - first["num_generated"] == NUM_PAIRS * 5
    assert (first["num_trained"], second["num_trained"]) == (7, 14)
    assert second["seconds"] > first["seconds"]
    assert first["wrong_label_share"] == 0.0
    assert first["accuracy"]["value"] == 7 / 8
    assert first["vs_base"]["value"] == pytest.approx(1 / 8)
    assert rows["labels=self", 1]["vs_reference"]["value"] == 0.0
    text = (tmp_path / "run" / "ablation.csv").read_text().splitlines()
    assert text[0].startswith("cell,round,seeds,covers,num_pairs,num_examples,accuracy,accuracy_low")
    assert len(text) == 1 + len(summary["rows"])


# -- statistics ------------------------------------------------------------------------------------------------------


def scores(*values: float) -> PairScores:
    ids = tuple(f"t{i}" for i in range(len(values)))
    return PairScores(ids=ids, chosen=values, rejected=(0.5,) * len(values))


def measurement(number: int, *values: float, blind: tuple[float, ...] = ()) -> RoundMeasurement:
    return RoundMeasurement(round=number, scores=scores(*values), blind=scores(*blind), tokens_per_response=3.0)


def cell(name: str, seed: int, *rounds: RoundMeasurement) -> CellResult:
    return CellResult(cell=name, variants={"x": name}, seed=seed, key=f"{name}{seed}", rounds=rounds)


CLUSTERS = {f"t{i}": i // 2 for i in range(8)}


def test_one_seed_covers_items_and_several_cover_items_and_seeds() -> None:
    right, wrong = (0.9,) * 6 + (0.1,) * 2, (0.9,) * 4 + (0.1,) * 4
    results = [
        cell("reference", 0, measurement(0, *wrong), measurement(1, *wrong)),
        cell("better", 0, measurement(0, *wrong), measurement(1, *right)),
    ]
    base, reference, better = summarise(results, CLUSTERS, reference="reference")
    assert (base["cell"], base["round"], better["covers"]) == ("base", 0, "items")
    assert reference["vs_reference"] is None
    assert better["vs_reference"]["value"] == 0.25
    expected = metrics.clustered_interval(np.array([1.0] * 6 + [0.0] * 2), list(CLUSTERS.values()))
    assert better["accuracy"]["ci95"] == pytest.approx([max(0.0, expected.low), min(1.0, expected.high)], abs=1e-6)

    seeds = [*results, *(cell(r.cell, 1, *r.rounds) for r in results)]
    (_, _, better) = summarise(seeds, CLUSTERS, reference="reference")
    assert (better["seeds"], better["covers"], set(better["by_seed"])) == ([0, 1], "items and seeds", {"0", "1"})
    values = np.array([[1.0] * 6 + [0.0] * 2] * 2)
    expected = metrics.crossed_interval(values, list(CLUSTERS.values()))
    assert better["accuracy"]["ci95"] == pytest.approx([max(0.0, expected.low), min(1.0, expected.high)], abs=1e-6)


def test_differences_pair_seeds_that_both_cells_have() -> None:
    results = [
        cell("reference", 0, measurement(1, 0.9, 0.1)),
        cell("reference", 1, measurement(1, 0.1, 0.1)),
        cell("other", 1, measurement(1, 0.9, 0.9)),
        cell("other", 2, measurement(1, 0.1, 0.1)),
    ]
    rows = {row["cell"]: row for row in summarise(results, CLUSTERS, reference="reference")}
    assert (rows["other"]["vs_reference"]["value"], rows["other"]["vs_reference"]["num_seeds"]) == (1.0, 1)
    assert rows["other"]["vs_base"] is None


def test_each_way_of_judging_has_a_base_of_its_own() -> None:
    results = [
        cell("reference", 0, measurement(0, 0.9, 0.1), measurement(1, 0.9, 0.9)),
        cell("mode=direct", 0, measurement(0, 0.1, 0.1), measurement(1, 0.9, 0.9)),
        cell("head", 0, measurement(1, 0.9, 0.9)),
    ]
    rows = {row["cell"]: row for row in summarise(results, CLUSTERS, reference="reference")}
    assert list(rows)[:2] == ["base", "base (mode=direct)"]
    assert rows["mode=direct"]["vs_base"]["value"] == 1.0
    assert rows["head"]["vs_base"]["value"] == 0.5, "a judge that has no base is compared with the reference's"


def test_prior_agreement_is_the_share_of_pairs_ranked_alike_without_the_image() -> None:
    assert prior_agreement(measurement(1, 0.9, 0.1, 0.9, blind=(0.9, 0.9, 0.8))) == pytest.approx(2 / 3)
    assert prior_agreement(measurement(1, 0.9)) is None
    assert yes_bias(measurement(1, 0.9, 0.7)) == pytest.approx((0.9 + 0.7 + 0.5 + 0.5) / 4 - 0.5)


def test_a_result_survives_its_file() -> None:
    result_before = cell("a", 3, measurement(0, 0.5), measurement(1, 0.25, blind=(0.5,)))
    assert CellResult.from_json(json.loads(json.dumps(result_before.as_json()))) == result_before


# -- diagnosis, tables and page --------------------------------------------------------------------------------------


def checker() -> CritiqueChecker:
    from vlgenrm_ray.experts.checking import Thresholds

    return CritiqueChecker.from_vocabulary("shapes", Thresholds())


def test_margins_count_extremes_drops_and_spread() -> None:
    preference = factories.preference()
    values = {Side.CHOSEN: (1 - 1e-9, 0.9), Side.REJECTED: (1e-8, 0.2)}
    verdicts = {Side.CHOSEN: "yes", Side.REJECTED: "no"}
    critiques = tuple(
        factories.critique(
            f"{preference.id}/{s.value}/c{k}",
            preference_id=preference.id,
            side=s,
            p_yes=p_yes,
            verdict=verdicts[s],
            text=f"Claim {k}.\nVerdict: {verdicts[s].capitalize()}",
        )
        for s in Side
        for k, p_yes in enumerate(values[s])
    )
    measured = diagnosis.margin_metrics([(preference, critiques)], SelectionConfig(top_n=1), checker())
    assert (measured["num_critiques"], measured["num_readable"]) == (4, 4)
    assert (measured["num_low"], measured["num_high"], sum(measured["log_odds"])) == (1, 1, 4)
    assert measured["contradicted_share"] == 0.0
    assert measured["margin_auroc"] is None
    assert measured["selection"]["without check"] == {"selected": 2, "over_limit": 2}
    # Margins from 0.9 - 0.2 to almost 1.
    assert measured["spread"]["with check"]["median_spread"] == pytest.approx(0.3, abs=1e-6)
    assert measured["spread"]["with check"]["tied_share"] == 0.0


def test_every_swapped_pair_has_another_image() -> None:
    images = [factories.image(sha256=name) for name in "aabc"]
    pairs = [
        factories.preference(f"t{i}", question=factories.question(f"t{i}", image=image))
        for i, image in enumerate(images)
    ]
    swapped = diagnosis.swap_images(pairs)
    assert [p.question.image.sha256 for p in swapped] == ["b", "b", "c", "a"]
    assert [(p.id, p.chosen) for p in swapped] == [(p.id, p.chosen) for p in pairs]
    assert diagnosis.swap_images(pairs[:2]) == []


def test_a_critique_that_ignores_the_image_is_the_same_with_another() -> None:
    texts = ("a red circle. Verdict: Yes", "a blue star. Verdict: Yes")
    own = [result(f"t{i}", f"t{i}", 0.9, texts=texts) for i in range(3)]
    same = diagnosis.swapped_metrics(own, own[:2], CLUSTERS)
    assert (same["num_pairs"], same["same_text"], same["similarity"]) == (2, 1.0, 1.0)
    assert same["resampled_similarity"] < 1.0
    other = [result("t0", "t0", 0.1, texts=("no shape at all", "none"))]
    changed = diagnosis.swapped_metrics(own, other, CLUSTERS)
    assert (changed["accuracy"]["value"], changed["swapped_accuracy"]["value"]) == (1.0, 0.0)
    assert (changed["same_text"], changed["similarity"]) == (0.0, 0.0)


def test_more_critiques_of_a_judge_that_is_mostly_right_rank_better() -> None:
    def judged(id: str, chosen: list[float | None], rejected: list[float | None]) -> PairResult:
        def judgement(values: list[float | None]) -> Judgement:
            critiques = tuple(factories.judge_critique("", p_yes=v) for v in values)
            return Judgement(id=id, reward=0.5, status="ok", critiques=critiques)

        return PairResult(id=id, preference_id=id, kind="", chosen=judgement(chosen), rejected=judgement(rejected))

    results = [judged(f"t{i}", [1.0, 1.0, 0.0, None], [0.0, 0.0, 1.0, 0.0]) for i in range(8)]
    curve = {point["k"]: point["accuracy"]["value"] for point in diagnosis.voting_curve(results, CLUSTERS)}
    assert list(curve) == [1, 2, 4]
    assert curve[1] < curve[2] < curve[4] == 1.0
    # One critique of each side: right 1 x 3/4 of the time, and so on; unreadable ones count one half.
    expected = (2 / 4) * (3 / 4) + (2 / 4) * (1 / 4) * 0.5 + (1 / 4) * (3 / 4) * 0.5 + (1 / 4) * 0.5
    assert curve[1] == pytest.approx(expected, abs=0.06)


def wide_summary(folder: Path) -> dict[str, Any]:
    """Return a summary with all parts of a page, written into a run folder."""
    rounds = (measurement(0, 0.9, 0.1, 0.9, 0.1), measurement(1, 0.9, 0.9, 0.9, 0.1, blind=(0.5, 0.9)))
    names = ("reference", "labels=self selection=keep_all check=off mode=cot")
    rows = summarise(
        [cell(name, s, *rounds, measurement(2, 0.9, 0.9, 0.9, 0.9)) for name in names for s in (0, 1)],
        CLUSTERS,
        reference="reference",
    )
    margins = diagnosis.margin_metrics([], SelectionConfig(), checker())
    swapped = diagnosis.swapped_metrics(
        [result("t0", "t0", 0.9, texts=("a", "b"))] * 1, [result("t0", "t0", 0.2, texts=("a", "c"))], CLUSTERS
    )
    voting = diagnosis.voting_curve([result("t0", "t0", 0.9, texts=("a",) * 4)], CLUSTERS)
    judge = {"swapped": swapped, "voting": voting}
    summary = {
        "rows": rows,
        "failures": [{"cell": "<b>broken</b>", "seed": 0, "error": "selection kept <none>"}],
        "num_finished": 4,
        "num_cells": 5,
        "num_test_pairs": 4,
        "num_test_images": 2,
        "num_examples": 480,
        "num_steps": 180,
        "seeds": [0, 1],
        "pair_curve": [],
        "diagnosis": {"reference": {"key": "k", "margins": {"round 1": margins}, "judges": {"base": judge}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.json").write_text(json.dumps(summary))
    return summary


def test_tables_fit_eighty_columns(tmp_path: Path) -> None:
    summary = wide_summary(tmp_path)
    with (tmp_path / "out.txt").open("w") as file:
        console = Console(width=80, file=file)
        console.print(tables.accuracy_table(summary))
        console.print(tables.cost_table(summary))
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert re.search(r"reference +1 +2 +0\.750", text)
    assert "0.750 (" in text
    assert "…" not in text


def test_the_page_shows_every_part_and_escapes_what_is_not_ours(tmp_path: Path) -> None:
    wide_summary(tmp_path / "run")
    answer = CliRunner().invoke(cli.app, ["report", str(tmp_path / "run")])
    assert answer.stdout.strip() == str(tmp_path / "run" / "report.html"), answer.output
    text = (tmp_path / "run" / "report.html").read_text()
    for part in (
        "Accuracy of each cell",
        "Accuracy by round",
        "number of critiques K",
        "Does a critique depend",
        "Are margins",
    ):
        assert part in text, part
    assert "<b>broken</b>" not in text
    assert "&lt;b&gt;broken" in text


def test_plans_name_what_is_shared(tmp_path: Path) -> None:
    plans: list[CellPlan] = run.plan_all(load(tmp_path))
    with (tmp_path / "out.txt").open("w") as file:
        Console(width=80, file=file).print(tables.plan_table(plans))
    text = (tmp_path / "out.txt").read_text()
    assert "4 cells over 1 seeds" in text
    assert max(map(len, text.splitlines())) <= 80
