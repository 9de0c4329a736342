"""The HTML report of a run: its values, its examples, and what it must never do."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs
from PIL import Image
from typer.testing import CliRunner

from vlgenrm_ray.cli import app
from vlgenrm_ray.data import images
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.report import html
from vlgenrm_ray.report.html import charts, gallery
from vlgenrm_ray.report.html.run_data import (
    JudgedPairs,
    RunData,
    best_of_n_curve,
    critiques_by_decision,
    read_run,
    reliability,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def data(run: Path) -> RunData:
    [data] = read_run(run)
    return data


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return html.write_report([run]).read_text()


def test_all_stages_are_accounted_for(data: RunData) -> None:
    accounts = {stage.name: stage for stage in data.stages}
    assert set(accounts) >= {"pool", "experts", "preferences", "round-1/selection", "round-1/evaluation"}
    selection = accounts["round-1/selection"]
    assert selection.rows_in == report_runs.NUM_PAIRS
    assert selection.dropped == {"small_margin": 4 * 5, "wrong_verdict": 8 * 2}
    assert data.is_finished
    assert data.seconds == 12.5


def test_the_gain_is_paired_with_the_base(data: RunData) -> None:
    # All pairs of the base are tied (1/2). In round 1, of 12 pairs 3 are wrong, 1 is unreadable, and 8 are right.
    gain = data.gain()
    assert data.best_round is not None
    assert data.best_round.round == 1
    assert gain is not None
    assert gain.value == pytest.approx((3 * 0 + 0.5 + 8) / 12 - 0.5)
    assert gain.low < gain.value < gain.high


def test_mistakes_come_first_and_the_worst_of_them_on_top() -> None:
    pairs = JudgedPairs(
        ids=("right", "bad", "worse", "tied", "unread"),
        kinds=("",) * 5,
        chosen=np.array([0.9, 0.4, 0.1, 0.5, np.nan]),
        rejected=np.array([0.1, 0.5, 0.9, 0.5, 0.2]),
    )
    groups = gallery._choose_heldout(pairs)
    assert list(groups.items()) == [
        ("worse", "mistake"),
        ("bad", "mistake"),
        ("tied", "undecided"),
        ("unread", "undecided"),
        ("right", "right"),
    ]


def test_training_examples_show_kept_and_lost_pairs_with_findings(data: RunData, run: Path) -> None:
    examples = gallery.training_examples(run, data.rounds[1])
    groups = [example.group for example in examples]
    assert groups.count("lost") == 4
    assert groups.count("kept") == 8
    selected = examples[-1]
    assert [critique.decision for critique in selected.sides[0].critiques] == ["kept", "wrong verdict: "]
    [image] = selected.images
    assert {box.mark for box in image.boxes} == {"supported"}
    assert "supported" in {piece.mark for piece in selected.sides[0].pieces}
    assert "".join(piece.text for piece in selected.sides[0].pieces) == "Yes, there is a red circle."
    assert image.url.startswith("data:image/png;base64,")


def test_critiques_are_grouped_by_their_fate(run: Path) -> None:
    by_decision, num_critiques = critiques_by_decision(
        StageFolder(run / "round-1" / "critiques"), StageFolder(run / "round-1" / "selection")
    )
    assert num_critiques == 4 * report_runs.NUM_PAIRS
    assert {name: len(values) for name, values in by_decision.items()} == {
        "kept": 16,
        "small_margin": 16,
        "wrong_verdict": 16,
    }
    assert sorted(set(by_decision["kept"].round(6))) == [0.6, 0.9]


def test_reliability_bins_hold_every_readable_response() -> None:
    pairs = JudgedPairs(ids=("a", "b"), kinds=("", ""), chosen=np.array([1.0, 0.25]), rejected=np.array([0.21, np.nan]))
    low, high = reliability(pairs)
    assert (low.num, low.share_right, low.mean_reward) == (2, 0.5, pytest.approx(0.23))
    assert (high.num, high.share_right, high.mean_reward) == (1, 1.0, 1.0)


def test_every_round_is_named_in_the_chart_of_kinds(data: RunData) -> None:
    base, trained = [round for round in data.rounds if round.evaluation][:2]
    kinds = dict(trained.evaluation["by_kind"])
    del kinds[min(kinds)]
    assert kinds
    svg = charts.accuracy_by_kind([base, replace(trained, evaluation=trained.evaluation | {"by_kind": kinds})])
    assert base.name in svg
    assert trained.name in svg


def test_pairs_without_kinds_have_no_chart_of_kinds(
    run: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run").glob("round-*/evaluation/manifest.json"):
        manifest = read_json(path)
        manifest["metrics"]["by_kind"] = {}
        write_json(path, manifest)
    page = html.write_report([tmp_path / "run"]).read_text()
    assert "Accuracy by round" in page
    assert "Accuracy by kind" not in page
    assert not recwarn.list


def test_the_page_is_self_contained(page: str) -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_text_of_models_is_escaped(page: str) -> None:
    assert report_runs.HOSTILE not in page
    assert "&lt;script&gt;document.title" in page


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_section_is_linked(page: str) -> None:
    for target in re.findall(r'href="#([^"]+)"', page.partition("<main>")[0]):
        assert f'id="{target}"' in page


def test_charts_use_the_colours_of_the_page(page: str) -> None:
    assert page.count('class="chart"') == 7
    assert "Accuracy over coverage" in page
    assert "var(--series-1)" in page
    assert not re.findall(r"#0a0[bc]", page)


def test_runs_are_compared_on_their_common_pairs(run: Path, tmp_path: Path) -> None:
    other = report_runs.write_run(tmp_path / "other", rewards=(0.3, 0.8))
    page = html.write_report([run, other], tmp_path / "both.html").read_text()
    comparison = page.partition('id="comparison"')[2].partition("</section>")[0]
    # Round 1 of the other run is worse than its base, which ties all pairs: 0.5 against (8 + 0.5) / 12.
    assert re.search(r"<td>other</td>.*-20\.8 \[-\d+\.\d, [-+]\d+\.\d\], n = 12", comparison, re.DOTALL)


def test_an_unfinished_run_can_be_read(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run", is_finished=False)
    [data] = read_run(run)
    assert not data.is_finished
    assert not data.rounds[1].evaluation
    [evaluation] = [stage for stage in data.stages if stage.name == "round-1/evaluation"]
    assert not evaluation.is_complete
    assert evaluation.rows_in == report_runs.NUM_PAIRS
    assert "unfinished" in html.write_report([run]).read_text()


def test_a_live_report_reloads_until_the_run_is_finished(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run", is_finished=False)
    versions: list[str] = []

    def finish(path: Path) -> None:
        versions.append(path.read_text())
        if len(versions) == 1:
            (run / "round-1").rename(tmp_path / "old")
            report_runs.write_run(tmp_path / "finished")
            (tmp_path / "finished" / "round-1").rename(run / "round-1")

    html.write_live([run], on_write=finish, every_s=1.0)
    assert ['http-equiv="refresh"' in version for version in versions] == [True, False]


def test_an_image_that_is_gone_leaves_a_reason(run: Path, tmp_path: Path) -> None:
    copy = report_runs.write_run(tmp_path / "run")
    (copy / "image.png").unlink()
    assert "image cannot be shown: " in html.write_report([copy]).read_text()


def test_a_policy_run_shows_curves_and_samples(tmp_path: Path) -> None:
    run = tmp_path / "policy-run"
    (run / "policy").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    answers = [{"text": "A.", "reward": None, "status": "timeout", "critique": "", "finish": "stop"}]
    answers.append({"text": "B.", "reward": 0.75, "status": "ok", "critique": "Right.", "finish": "stop"})
    sample = {"step": 1, "image": "s3://bucket/a.png", "question": "What?", "answers": answers}
    steps = [{"step": i, "reward": 0.5, "reference_kl": 0.01, "length": 9.0} for i in range(3)]
    evaluation = {"step": 0, "value": 0.5, "outcomes": {"q": 0.0}, "warning": "", "held_out": 0.5}
    later = evaluation | {"step": 2, "outcomes": {"q": 1.0}, "warning": "rewards rise, the measure does not"}
    outcomes = {name: {"q": 0.0} for name in ("greedy", "avg_at_k", "maj_at_k", "pass_at_k")}
    before = {"step": 0, "k": 16, "num_questions": 1, "outcomes": outcomes} | dict.fromkeys(outcomes, 0.0)
    after = before | {"step": 2, "greedy": 1.0, "outcomes": outcomes | {"greedy": {"q": 1.0}}}
    logs = {"metrics": steps, "evaluations": [evaluation, later], "samples": [sample], "decoding": [before, after]}
    for name, lines in logs.items():
        text = "".join(f"{line}\n" for line in map(json.dumps, lines))
        (run / "policy" / f"{name}.jsonl").write_text(text)
    summary = {"seed": 1, "steps": 3, "samples": 12, "failed": 3, "seconds": 9.0, "stopped": ""}
    write_json(run / "policy" / "summary.json", summary | {"first": evaluation, "last": later, "best": later})
    page = html.write_report([run]).read_text()
    assert "timeout" in page
    assert "25.0 % of samples without a reward" in page
    assert "rewards rise, the measure does not" in page
    # Reward, measure, greedy answers, pass at k, KL and length; without entropy and a held-out reward.
    assert page.count('class="chart"') == 6
    assert "<td>greedy</td><td>0.000</td><td>1.000</td><td>+100.0 [" in page
    assert page.index("<td>0.750</td>") < page.index("<td>timeout</td>")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder .*--run"):
        html.write_report([tmp_path])


def test_the_command_prints_the_file(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "page.html")


def test_benchmarks_are_tables_with_a_column_for_each_rule(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run")
    estimate = {"value": 0.8957, "ci95": [0.8842, 0.9061], "num": 3000}
    result = {
        "benchmark": "pope",
        "main": "accuracy",
        "metrics": {
            "accuracy": {"rules": {"official": 0.89567}, "ours": estimate},
            "yes ratio": {"rules": {"official": 0.5123, "lmms-eval": 0.5124}, "ours": None},
        },
        "counts": {"items": 3000, "unreadable": 2},
        "notes": ["A note for readers."],
    }
    write_json(run / "round-1" / "benchmarks" / "pope.json", result)
    page = html.write_report([run]).read_text()
    benchmarks = page.partition('id="benchmarks-1"')[2].partition("</section>")[0]
    assert "<td>accuracy</td><td>0.8957</td><td></td><td>0.8957 [0.8842, 0.9061]</td><td>3000</td>" in benchmarks
    assert "<th>lmms-eval</th>" in benchmarks
    assert "3,000 items, 2 unreadable" in benchmarks
    assert "A note for readers." in benchmarks


def test_a_run_of_the_first_stages_is_finished_without_rounds(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run", is_finished=False)
    shutil.rmtree(run / "round-0")
    shutil.rmtree(run / "round-1")
    write_json(run / "summary.json", {"seconds": 1.0, "rounds": [], "until": "preferences"})
    [data] = read_run(run)
    assert data.is_finished
    page = html.write_report([run]).read_text()
    assert "unfinished" not in page
    assert 'id="stages-1"' in page
    assert page.count('data-group="pair"') == report_runs.NUM_PAIRS
    assert 'class="supported" x="10.0"' in page


def test_pairs_that_the_experts_decided_come_first(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run", is_finished=False, num_unknown=5)
    examples = gallery.preference_examples(run)
    is_decided = [any(piece.mark == "supported" for piece in example.sides[0].pieces) for example in examples]
    assert sorted(is_decided, reverse=True) == is_decided
    assert is_decided.count(False) == 5


def test_best_of_n_is_drawn_by_round_with_intervals_oracle_and_random_pick(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run")
    for round, scale in ((0, 0.2), (1, 1.0)):
        report_runs.write_best_of_n(run / f"round-{round}" / "benchmarks" / "best_of_n.json", scale=scale)
    page = html.write_report([run]).read_text()
    section = page.partition('id="benchmarks-1"')[2].partition("</section>")[0]
    assert section.count('class="chart"') == 1, "both rounds in one chart"
    for label in (">round-0<", ">round-1<", ">oracle<", ">random pick<", ">candidates n<"):
        assert label in section
    assert section.count("FillBetweenPolyCollection") == 2, "an interval for each judge"
    sizes = re.findall(r"<td>best of (\d+)</td>", section)
    assert sizes == ["1", "2", "4", "8", "16"] * 2
    assert "Regret: the oracle" in section


def test_curves_of_best_of_n_hold_the_values_of_the_result(tmp_path: Path) -> None:
    report_runs.write_best_of_n(tmp_path / "result.json")
    result = read_json(tmp_path / "result.json")
    points = best_of_n_curve(result)
    assert [point.n for point in points] == [1, 2, 4, 8, 16]
    assert all(point.low <= point.pick <= point.high for point in points)
    assert points[0].pick == pytest.approx(points[0].random)
    assert points[-1].oracle == result["metrics"]["best of 16"]["rules"]["oracle"] == 1.0
    assert points[-1].pick == result["metrics"]["best of 16"]["ours"]["value"]
    assert best_of_n_curve({"metrics": {"accuracy": {"rules": {}, "ours": {"value": 1.0, "ci95": [0, 1]}}}}) == []


def test_a_measurement_outside_of_a_run_has_a_report_and_is_compared(tmp_path: Path) -> None:
    folders = []
    for name, scale in (("bon-base", 0.1), ("bon-trained", 1.0)):
        folders.append(tmp_path / name)
        (folders[-1] / "best-of-n" / "replies").mkdir(parents=True)
        report_runs.write_best_of_n(folders[-1] / "best-of-n" / "best_of_n.json", scale=scale, model=f"/models/{name}")
    page = html.write_report(folders[:1]).read_text()
    assert ">bon-base<" in page.partition('id="benchmarks-1"')[2]
    assert 'id="recipe-1"' not in page
    assert "None" not in page
    both = html.write_report(folders).read_text()
    comparison = both.partition('id="comparison"')[2].partition("</section>")[0]
    assert comparison.count('class="chart"') == 1
    assert ">bon-trained<" in comparison


def test_all_images_of_a_question_are_shown_and_are_not_larger_than_one_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    refs = []
    for number in range(18):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)).save(path)
        refs.append(images.probe(str(path), ImageLimits()))
    (one,), four = gallery._images(refs[:1]), gallery._images(refs[:4])
    assert len(four) == 4
    assert len({view.url for view in four}) == 4
    assert sum(len(view.url) for view in four) < 1.3 * len(one.url)
    assert (one.width, one.height) == (800, 600)
    *shown, rest = gallery._images(refs)
    assert len(shown) == 16
    assert rest.error == "2 more images"


def test_a_grey_photograph_is_no_drawing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (448, 448), dtype=np.uint8)).save(tmp_path / "grey.png")
    [view] = gallery._images([images.probe(str(tmp_path / "grey.png"), ImageLimits())])
    assert view.url.startswith("data:image/jpeg")
    Image.new("RGB", (448, 448), (255, 0, 0)).save(tmp_path / "red.png")
    [view] = gallery._images([images.probe(str(tmp_path / "red.png"), ImageLimits())])
    assert view.url.startswith("data:image/png")


def test_long_texts_keep_their_ends_and_state_what_is_left_out() -> None:
    text = "begin " + "x" * 100_000 + " Verdict: Yes"
    short = gallery._shorten(text)
    assert len(short) < 5_000
    assert short.startswith("begin ")
    assert short.endswith("Verdict: Yes")
    assert f"({len(text) - 4_000:,} characters left out)" in short
    pieces = gallery._shorten_pieces(
        [gallery.TextPiece(text="a" * 3_000, mark=""), gallery.TextPiece(text="b" * 3_000, mark="supported")]
    )
    assert [len(piece.text) for piece in pieces[:2]] == [3_000, 1_000]
    assert "(2,000 characters left out)" in pieces[2].text


def test_the_page_of_many_photographs_is_small(tmp_path: Path) -> None:
    run = report_runs.write_large_run(tmp_path / "run", 300)
    assert html.write_report([run]).stat().st_size < 20e6


def test_a_run_with_errors_added_to_its_experts_is_named_as_an_experiment(run: Path, tmp_path: Path, page: str) -> None:
    assert "Experiment:" not in page
    noisy = shutil.copytree(run, tmp_path / "noisy")
    with (noisy / "config.yaml").open("a") as recipe:
        recipe.write("experts: {noise: {missed: 0.1, small_missed: 0.0, confused: 0.25, shared: 1.0, seed: 3}}\n")
    written = html.write_report([noisy]).read_text()
    assert "errors were added to the experts (experts.noise): missed 10%, confused 25%." in written
