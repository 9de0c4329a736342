"""Serve a judge over HTTP.

    ray job submit --working-dir . -- python jobs/serve.py --model /mnt/shared/runs/a/best --config RECIPE
    serve run jobs.serve:application model=pack:vlm config=jobs/recipes/shapes.yaml
    serve deploy cluster/serve.yaml

Tokens are read from VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN. See `vlgenrm serve --help`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from vlgenrm_ray.entrypoints import serve, serving_config
from vlgenrm_ray.errors import VlGenRMError


def application(args: dict[str, str]) -> Any:
    """Build the Ray Serve application for `serve run`, `serve deploy` and KubeRay.

    Args:
        args: `model` (required), `config` (recipe) and `replicas`, as for `main`.
    """
    from vlgenrm_ray.serving.ingress import application

    path = Path(args["config"]) if "config" in args else None
    return application(serving_config(args["model"], path=path, replicas=args.get("replicas")))


def main() -> int:
    """Serve until interrupted. Returns the exit code: 0, or 1 after an error that names the remedy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GenRM: a model folder that all nodes see, or pack:vlm")
    parser.add_argument("--config", type=Path, help="recipe (YAML); default: shapes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override")
    parser.add_argument("--replicas", help="engines: a number, or auto by the queue's depth; default: the recipe's")
    parser.add_argument("--image-root", dest="image_roots", action="append", default=[], help="folder of images")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="Ray cluster; default: the job's own")
    arguments = vars(parser.parse_args())
    try:
        serve(arguments.pop("model"), path=arguments.pop("config"), **arguments)
    except VlGenRMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
