"""Quality of the evidence against a ground truth: the experts' verdicts and the labels of preferences.

This requires a world with known truth. The truth is used for measurement only, by no stage of the run.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vlgenrm_ray.evaluation.metrics import estimate_as_json, wilson_interval
from vlgenrm_ray.records import CheckedResponse, Claim, Preference, Question, Truth

ClaimTruth = Callable[[Question, Claim], bool]
"""Returns True if a claim about a question's image is true, its negation included."""
ResponseTruth = Callable[[Question, str], bool]
"""Returns True if a response to a question is true."""


def expert_quality(checked: Iterable[CheckedResponse], truth: ClaimTruth) -> dict[str, Any]:
    """Compute precision and recall of the experts' definite verdicts, by claim kind and over `all`.

    For `supported`, precision is the share of true claims among those judged supported, and recall the share of true
    claims that are judged supported; for `contradicted` the same with false claims. `unknown` lowers recall, never
    precision. Hedged claims assert nothing and are left out.
    """
    verdicts: dict[str, list[tuple[Truth, bool]]] = defaultdict(list)
    for record in checked:
        for finding in record.findings:
            if not finding.claim.hedged:
                verdict = (finding.truth, truth(record.response.question, finding.claim))
                verdicts[finding.claim.kind.value].append(verdict)
                verdicts["all"].append(verdict)
    return {kind: _verdict_quality(of_kind) for kind, of_kind in sorted(verdicts.items())}


def _verdict_quality(verdicts: list[tuple[Truth, bool]]) -> dict[str, Any]:
    num_unknown = sum(verdict is Truth.UNKNOWN for verdict, _ in verdicts)
    quality: dict[str, Any] = {"claims": len(verdicts), "unknown_share": round(num_unknown / len(verdicts), 6)}
    for name, wanted, correct in (("supported", Truth.SUPPORTED, True), ("contradicted", Truth.CONTRADICTED, False)):
        quality[name] = {
            "precision": _proportion([is_true is correct for verdict, is_true in verdicts if verdict is wanted]),
            "recall": _proportion([verdict is wanted for verdict, is_true in verdicts if is_true is correct]),
        }
    return quality


def label_quality(preferences: Iterable[Preference], truth: ResponseTruth) -> dict[str, Any]:
    """Compute how often a pair's label is right, by origin and over `all`, with 95 % intervals.

    A label is right if the chosen response is true and the rejected one false; `chosen_true` and `rejected_false` tell
    which side is at fault.
    """
    labels: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for preference in preferences:
        sides = (truth(preference.question, preference.chosen), not truth(preference.question, preference.rejected))
        labels[preference.origin.value].append(sides)
        labels["all"].append(sides)
    return {
        origin: {
            "label_accuracy": _proportion([chosen and rejected for chosen, rejected in sides]),
            "chosen_true": _proportion([chosen for chosen, _ in sides]),
            "rejected_false": _proportion([rejected for _, rejected in sides]),
        }
        for origin, sides in sorted(labels.items())
    }


def _proportion(flags: list[bool]) -> dict[str, Any]:
    return estimate_as_json(wilson_interval(np.array(flags, dtype=np.float64)))
