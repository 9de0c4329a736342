"""CPUs of the connected Ray that no actor holds."""

import time


def all_cpus_are_free(within_s: float = 30.0) -> bool:
    """Wait until all of Ray's CPUs are free; return False on timeout."""
    import ray

    deadline = time.monotonic() + within_s
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
