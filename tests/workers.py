"""Workers of torch.distributed without Ray Train, which takes longer to start than these tests take to run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vlgenrm_ray.engines.deepspeed_config import worker_environment

NUM_WORKERS = 2


def run_on_workers(function: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run `function(*args)` in two processes of one process group. Raises if one fails.

    Args:
        function: Function of a module whose import does not import torch.
        folder: Empty folder.
        args: Picklable arguments.
    """
    import torch

    with patch.dict(os.environ, worker_environment(1, gpu=False)):
        torch.multiprocessing.spawn(_run, (folder / "rendezvous", function, args), nprocs=NUM_WORKERS)


def _run(rank: int, rendezvous: Path, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    # DeepSpeed reads it; a launcher would set it.
    os.environ["LOCAL_RANK"] = str(rank)
    address = f"file://{rendezvous}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=NUM_WORKERS)
    function(*args)
    torch.distributed.destroy_process_group()
