"""A recipe of a policy's training, run to its end on a Ray of its own: `python -m ... RECIPE FOLDER CPUS`.

As `vlgenrm policy` does it, but that Ray is told how many CPUs there are: an engine and a learner that take turns may
each have all cores, which together are more than the machine's.
"""

import sys
from pathlib import Path

from vlgenrm_ray import config, policy_pipeline
from vlgenrm_ray.cluster import connection


def main(recipe: Path, folder: Path, cpus: int) -> None:
    """Leaves in `folder` what a run leaves there."""
    settings = config.load_policy(recipe)
    connection.connect("local", num_cpus=cpus, offline=True)
    policy_pipeline.run(settings, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
