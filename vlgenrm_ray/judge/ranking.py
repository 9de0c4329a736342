"""What several replies say together: which of two responses is better, and best-of-N."""

from collections.abc import Sequence

from vlgenrm_ray.judge.wire import CompareResponse, RankResponse, ScoreReply


def compare(first: ScoreReply, second: ScoreReply) -> CompareResponse:
    """Which of two is better; not decided where either has no reward."""
    if first.reward is None or second.reward is None:
        return CompareResponse(better=None, margin=None, first=first, second=second)
    margin = first.reward - second.reward
    better = "first" if margin > 0 else "second" if margin < 0 else "tie"
    return CompareResponse.model_validate({"better": better, "margin": margin, "first": first, "second": second})


def rank(replies: Sequence[ScoreReply]) -> RankResponse:
    """From best to worst; equals keep their order, and what has no reward comes last."""
    order = sorted(range(len(replies)), key=lambda i: (replies[i].reward is None, -(replies[i].reward or 0.0)))
    best = order[0] if order and replies[order[0]].reward is not None else None
    return RankResponse(order=order, best=best, items=list(replies))
