"""Benches of the service: statistics, items, clients of both servers, and the table, with a fake service."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeInlineService, listening, refuse
from serving_examples import png

from vlgenrm_ray.bench import items, load, servers
from vlgenrm_ray.bench.clients import ServiceClient, VllmServeClient
from vlgenrm_ray.bench.items import BenchItem
from vlgenrm_ray.bench.serving import build_rows, count_by_window, pace_ratio
from vlgenrm_ray.bench.statistics import fit_slope, percentile
from vlgenrm_ray.bench.table import format_rows
from vlgenrm_ray.errors import InputError, RemoteError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.shapes import pack_path

JUDGE = JudgeConfig(prompt="shapes_cot", num_critiques=2, max_tokens=160)
ITEM = BenchItem(png(), "Is there a red circle?", "0.25")


def test_percentile_is_one_of_the_values() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 0.5) == 3.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_slope_has_a_95_percent_interval() -> None:
    exact = fit_slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert (exact.value, exact.low, exact.high) == pytest.approx((2.0, 2.0, 2.0))
    # Residuals 0.5, -0.5, -0.5, 0.5 about a level line: standard error sqrt(1 / 2 / 5).
    level = fit_slope([0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 1.0])
    assert (level.value, level.high) == pytest.approx((0.0, 1.959964 * math.sqrt(0.1)))
    with pytest.raises(ValueError, match="needs three"):
        fit_slope([0.0, 1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="the same time"):
        fit_slope([1.0] * 3, [0.0] * 3)


def test_blocks_are_repeated_directly_after_themselves() -> None:
    blocks = [BenchItem(b"", "", str(i)) for i in range(5)]
    assert [item.response for item in items.repeat_blocks(blocks, 2)] == list("0101232344")


def test_items_are_drawn_from_the_embedded_world_or_read_from_a_file(tmp_path: Path) -> None:
    drawn = items.draw_shapes_items(5, seed=3)
    assert drawn == items.draw_shapes_items(5, seed=3)
    assert drawn[0].image == drawn[1].image != drawn[2].image
    assert drawn[0].response != drawn[1].response
    (tmp_path / "a.png").write_bytes(png())
    both = {"image": "a.png", "question": "Q", "chosen": "right", "rejected": "wrong"}
    rows = [{"image": "a.png", "question": "Q", "response": "R"}, both]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert [item.response for item in items.read_items(file, 3)] == ["R", "right", "wrong"]
    with pytest.raises(InputError, match="3 responses; 4 are needed"):
        items.read_items(file, 4)
    file.write_text('{"question": "Q"}')
    with pytest.raises(InputError, match=r"own.jsonl:1: KeyError"):
        items.read_items(file, 1)


def test_replies_are_in_the_order_of_requests() -> None:
    client = ServiceClient(JUDGE)
    scored = [BenchItem(png(), "What is it?", f"0.{i}") for i in range(1, 9)]
    with listening(FakeInlineService()) as url:
        result = load.send_requests(url, [client.build_request(item) for item in scored], concurrency=3)
    assert [client.parse_reply(reply).reward for reply in result.replies] == [float(item.response) for item in scored]
    assert all(latency > 0 for latency in result.latencies)
    assert result.metrics()["scores_per_s"] == pytest.approx(8 / result.seconds, rel=1e-3)


def test_an_error_status_stops_the_load() -> None:
    with listening(FakeInlineService(refuse(503))) as url, pytest.raises(RemoteError, match=r"503 .*as scripted"):
        load.send_requests(url, [ServiceClient(JUDGE).build_request(ITEM)], concurrency=1)


def test_engine_settings_become_command_line_options() -> None:
    settings: dict[str, Any] = {"max_model_len": 512, "enforce_eager": True, "enable_chunked_prefill": False}
    settings |= {"disable_log_stats": False, "limit_mm_per_prompt": {"image": 1}, "mm_processor_kwargs": None}
    assert servers.command_line_options(settings) == [
        *("--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill"),
        *("--limit-mm-per-prompt", '{"image": 1}'),
    ]


def test_both_servers_get_the_same_prompt_and_sampling() -> None:
    client = VllmServeClient(JUDGE, str(pack_path("vlm")))
    theirs = json.loads(client.build_request(ITEM).body)
    (ours,) = json.loads(ServiceClient(JUDGE).build_request(ITEM).body)["items"]
    image, text = theirs["messages"][0]["content"]
    assert (theirs["n"], image["image_url"]["url"]) == (ours["num_critiques"], ours["image"])
    assert "Is there a red circle?" in text["text"]
    assert theirs["logprob_token_ids"]
    assert client.build_request(ITEM) == client.build_request(ITEM)


def test_a_judge_of_sentences_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"judge\.unit"):
        VllmServeClient(JUDGE.model_copy(update={"unit": "sentence"}), str(pack_path("vlm")))


def test_reward_is_computed_from_log_probabilities() -> None:
    """Expect p(Yes) / (p(Yes) + p(No)) at the verdict; a critique without a verdict abstains."""

    def position(token: str, **probabilities: float) -> dict[str, Any]:
        logprobs = {token: 0.0} | {name: math.log(p) for name, p in probabilities.items()}
        return {"token": token, "top_logprobs": [{"token": t, "logprob": p} for t, p in logprobs.items()]}

    def choice(*positions: dict[str, Any]) -> dict[str, Any]:
        return {"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": list(positions)}}

    verdict = {"token": " Yes", "top_logprobs": [{"token": " Yes", "logprob": math.log(0.5)}]}
    verdict["top_logprobs"] += [{"token": t, "logprob": math.log(p)} for t, p in (("yes", 0.1), ("No", 0.2))]  # type: ignore[operator]
    with_verdict = choice(position("Verdict"), position(":"), verdict, position("<|im_end|>"))
    client = VllmServeClient(JUDGE, str(pack_path("vlm")))
    reading = client.parse_reply(json.dumps({"choices": [with_verdict, choice(position("Claim"))]}).encode())
    assert (reading.reward, reading.num_critiques) == (pytest.approx(0.75), 2)


def test_the_table_marks_missed_targets() -> None:
    side = {"scores_per_s": 20.0, "p50_ms": 50.0, "p99_ms": 80.0}
    memory = {"ingress": {"mib": 200.0, "mib_per_min": {"value": 0.1, "low": -0.1, "high": 0.3}}}
    results = {
        "vllm": {"levels": {"8": {"ours": side, "vllm": side, "ratio": 0.9}}},
        "cache": {"without": side, "half_repeated": side | {"ratio": 1.9}, "fully_cached": side | {"ratio": 12.0}},
        "critiques": {"1": {"k1": side, "k8": side, "latency_ratio": 2.6, "cost_ratio": 2.5}},
        "overhead": {
            "engine_p50_ms": 300.0,
            "known_p50_ms": 4.0,
            "known_p99_ms": 8.0,
            "new_p50_ms": 6.0,
            "new_p99_ms": 9.0,
        },
        "soak": {"seconds": 600.0, "memory": memory},
    }
    assert [row.met for row in build_rows(results)] == [False, True, True, False, True, True, None, None]
    printed = list(format_rows(build_rows(results)))
    assert max(map(len, printed)) <= 80
    assert sum(line.endswith("MISSED") for line in printed) == 2


def test_a_service_that_slows_down_shows_in_the_windows_of_the_soak_test() -> None:
    steady = [i / 10 for i in range(1000)]
    assert count_by_window([*steady, 100.5], 100.0) == [100] * 10
    assert pace_ratio([50, *[100] * 9]) == 1.0
    slowing = [10 * (i / 100) ** 2 for i in range(1, 317)]
    assert pace_ratio(count_by_window(slowing, 100.0)) < 0.8
