"""Benchmarks by their official rules, one file each.

To add one, write a class with the methods of `Benchmark` and a line in `BENCHMARKS`, or name it on the command line by
an import path: `vlgenrm benchmark package.module:Name --data ... --answers ...`. The bases in `response_pairs.py`,
`yes_no_questions.py` and `reviews.py` have most of these methods.
"""

from pathlib import Path
from typing import Any

from pydantic import field_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import Benchmark
from vlgenrm_ray.settings import Settings

_PACKAGE = "vlgenrm_ray.evaluation.benchmarks"
BENCHMARKS = {
    "amber": f"{_PACKAGE}.amber:Amber",
    "best_of_n": f"{_PACKAGE}.best_of_n:BestOfN",
    "hallusionbench": f"{_PACKAGE}.hallusionbench:HallusionBench",
    "heldout_pairs": f"{_PACKAGE}.heldout_pairs:HeldoutPairs",
    "llava_bench": f"{_PACKAGE}.llava_bench:LlavaBench",
    "mm_rlhf_rewardbench": f"{_PACKAGE}.mm_rlhf_rewardbench:MmRlhfRewardBench",
    "mmhal": f"{_PACKAGE}.mmhal:MmHal",
    "multimodal_rewardbench": f"{_PACKAGE}.multimodal_rewardbench:MultimodalRewardBench",
    "pope": f"{_PACKAGE}.pope:Pope",
    "vl_rewardbench": f"{_PACKAGE}.vl_rewardbench:VlRewardBench",
    "vlrmbench": f"{_PACKAGE}.vlrmbench:VlrmBench",
}
"""Benchmark -> import path of its class."""


class BenchmarkConfig(Settings):
    """One benchmark that a run measures its models on."""

    name: str
    """A benchmark of `vlgenrm benchmark`, or an import path `package.module:Name` of your own."""
    data: Path
    """File or folder of its questions, as it was downloaded."""
    images: str = ""
    """Folder or URI of its images; "": the folder of `data`."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return plugins.check_name(name, BENCHMARKS)


def load(name: str) -> Benchmark[Any, Any]:
    """Create the benchmark `name`, a key of `BENCHMARKS` or an import path.

    Raises:
        InputError: The name is unknown.
        ConfigError: The import path cannot be imported.
    """
    try:
        plugins.check_name(name, BENCHMARKS)
    except ValueError as error:
        raise InputError(f"benchmark {error}") from None
    benchmark: Benchmark[Any, Any] = plugins.load(name, BENCHMARKS, "benchmark")()
    return benchmark
