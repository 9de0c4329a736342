"""Run, or continue, a reward-model recipe.

    ray job submit --working-dir . -- python jobs/train_reward.py --config jobs/recipes/qwen3_vl_4b.yaml

The same command after an interruption continues the run. `--dry-run` prints the resolved recipe, the
resources of each stage and those of the cluster.
"""

import argparse
import sys
from pathlib import Path

from vlgenrm_ray.entrypoints import train_reward
from vlgenrm_ray.errors import VlGenRMError


def main() -> int:
    """Return the exit code: 0 finished, 1 an error, which names the remedy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override")
    parser.add_argument("--run", type=Path, help="run folder, on a file system all nodes see; default runs/<recipe>")
    parser.add_argument("--address", help="Ray cluster; default: the job's own")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and its resources, then stop")
    arguments = parser.parse_args()
    try:
        train_reward(
            arguments.config,
            overrides=arguments.overrides,
            run=arguments.run,
            address=arguments.address,
            dry_run=arguments.dry_run,
        )
    except VlGenRMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
