"""Hugging Face model folders: located, checked for completeness, identified by a digest."""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.errors import InputError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INCIDENTAL = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
"""Entries of a configuration that do not describe the model."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
JUDGE_SETTINGS = "judge.json"
"""Settings that a judge's folder states about itself, see `judge.model_settings`. They are no part of its weights."""
JUDGE_PROMPT = "judge_prompt.txt"
"""Prompt with which a discriminative judge was trained."""
JudgeKind = Literal["pointwise", "pairwise", "discriminative"]
_PIECES = 16
_PIECE_BYTES = 64 * 1024


def locate(model: str, *, shared: Path | None = None) -> Path:
    """Return the folder of a model, given its path or its name on the Hugging Face hub (downloaded if needed).

    Args:
        model: Path or hub name.
        shared: Folder on a file system that all nodes see. A model of the hub is written there, in place of the cache
            of this machine, whose path means nothing on another.

    Raises:
        InputError: There is no such model, or a part of it is missing.
    """
    folder = Path(model)
    if not model:
        raise InputError("no model is named: set `model` to a model folder or to a name on the Hugging Face hub")
    with _readable(folder):
        here = folder.exists()
    if not here and _HUB_NAME.fullmatch(model):
        folder = _fetch(model, shared)
    check(folder)
    return folder.absolute()


def locate_for_run(model: str, run: Path) -> Path:
    """Return the folder of a model like `locate`, at a path that all nodes of the connected cluster see.

    On a cluster of several nodes a model of the hub is written below the run folder, `<run>/models/<name>`.
    """
    return locate(model, shared=_shared_folder(model, run) if connection.spans_machines() else None)


def copy_for_nodes(folder: Path, model: str, run: Path) -> Path:
    """Return the folder of a located model at a path that all nodes of the connected cluster see.

    A model of the hub lies in the cache of this machine, whose path means nothing on another. On a cluster of several
    nodes it is copied to `<run>/models/<name>`, without another download; a copy of other content is replaced.

    Args:
        folder: Folder that `locate` returned.
        model: Path or hub name that it was given.
        run: Run folder, on a file system that all nodes see.
    """
    if Path(model).exists() or not _HUB_NAME.fullmatch(model) or not connection.spans_machines():
        return folder
    shared = _shared_folder(model, run)
    if shared.exists() and digest(shared) == digest(folder):
        return shared
    shared.parent.mkdir(parents=True, exist_ok=True)
    partial = shared.with_name(f".{shared.name}-{uuid.uuid4().hex}")
    try:
        shutil.copytree(folder, partial)
        shutil.rmtree(shared, ignore_errors=True)
        partial.rename(shared)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return shared


def _shared_folder(model: str, run: Path) -> Path:
    return run.absolute() / "models" / model.replace("/", "--")


def _fetch(name: str, shared: Path | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Into a folder, files that are there and whole are not downloaded again.
        return Path(snapshot_download(name, local_dir=shared))
    # The hub's client raises its own, requests' and the operating system's errors.
    except Exception as error:
        raise InputError(
            f"model {name!r} is no folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); download it where there is a network "
            "(`hf download`) and give the folder's path"
        ) from error


def check(folder: Path) -> None:
    """Raise InputError unless `folder` holds a configuration, whole weights, a tokenizer and an image processor."""
    with _readable(folder):
        _check(folder)


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"model folder {folder}: no such folder; check the path (every node must see it)")
    # Listed, as a glob passes over a folder that may not be read.
    weights = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    configuration(folder)
    if not weights:
        raise InputError(f"model folder {folder}: no weights (*.safetensors); export or download the model again")
    if missing := sorted(_indexed(folder) - {file.name for file in weights}):
        raise InputError(f"model folder {folder}: {missing[0]} is missing; export or download the model again")
    for file in weights:
        if file.suffix == ".safetensors" and not _is_whole(file):
            raise InputError(f"model folder {folder}: {file.name} is cut short; export or download the model again")
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise InputError(f"model folder {folder}: no tokenizer (tokenizer.json); save the processor into it as well")
    if not any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(
            f"model folder {folder}: no image processor (preprocessor_config.json); name a model that sees images, "
            "or save its processor into the folder as well"
        )


def _indexed(folder: Path) -> set[str]:
    """Return the files that the index of the weights names; none without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return set()
    try:
        return {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"model folder {folder}: {index.name} cannot be read ({error!r}); export or download the model again"
        ) from error


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system (permissions, a name too long) into an InputError."""
    try:
        yield
    except OSError as error:
        inside = error.filename is not None and Path(error.filename) != folder
        what = f"{Path(error.filename).name} cannot" if inside else "cannot"
        raise InputError(
            f"model folder {_shortened(str(folder))}: {what} be read ({error.strerror or error}); check the path and "
            "the rights of whoever runs this"
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:200]}..."


def max_positions(folder: Path) -> int | None:
    """Return the longest sequence that the model supports, in tokens; None if its configuration does not state it."""
    outer = configuration(folder)
    text = outer.get("text_config") or outer
    positions = text.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def configuration(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`, which has a `model_type`. Raises InputError if it cannot be read."""
    try:
        read = json.loads((folder / "config.json").read_text())
        read["model_type"]
    except FileNotFoundError:
        raise InputError(f"model folder {folder}: no config.json; give a folder in the Hugging Face format") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"model folder {folder}: config.json cannot be read ({error!r}); export the model again"
        ) from error
    return cast("dict[str, Any]", read)


def compatibility_traits(folder: Path) -> dict[str, Any]:
    """Return the settings that decide a model's shapes, tokens and kind of judge.

    Models with equal traits can exchange weights.
    """
    traits = {name: value for name, value in configuration(folder).items() if name not in _INCIDENTAL}
    files = (folder / name for name in _TOKENIZERS)
    with _readable(folder):
        tokenizer = next(file for file in files if file.exists())
        traits |= {tokenizer.name: hashlib.sha256(tokenizer.read_bytes()).hexdigest()}
    return traits | {"judge": judge_kind(folder) or "pointwise"}


def judge_kind(folder: Path) -> JudgeKind | None:
    """Return the kind of judge that a model was trained to be; None if its folder does not state it.

    Raises InputError if the statement cannot be read.
    """
    path = folder / JUDGE_SETTINGS
    if not path.exists():
        return None
    try:
        kind = json.loads(path.read_text())["kind"]
        if kind not in get_args(JudgeKind):
            raise ValueError(f"kind is {kind!r}, expected {' or '.join(get_args(JudgeKind))}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"model folder {folder}: {JUDGE_SETTINGS} cannot be read ({error}); correct it, or set judge.kind"
        ) from error
    return cast("JudgeKind", kind)


def write_judge_kind(folder: Path, kind: JudgeKind) -> None:
    """Record in a model folder which kind of judge its model was trained to be."""
    (folder / JUDGE_SETTINGS).write_text(json.dumps({"kind": kind}) + "\n")


def version(folder: Path, name: str | None = None) -> str:
    """Return the version of a judge: its name (default: the folder's) and 8 digits of the hash of its rewards.

    The digits are those of `digest`, for a folder with settings of the judge of both.
    """
    digits, settings = digest(folder), folder / JUDGE_SETTINGS
    with _readable(folder):
        if settings.exists():
            digits = hashlib.sha256(digits.encode() + settings.read_bytes()).hexdigest()
    return f"{name or folder.name}-{digits[:8]}"


def _is_whole(file: Path) -> bool:
    """Return whether a safetensors file is complete. Its header states where the last tensor ends."""
    with file.open("rb") as stream:
        size = file.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            return False
        text = stream.read(length)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(8 + length + max(ends, default=0) <= size)
    # The header is not JSON, or has another structure.
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return False


def digest(folder: Path) -> str:
    """Return 16 hexadecimal digits that identify a model: a hash of names, sizes and evenly spaced parts of its files.

    Reads at most a megabyte per file, so it is fast for large models; training changes weights everywhere. The settings
    of a judge (`JUDGE_SETTINGS`) do not count: a calibration does not make another model. Raises InputError if a file
    cannot be read.
    """
    total = hashlib.sha256()
    with _readable(folder):
        for file in sorted(folder.iterdir()):
            is_part = file.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
            if not is_part or file.name == JUDGE_SETTINGS:
                continue
            size = file.stat().st_size
            total.update(f"{file.name}:{size};".encode())
            with file.open("rb") as stream:
                for piece in range(_PIECES):
                    stream.seek(max(size - _PIECE_BYTES, 0) * piece // (_PIECES - 1))
                    total.update(stream.read(_PIECE_BYTES))
    return total.hexdigest()[:16]
