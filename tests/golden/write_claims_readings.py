"""Write `claims_readings.json`: the version of the grammar, and a hash of its reading of every corpus sentence.

PYTHONPATH=tests python tests/golden/write_claims_readings.py
"""

import json
from pathlib import Path

import yaml

from vlgenrm_ray.experts.claims import GRAMMAR_VERSION, claim_key, extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.settings import digest

GOLDEN = Path(__file__).with_name("claims_readings.json")
CORPUS = Path(__file__).parents[1] / "data" / "claims_corpus.yaml"


def reading_hash(text: str) -> str:
    """Return a hash of the claims of a text, in both vocabularies."""
    keys = [claim_key(claim) for name in ("shapes", "coco") for claim in extract_claims(text, load_vocabulary(name))]
    return digest([list(key) for key in keys])


def main() -> None:
    texts = sorted({str(text) for group in yaml.safe_load(CORPUS.read_text()) for text in group["texts"]})
    readings = {text: reading_hash(text) for text in texts}
    GOLDEN.write_text(json.dumps({"version": GRAMMAR_VERSION, "readings": readings}, indent=0, ensure_ascii=False))


if __name__ == "__main__":
    main()
