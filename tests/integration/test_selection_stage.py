"""Selection over Ray: every unit accounted for, settings guarded."""

from pathlib import Path
from typing import Any

import factories
import pyarrow.parquet as pq
import pytest

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Critique, Example, Preference, Side
from vlgenrm_ray.reward import selection
from vlgenrm_ray.reward.selection import SelectionConfig
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker

INPUTS = {
    "judge": JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct"),
    "checker": CritiqueChecker.from_vocabulary("shapes", Thresholds()),
}


def unit(id: str, p_chosen: float, p_rejected: float, image: str = "a red circle") -> Unit[Critique]:
    critiques = [
        factories.critique(
            f"{id}/{side.value}/c0",
            preference_id=id,
            side=side,
            text=f"Claim: x. Image: {image}. Right.\nVerdict: {word.capitalize()}",
            verdict=word,
            p_yes=p,
        )
        for side, p in ((Side.CHOSEN, p_chosen), (Side.REJECTED, p_rejected))
        for word in ["yes" if p > 0.5 else "no"]
    ]
    return Unit(id=id, records=tuple(critiques))


def stage(path: Path, cls: type, units: list[Unit[Any]], inputs: dict[str, str]) -> StageFolder:
    folder = StageFolder(path)
    folder.begin("settings", inputs)
    for start in range(0, len(units), 100):
        write_units(folder, cls, units[start : start + 100])
    folder.finish(seconds=0.0)
    return folder


def preference_stage(path: Path, ids: list[str]) -> StageFolder:
    """Preferences in another order than the critiques, three to a unit."""
    pairs = [factories.preference(id, detections=(factories.detection(),)) for id in reversed(ids)]
    units = [Unit(id=f"image{i}", records=tuple(pairs[i : i + 3])) for i in range(0, len(pairs), 3)]
    return stage(path, Preference, units, {})


@pytest.mark.usefixtures("ray_local")
def test_every_pair_is_kept_or_dropped_and_a_finished_stage_stays(run_folder: Path) -> None:
    failed = {i for i in range(249) if i % 3 == 0}
    units = [unit(f"q/p{i}", 0.2 if i in failed else 0.9, 0.1) for i in range(249)]
    units.append(unit("q/p249", 0.9, 0.1, image="a blue star at the top left"))
    preferences = preference_stage(run_folder / "preferences", [u.id for u in units])
    source = stage(run_folder / "critiques", Critique, units, {"preferences": preferences.data_hash()})
    stages = {"source": source, "preferences": preferences}
    target = StageFolder(run_folder / "selection")
    config = SelectionConfig(tau=0.5, w_direct=0.0, lambda_answer=0.0)

    manifest = selection.run(config, **INPUTS, **stages, target=target)

    selected = {u.id: u for u in target.units(Example)}
    assert selected.keys() == {u.id for u in units}
    assert {id for id, u in selected.items() if not u.records} == {f"q/p{i}" for i in failed | {249}}
    assert manifest.metrics["kept_share"] == pytest.approx(1 - (len(failed) + 1) / 250)
    assert manifest.metrics["pairs_dropped"] == {"contradicted_critique": 1, "wrong_verdict": len(failed)}
    assert sum(manifest.metrics["margin_histogram"]) == 250
    assert selection.run(config, **INPUTS, **stages, target=target) == manifest
    with pytest.raises(ConfigError, match="other settings"):
        selection.run(SelectionConfig(tau=0.6), **INPUTS, **stages, target=target)


@pytest.mark.usefixtures("ray_local")
def test_the_driver_opens_no_shard_that_a_stage_wrote(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [unit(f"q/p{i}", 0.9, 0.1) for i in range(200)]
    preferences = preference_stage(run_folder / "preferences", [u.id for u in units])
    source = stage(run_folder / "critiques", Critique, units, {"preferences": preferences.data_hash()})
    target = StageFolder(run_folder / "selection")
    opened: list[str] = []
    for name in ("read_metadata", "ParquetFile", "read_table"):
        original = getattr(pq, name)

        def read(path: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            opened.append(str(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(pq, name, read)
    manifest = selection.run(SelectionConfig(), **INPUTS, source=source, preferences=preferences, target=target)
    assert manifest.rows_in == 200
    assert not [path for path in opened if path.startswith(str(target.path))]
    assert not [path for path in opened if path.startswith(str(source.path))]


def test_critiques_of_other_preferences_are_refused(run_folder: Path) -> None:
    preferences = preference_stage(run_folder / "preferences", ["q/p0"])
    source = stage(run_folder / "critiques", Critique, [unit("q/p0", 0.9, 0.1)], {"preferences": "another"})
    target = StageFolder(run_folder / "selection")
    with pytest.raises(StageError, match="not about the preferences"):
        selection.run(SelectionConfig(), **INPUTS, source=source, preferences=preferences, target=target)
