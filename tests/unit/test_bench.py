"""The bench's arithmetic, its work, its two dialects, and its table; no server but a scripted one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeInlineService, listening, refuse
from serving_examples import png

from vlgenrm_ray.bench import load, servers, work
from vlgenrm_ray.bench.dialects import OpenAi, Wire
from vlgenrm_ray.bench.figures import percentile, slope
from vlgenrm_ray.bench.serving_table import rows
from vlgenrm_ray.bench.table import lines
from vlgenrm_ray.bench.work import Piece
from vlgenrm_ray.errors import InputError, RemoteError
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.shapes import pack_path

JUDGE = JudgeConfig(prompt="shapes_cot", num_critiques=2, max_tokens=160)
PIECE = Piece(png(), "Is there a red circle?", "0.25")


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 0.5) == 3.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_slope_and_its_interval() -> None:
    exact = slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert (exact.value, exact.low, exact.high) == pytest.approx((2.0, 2.0, 2.0))
    # Residuals 0.5, -0.5, -0.5, 0.5 about a level line: standard error sqrt(1 / 2 / 5).
    level = slope([0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 1.0])
    assert (level.value, level.high) == pytest.approx((0.0, 1.959964 * math.sqrt(0.1)))
    with pytest.raises(ValueError, match="needs three"):
        slope([0.0, 1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="at one time"):
        slope([1.0] * 3, [0.0] * 3)


def test_repetitions_come_after_their_block() -> None:
    pieces = [Piece(b"", "", str(i)) for i in range(5)]
    assert [piece.response for piece in work.half_repeated(pieces, 2)] == list("0101232344")


def test_pieces_of_the_world_and_of_a_file(tmp_path: Path) -> None:
    drawn = work.of_shapes(5, seed=3)
    assert drawn == work.of_shapes(5, seed=3)
    assert drawn[0].image == drawn[1].image != drawn[2].image
    assert drawn[0].response != drawn[1].response
    (tmp_path / "a.png").write_bytes(png())
    both = {"image": "a.png", "question": "Q", "chosen": "right", "rejected": "wrong"}
    rows = [{"image": "a.png", "question": "Q", "response": "R"}, both]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert [piece.response for piece in work.of_file(file, 3)] == ["R", "right", "wrong"]
    with pytest.raises(InputError, match="3 responses; 4 are needed"):
        work.of_file(file, 4)
    file.write_text('{"question": "Q"}')
    with pytest.raises(InputError, match=r"own.jsonl:1: KeyError"):
        work.of_file(file, 1)


def test_a_load_is_answered_in_order() -> None:
    wire = Wire(JUDGE)
    pieces = [Piece(png(), "What is it?", f"0.{i}") for i in range(1, 9)]
    with listening(FakeInlineService()) as url:
        measured = load.put(url, [wire.request(piece) for piece in pieces], concurrency=3)
    assert [wire.read(reply).reward for reply in measured.replies] == [float(piece.response) for piece in pieces]
    assert all(latency > 0 for latency in measured.latencies)
    assert measured.figures()["scores_per_s"] == pytest.approx(8 / measured.seconds, rel=1e-3)


def test_a_refusal_ends_the_load() -> None:
    with listening(FakeInlineService(refuse(503))) as url, pytest.raises(RemoteError, match=r"503 .*as scripted"):
        load.put(url, [Wire(JUDGE).request(PIECE)], concurrency=1)


def test_engine_settings_as_options() -> None:
    settings: dict[str, Any] = {"max_model_len": 512, "enforce_eager": True, "enable_chunked_prefill": False}
    settings |= {"disable_log_stats": False, "limit_mm_per_prompt": {"image": 1}, "mm_processor_kwargs": None}
    assert servers.flags(settings) == [
        *("--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill"),
        *("--limit-mm-per-prompt", '{"image": 1}'),
    ]


def test_both_are_asked_for_the_same() -> None:
    openai = OpenAi(JUDGE, str(pack_path("vlm")))
    theirs = json.loads(openai.request(PIECE).body)
    (ours,) = json.loads(Wire(JUDGE).request(PIECE).body)["items"]
    image, text = theirs["messages"][0]["content"]
    assert (theirs["n"], image["image_url"]["url"]) == (ours["num_critiques"], ours["image"])
    assert "Is there a red circle?" in text["text"]
    assert theirs["logprob_token_ids"]
    assert openai.request(PIECE) == openai.request(PIECE)


def test_a_judge_of_sentences_has_no_peer() -> None:
    with pytest.raises(InputError, match=r"judge\.unit"):
        OpenAi(JUDGE.model_copy(update={"unit": "sentence"}), str(pack_path("vlm")))


def test_a_reward_is_read_from_log_probabilities() -> None:
    """p(Yes) / (p(Yes) + p(No)) at the verdict, by the judge's own reading; a critique without one abstains."""

    def position(token: str, **chances: float) -> dict[str, Any]:
        shown = {token: 0.0} | {name: math.log(p) for name, p in chances.items()}
        return {"token": token, "top_logprobs": [{"token": t, "logprob": p} for t, p in shown.items()]}

    def choice(*positions: dict[str, Any]) -> dict[str, Any]:
        return {"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": list(positions)}}

    verdict = {"token": " Yes", "top_logprobs": [{"token": " Yes", "logprob": math.log(0.5)}]}
    verdict["top_logprobs"] += [{"token": t, "logprob": math.log(p)} for t, p in (("yes", 0.1), ("No", 0.2))]  # type: ignore[operator]
    said = choice(position("Verdict"), position(":"), verdict, position("<|im_end|>"))
    openai = OpenAi(JUDGE, str(pack_path("vlm")))
    scored = openai.read(json.dumps({"choices": [said, choice(position("Claim"))]}).encode())
    assert (scored.reward, scored.num_critiques) == (pytest.approx(0.75), 2)


def test_the_table_says_what_was_missed() -> None:
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
    assert [row.met for row in rows(results)] == [False, True, True, False, True, True, None, None]
    printed = list(lines(rows(results)))
    assert max(map(len, printed)) <= 80
    assert sum(line.endswith("MISSED") for line in printed) == 2
