"""How good the evidence is, against a ground truth: the experts' verdicts and the labels.

Only a world whose truth is known can be measured so; the truth measures, and nothing in the loop sees it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vlgenrm_ray.evaluation.metrics import plain, wilson
from vlgenrm_ray.records import CheckedResponse, Claim, Preference, Question, Truth

ClaimTruth = Callable[[Question, Claim], bool]
"""Whether a claim about a question's image is true, its negation included."""
ResponseTruth = Callable[[Question, str], bool]
"""Whether a response to a question is true."""


def expert_quality(checked: Iterable[CheckedResponse], truth: ClaimTruth) -> dict[str, Any]:
    """Precision and recall of the experts' definite verdicts, by claim kind and over `all`, with 95 % intervals.

    Of `supported`, precision is the share of the claims so judged that are true, recall the share of the true claims
    so judged; of `contradicted` the same with the false ones. `unknown` costs recall, never precision. Hedged claims
    assert nothing and are left out.
    """
    seen: dict[str, list[tuple[Truth, bool]]] = defaultdict(list)
    for record in checked:
        for finding in record.findings:
            if not finding.claim.hedged:
                judged = (finding.truth, truth(record.response.question, finding.claim))
                seen[finding.claim.kind.value].append(judged)
                seen["all"].append(judged)
    return {kind: _verdicts(judged) for kind, judged in sorted(seen.items())}


def _verdicts(judged: list[tuple[Truth, bool]]) -> dict[str, Any]:
    unknown = sum(verdict is Truth.UNKNOWN for verdict, _ in judged)
    figures: dict[str, Any] = {"claims": len(judged), "unknown_share": round(unknown / len(judged), 6)}
    for name, verdict, meant in (("supported", Truth.SUPPORTED, True), ("contradicted", Truth.CONTRADICTED, False)):
        figures[name] = {
            "precision": _proportion([true is meant for said, true in judged if said is verdict]),
            "recall": _proportion([said is verdict for said, true in judged if true is meant]),
        }
    return figures


def label_quality(preferences: Iterable[Preference], truth: ResponseTruth) -> dict[str, Any]:
    """How often a pair's label is right, by origin and over `all`, with 95 % intervals.

    A label is right if the chosen response is true and the rejected one false; `chosen_true` and `rejected_false`
    stand beside it, to tell which side is at fault.
    """
    seen: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for preference in preferences:
        sides = (truth(preference.question, preference.chosen), not truth(preference.question, preference.rejected))
        seen[preference.origin.value].append(sides)
        seen["all"].append(sides)
    return {
        origin: {
            "label_accuracy": _proportion([chosen and rejected for chosen, rejected in sides]),
            "chosen_true": _proportion([chosen for chosen, _ in sides]),
            "rejected_false": _proportion([rejected for _, rejected in sides]),
        }
        for origin, sides in sorted(seen.items())
    }


def _proportion(holds: list[bool]) -> dict[str, Any]:
    return plain(wilson(np.array(holds, dtype=np.float64)))
