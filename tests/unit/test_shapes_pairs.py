"""Gold pairs: nothing but the picture tells the better side."""

from collections import defaultdict
from functools import cache
from pathlib import Path

from vlgenrm_ray.records import Origin, Preference
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.basic import draw_item
from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.world import rng_of

COUNT = 2000


@cache
def pairs() -> list[tuple[str, str, str, str]]:
    """Draw (kind, question, chosen, rejected) without rendering images."""
    rows = []
    for index in range(COUNT):
        scene, item = draw_item(5, "heldout", index)
        wrong = corrupt_answer(scene, item, rng_of(5, "heldout", index, "wrong"))
        rows.append((item.kind, item.text, item.reference, wrong))
    return rows


def share(wins: list[float]) -> float:
    return sum(wins) / len(wins)


def test_blind_baselines_are_at_chance() -> None:
    """Longer, first in the alphabet, "Yes", a larger number: each picks the true side about half the time."""
    longer, earlier = defaultdict(list), defaultdict(list)
    for kind, _, chosen, rejected in pairs():
        longer[kind].append(0.5 if len(chosen) == len(rejected) else float(len(chosen) > len(rejected)))
        earlier[kind].append(float(chosen < rejected))
    for kind in longer:
        assert abs(share(longer[kind]) - 0.5) < 0.07, kind
        assert abs(share(earlier[kind]) - 0.5) < 0.07, kind


def test_answers_are_no_likelier_true_for_their_wording() -> None:
    """The best guess from question and answers alone, learned on half the pairs, stays near chance on the others."""
    drawn = pairs()
    times: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for kind, _, chosen, rejected in drawn[::2]:
        words_c, words_r = set(chosen.split()), set(rejected.split())
        times[kind, *sorted(words_c - words_r), "<", *sorted(words_r - words_c)] += 1
    wins = []
    for kind, _, chosen, rejected in drawn[1::2]:
        words_c, words_r = set(chosen.split()), set(rejected.split())
        right = times[kind, *sorted(words_c - words_r), "<", *sorted(words_r - words_c)]
        wrong = times[kind, *sorted(words_r - words_c), "<", *sorted(words_c - words_r)]
        wins.append(0.5 if right == wrong else float(right > wrong))
    assert abs(share(wins) - 0.5) < 0.06


def test_gold_pairs_are_records_with_images(tmp_path: Path) -> None:
    drawn = list(gold_pairs(tmp_path, seed=5, split="heldout", count=10))
    assert all(isinstance(p, Preference) and p.origin == Origin.GOLD and p.kind == p.question.kind for p in drawn)
    assert len({p.id for p in drawn}) == 10
    assert all(Path(p.question.image.uri).is_file() for p in drawn)
    for pair in drawn:
        assert world.response_is_true(pair.question, pair.chosen)
        assert not world.response_is_true(pair.question, pair.rejected)
    assert drawn == list(gold_pairs(tmp_path, seed=5, split="heldout", count=10))
