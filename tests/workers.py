"""Workers of torch.distributed without Ray Train, whose start takes longer than what tests ask of a tiny model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vlgenrm_ray.engines.deepspeed_config import worker_environment

NUM_WORKERS = 2


def run_on_workers(work: Callable[..., None], folder: Path, *told: Any) -> None:
    """Run `work(*told)` in two processes that know each other; raises where one fails.

    `work` is a function of a module, and importing that does not import torch. `folder` is an empty one.
    """
    import torch

    with patch.dict(os.environ, worker_environment(1, gpu=False)):
        torch.multiprocessing.spawn(_work, (folder / "rendezvous", work, told), nprocs=NUM_WORKERS)


def _work(rank: int, rendezvous: Path, work: Callable[..., None], told: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    # DeepSpeed wants to know, as from a launcher.
    os.environ["LOCAL_RANK"] = str(rank)
    address = f"file://{rendezvous}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=NUM_WORKERS)
    work(*told)
    torch.distributed.destroy_process_group()
