"""Training algorithms: one file each, and the table that `policy.algorithm.algorithm` picks from.

To add one, write an `Algorithm` in a file of your own and name it in the recipe by its import path
(`algorithm: package.module:NAME`), or add a file here and an entry to `ALGORITHMS`.
"""

import importlib
from collections.abc import Mapping

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.algorithms.dapo import DAPO
from vlgenrm_ray.policy.algorithms.dpo import DPO
from vlgenrm_ray.policy.algorithms.dr_grpo import DR_GRPO
from vlgenrm_ray.policy.algorithms.grpo import GRPO
from vlgenrm_ray.policy.algorithms.gspo import GSPO
from vlgenrm_ray.policy.algorithms.mdpo import MDPO
from vlgenrm_ray.policy.algorithms.ppo import PPO
from vlgenrm_ray.policy.algorithms.raft import RAFT
from vlgenrm_ray.policy.algorithms.reinforce_plus_plus import REINFORCE_PLUS_PLUS
from vlgenrm_ray.policy.algorithms.reinforce_plus_plus_baseline import REINFORCE_PLUS_PLUS_BASELINE
from vlgenrm_ray.policy.algorithms.rloo import RLOO

ALGORITHMS: Mapping[str, Algorithm] = {
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "gspo": GSPO,
    "dapo": DAPO,
    "rloo": RLOO,
    "reinforce_plus_plus": REINFORCE_PLUS_PLUS,
    "reinforce_plus_plus_baseline": REINFORCE_PLUS_PLUS_BASELINE,
    "ppo": PPO,
    "raft": RAFT,
    "dpo": DPO,
    "mdpo": MDPO,
}


def resolve_algorithm(name: str) -> Algorithm:
    """Return the algorithm of a name in `ALGORITHMS`, or import it from `package.module:NAME`.

    Raises:
        ConfigError: The name is unknown, or the import path does not lead to an `Algorithm`.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"algorithm: {name!r} is unknown; use one of {', '.join(ALGORITHMS)}, or the import path "
            "package.module:NAME of an Algorithm"
        )
    try:
        algorithm = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"algorithm: {name!r} cannot be imported ({error}); give package.module:NAME, with the package on the "
            "PYTHONPATH of all nodes"
        ) from error
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(f"algorithm: {name!r} is a {type(algorithm).__name__}; it must be an Algorithm")
    return algorithm
