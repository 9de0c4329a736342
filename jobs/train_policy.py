"""Train a policy against its rewards, or finish that.

    ray job submit --working-dir . -- python jobs/train_policy.py --config jobs/recipes/qwen3_vl_4b_grpo.yaml

The same command after an interruption goes on from the last checkpoint. `--dry-run` prints the resolved recipe, what
the training asks for and what the cluster has.
"""

import argparse
import sys
from pathlib import Path

from vlgenrm_ray.entrypoints import train_policy
from vlgenrm_ray.errors import VlGenRMError


def main() -> int:
    """Exit code: 0 done, 1 an error that says what to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override")
    parser.add_argument("--run", type=Path, help="run folder, on a file system all nodes see; default runs/<recipe>")
    parser.add_argument("--address", help="Ray cluster; default: the job's own")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    asked = parser.parse_args()
    try:
        train_policy(
            asked.config, overrides=asked.overrides, run=asked.run, address=asked.address, dry_run=asked.dry_run
        )
    except VlGenRMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
