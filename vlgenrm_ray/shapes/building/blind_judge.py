"""A judge that sees texts alone: how far wording tells true answers from false ones, in the train split and elsewhere.

A logistic regression on the words of both answers, fitted on pairs of the train split. In a world with a language prior
it is above chance on other pairs of that split, and below it where the prior does not hold.
"""

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.shapes.world import load_world, rng_of


def blind_outcomes(
    world: str, *, split: str, seed: int, count: int, num_fitted: int = 3000
) -> dict[str, npt.NDArray[np.float64]]:
    """Fit a blind judge on pairs of the train split; judge `count` other pairs of it, and of another split.

    Returns:
        Split -> outcome of each pair (count,): 1 ranked right, 0 ranked wrong, 1/2 tied.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    chosen, rejected = _draw_texts(world, split="train", seed=seed + 1, count=num_fitted)
    vectorizer = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\w+", lowercase=False)
    vectorizer.fit([*chosen, *rejected])
    differences = vectorizer.transform(chosen) - vectorizer.transform(rejected)
    # Half of the pairs are turned round, so that there are two classes.
    sign = np.where(np.arange(len(chosen)) % 2 == 0, 1, -1)
    model = LogisticRegression(max_iter=1000, fit_intercept=False).fit(
        differences.multiply(sign[:, None]).tocsr(), sign
    )
    outcomes = {}
    for measured in ("train", split):
        chosen, rejected = _draw_texts(world, split=measured, seed=seed, count=count)
        scores = model.decision_function(vectorizer.transform(chosen) - vectorizer.transform(rejected))
        outcomes[measured] = (np.sign(scores) + 1) / 2
    return outcomes


def _draw_texts(world: str, *, split: str, seed: int, count: int) -> tuple[list[str], list[str]]:
    """Draw pairs without rendering images; return the true and the false answers, each preceded by its question."""
    pair_world = load_world(world)
    chosen, rejected = [], []
    for index in range(count):
        scene, question = pair_world.draw_item(seed, split, index)
        chosen.append(f"{question.kind} {question.reference}")
        wrong = pair_world.corrupt_answer(scene, question, rng_of(seed, split, index, "wrong"))
        rejected.append(f"{question.kind} {wrong}")
    return chosen, rejected
