"""Small valid records for tests; every field can be overridden."""

from typing import Any

from vlgenrm_ray.data.store import Manifest
from vlgenrm_ray.records import (
    Box,
    Claim,
    ClaimKind,
    Critique,
    Detection,
    Example,
    ExampleKind,
    ImageRef,
    JudgeCritique,
    Origin,
    Preference,
    Question,
    Response,
    Rollout,
    Side,
)


def image(**over: Any) -> ImageRef:
    return ImageRef(**({"uri": "/nowhere.png", "sha256": "0" * 64, "width": 240, "height": 240} | over))


def question(id: str = "q0", **over: Any) -> Question:
    text = {"text": "Is there a red circle?", "source": "test", "kind": "existence"}
    return Question(**({"id": id, "image": image()} | text | over))


def response(id: str = "q0/r0", **over: Any) -> Response:
    return Response(
        **({"id": id, "question": question(), "text": "Yes, there is a red circle.", "sampler": "test"} | over)
    )


def claim(**over: Any) -> Claim:
    text = "there is a red circle"
    return Claim(
        **({"kind": ClaimKind.EXISTENCE, "subject": "red circle", "text": text, "start": 0, "end": len(text)} | over)
    )


def box(label: str = "circle", **over: Any) -> Box:
    return Box(**({"label": label, "score": 0.9, "x0": 10.0, "y0": 10.0, "x1": 70.0, "y1": 70.0} | over))


def detection(label: str = "circle", colour: str = "red", **over: Any) -> Detection:
    return Detection(box=box(label, **over), attribute=colour, attribute_score=0.95)


def preference(id: str = "q0/p0", **over: Any) -> Preference:
    pair = {"chosen": "Yes, there is a red circle.", "rejected": "No, there is no red circle."}
    return Preference(**({"id": id, "question": question(), "origin": Origin.VERIFIED} | pair | over))


def critique(id: str = "q0/p0/chosen/c0", **over: Any) -> Critique:
    return Critique(
        **(
            {
                "id": id,
                "preference_id": "q0/p0",
                "side": Side.CHOSEN,
                "round": 1,
                "text": "Claim: there is a red circle. Image: a red circle at the top left. Right.\nVerdict: Yes",
                "verdict": "yes",
                "p_yes": 0.9,
                "verdict_mass": 0.99,
                "num_tokens": 30,
                "seed": 0,
            }
            | over
        )
    )


def example(id: str = "e0", **over: Any) -> Example:
    return Example(
        **(
            {
                "id": id,
                "image": image(),
                "prompt": "Is the response right?",
                "completion": "Claim: a red circle. Image: a red circle. Right.\nVerdict: Yes",
                "kind": ExampleKind.CRITIQUE,
                "label": "yes",
                "weight": 1.0,
                "round": 1,
            }
            | over
        )
    )


def judge_critique(text: str = "Verdict: Yes", **over: Any) -> JudgeCritique:
    fields = {"verdict": "yes", "p_yes": 0.9, "verdict_mass": 1.0, "num_tokens": 3, "seed": 0}
    return JudgeCritique(**({"id": "q0/r0/c0", "text": text} | fields | over))


def rollout(id: str = "q0/s0/r0", **over: Any) -> Rollout:
    return Rollout(
        **(
            {
                "id": id,
                "question": question(),
                "step": 0,
                "version": 0,
                "ids": (5, 7, 2),
                "logprobs": (-0.5, -0.25, -0.125),
                "text": "Yes.",
                "finish": "stop",
                "reward": 0.75,
                "status": "ok",
            }
            | over
        )
    )


def manifest(stage: str, rows_out: int = 4, **metrics: Any) -> Manifest:
    return Manifest(
        stage=stage,
        fingerprint="f",
        inputs={},
        data_hash="h",
        rows_in=4,
        rows_out=rows_out,
        dropped={"wrong_verdict": 4 - rows_out},
        num_tokens=0,
        seconds=1.0,
        metrics=metrics,
    )
