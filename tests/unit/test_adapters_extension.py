"""The public helpers are all that a new adapter needs: one written here as a package of its own, outside ours."""

import importlib
import sys
from pathlib import Path

import pytest
from fake_service import FakeService, listening

from vlgenrm_ray import adapters
from vlgenrm_ray.adapters import rewards
from vlgenrm_ray.adapters.clients import URL_VARIABLE

ADAPTER = '''"""An adapter for a trainer that calls `reward(rows)` and masks None."""

from vlgenrm_ray.adapters import build_score_input, judge_client, optional_import, optional_rewards, read_label


class Reward(optional_import("my_trainer.rewards:Base")):
    def __call__(self, rows):
        inputs = [build_score_input(row["answer"], prompt=row["chat"], label=read_label(row["truth"])) for row in rows]
        return optional_rewards(judge_client().score(inputs))
'''


def test_an_adapter_in_another_package_needs_only_public_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_adapters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "my_trainer_adapter.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    service = FakeService()
    rewards.reset_counts()
    with listening(service) as url:
        monkeypatch.setenv(URL_VARIABLE, url)
        adapter = importlib.import_module("my_adapters.my_trainer_adapter")
        chat = [{"role": "user", "content": "What is it?"}]
        rows = [{"answer": answer, "chat": chat, "truth": "a star"} for answer in ("0.75", "fails:timeout")]
        assert adapter.Reward()(rows) == [0.75, None]
    rewards.reset_counts()
    for name in ("my_adapters", "my_adapters.my_trainer_adapter"):
        sys.modules.pop(name)
    assert [item.reference for item in service.items] == ["a star", "a star"]


def test_every_public_name_exists_and_is_documented() -> None:
    for name in adapters.__all__:
        assert getattr(adapters, name).__doc__, name
