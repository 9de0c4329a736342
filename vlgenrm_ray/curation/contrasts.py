"""Pairs of two responses that were there: sampled ones by the evidence, imported ones as the evidence leaves them.

Nothing here calls a statement false because the experts do not know: it takes a contradiction.
"""

from collections.abc import Iterator

from vlgenrm_ray.curation.balance import is_even
from vlgenrm_ray.curation.case import Case, Judged, Lost, told
from vlgenrm_ray.curation.responses import CHOSEN, REJECTED
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Origin, Preference

FLIPPED = "flipped: "
"""Begins the evidence of an imported pair that was turned round."""


def verified(case: Case) -> Iterator[Preference]:
    """Best against worst, then second best against second worst, and so on.

    Better: more of it supported. Worse: more of it contradicted, among those even with it in length if there are such;
    of equally bad ones the one nearest in length.
    """
    sampled = [j for j in case.responses if j.checked.response.sampler not in (CHOSEN, REJECTED)]
    good = [j for j in sampled if case.can_be_chosen(j)]
    good.sort(key=lambda j: (-len(j.standing.supported), len(j.standing.unknown), j.id))
    bad = [j for j in sampled if j.standing.contradicted]
    for best in good:
        if not bad:
            return
        even = [j for j in bad if is_even(best.text, j.text, case.balance)]
        worst = min(even or bad, key=lambda j: (*_badness(j), abs(len(j.text) - len(best.text)), j.id))
        bad.remove(worst)
        finding = worst.standing.worst
        yield case.pair(
            (best.id, best.text), (worst.id, worst.text), Origin.VERIFIED, finding.claim.kind, told(finding)
        )


def _badness(judged: Judged) -> tuple[float, int]:
    standing = judged.standing
    claims = len(standing.supported) + len(standing.contradicted) + len(standing.unknown)
    return (-len(standing.contradicted) / claims, -len(standing.contradicted))


def imported(case: Case) -> Iterator[Preference | Lost]:
    """The pair the question came with, as the evidence leaves it: one preference, or why there is none."""
    sides = {j.checked.response.sampler: j for j in case.responses}
    chosen, rejected = sides.get(CHOSEN), sides.get(REJECTED)
    if chosen is None or rejected is None:
        return
    sides_of = ((chosen.id, chosen.text), (rejected.id, rejected.text))
    if chosen.text == rejected.text:
        yield Lost(DropReason.NO_CONTRAST, "chosen and rejected are the same text")
    elif chosen.standing.contradicted:
        finding = chosen.standing.worst
        # To turn a pair round, its rejected side has to be proved as good as any chosen one.
        if case.can_be_chosen(rejected):
            yield case.pair(*sides_of[::-1], Origin.IMPORTED, finding.claim.kind, f"{FLIPPED}{told(finding)}")
        else:
            yield Lost(DropReason.CONTRADICTED_CHOSEN, told(finding))
    elif rejected.standing.contradicted:
        finding = rejected.standing.worst
        yield case.pair(*sides_of, Origin.IMPORTED, finding.claim.kind, told(finding))
    elif case.config.keep_unknown:
        yield case.pair(*sides_of, Origin.IMPORTED, "", "as imported: nothing is known against either side")
    else:
        yield Lost(DropReason.NO_EVIDENCE, "nothing is known against either side of the imported pair")
