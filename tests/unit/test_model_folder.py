"""A model folder that cannot be used is named before any engine starts."""

import json
import shutil
from pathlib import Path

import pytest

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.cluster.resources import Cluster, Node
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.shapes import pack_path


def weights(last: int = 0) -> bytes:
    """A safetensors file of one tensor of 300,000 bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [300_000], "data_offsets": [0, 300_000]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(299_999) + bytes([last])


def whole(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    configuration = {"model_type": "qwen3_vl", "text_config": {"max_position_embeddings": 512}}
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "model.safetensors").write_bytes(weights())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "processor_config.json").write_text("{}")
    return folder


def test_a_whole_folder_is_found(tmp_path: Path) -> None:
    assert model_folder.locate(str(whole(tmp_path / "m"))) == tmp_path / "m"


def test_on_several_nodes_a_cached_model_of_the_hub_is_copied_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    cached, name, run = whole(tmp_path / "cache" / "snapshot"), "Qwen/Qwen3-VL-4B-Instruct", tmp_path / "run"
    # The hub's cache holds links to files elsewhere in it.
    blob = (cached / "config.json").rename(tmp_path / "cache" / "blob")
    (cached / "config.json").symlink_to(blob)
    spans_machines = False
    monkeypatch.setattr(connection, "spans_machines", lambda: spans_machines)
    assert model_folder.copy_for_nodes(cached, name, run) == cached
    spans_machines = True
    assert model_folder.copy_for_nodes(cached, str(cached), run) == cached, "a path is what the user named"
    shared = model_folder.copy_for_nodes(cached, name, run)
    assert shared == run / "models" / "Qwen--Qwen3-VL-4B-Instruct"
    assert not (shared / "config.json").is_symlink()
    assert model_folder.digest(shared) == model_folder.digest(cached)
    before = shared.stat().st_ino
    assert model_folder.copy_for_nodes(cached, name, run).stat().st_ino == before
    blob.write_text(blob.read_text().replace("}", ', "other": 1}', 1))
    model_folder.copy_for_nodes(cached, name, run)
    assert model_folder.digest(shared) == model_folder.digest(cached)
    assert [path.name for path in shared.parent.iterdir()] == [shared.name]


@pytest.mark.parametrize(("num_nodes", "can_grow", "shared"), [(1, False, False), (2, False, True), (1, True, True)])
def test_on_several_nodes_a_model_of_the_hub_is_written_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_nodes: int, can_grow: bool, shared: bool
) -> None:
    """The cache of the driver's machine is a path that means nothing on another."""
    import huggingface_hub

    def download(name: str, local_dir: Path | None = None) -> str:
        assert name == "Qwen/Qwen3-VL-4B-Instruct"
        target = local_dir or tmp_path / "cache"
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(whole(target))

    cluster = Cluster(nodes=(Node(num_cpus=1),) * num_nodes, can_grow=can_grow)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(connection, "is_connected", lambda: True)
    monkeypatch.setattr(connection, "describe_cluster", lambda: cluster)
    expected = tmp_path / "run" / "models" / "Qwen--Qwen3-VL-4B-Instruct" if shared else tmp_path / "cache"
    assert model_folder.locate_for_run("Qwen/Qwen3-VL-4B-Instruct", tmp_path / "run") == expected
    local = str(whole(tmp_path / "m"))
    assert model_folder.locate_for_run(local, tmp_path / "run") == Path(local)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("processor_config.json", "no image processor"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, lost: str, message: str) -> None:
    (whole(tmp_path / "m") / lost).unlink()
    with pytest.raises(InputError, match=message) as error:
        model_folder.locate(str(tmp_path / "m"))
    assert str(tmp_path / "m") in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_an_unreadable_configuration_is_named(tmp_path: Path, text: str) -> None:
    (whole(tmp_path / "m") / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        model_folder.locate(str(tmp_path / "m"))


@pytest.mark.parametrize("num_bytes", [4, 20, 1000])
def test_weights_cut_short_are_named(tmp_path: Path, num_bytes: int) -> None:
    (whole(tmp_path / "m") / "model.safetensors").write_bytes(weights()[:num_bytes])
    with pytest.raises(InputError, match=r"model\.safetensors is cut short"):
        model_folder.locate(str(tmp_path / "m"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (whole(tmp_path / "m") / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-2\.safetensors is missing"):
        model_folder.locate(str(tmp_path / "m"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": ["a"]}', "\x00\xff", "[" * 100_000])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (whole(tmp_path / "m") / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        model_folder.locate(str(tmp_path / "m"))


@pytest.mark.parametrize(
    "header", [b"[]", b'{"w": 3}', b'{"w": {"data_offsets": []}}', b'{"w": {"data_offsets": [0, "9"]}}']
)
def test_a_malformed_header_of_weights_is_named(tmp_path: Path, header: bytes) -> None:
    (whole(tmp_path / "m") / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model\.safetensors is cut short"):
        model_folder.locate(str(tmp_path / "m"))


def test_a_path_that_is_too_long_is_an_input_error() -> None:
    for name in ("a" * 4000, "/" + "a" * 300, "a/" * 2500):
        for use in (model_folder.locate, lambda name: model_folder.check(Path(name))):
            with pytest.raises(InputError, match="cannot be read") as error:
                use(name)
            assert len(str(error.value)) < 600


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, file: str) -> None:
    folder = whole(tmp_path / "m")
    (folder / file).unlink()
    # Root may read everything, but no folder as a file.
    (folder / file).mkdir()
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        model_folder.version(folder)
    if file == "model.safetensors":
        with pytest.raises(InputError, match=f"{file} cannot be read"):
            model_folder.check(folder)
    else:
        with pytest.raises(InputError, match=f"{file} cannot be read"):
            model_folder.compatibility_traits(folder)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(tmp_path / "m")

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    for use in (model_folder.check, model_folder.digest):
        with pytest.raises(InputError, match=r"m: cannot be read \(Permission denied\)"):
            use(folder)


def test_the_length_limit_is_that_of_the_model(tmp_path: Path) -> None:
    assert model_folder.max_positions(whole(tmp_path / "m")) == 512


def test_no_folder_stops_the_engine_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        VllmGenerator(VllmConfig(model=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="no model is named"):
        VllmGenerator(VllmConfig())


def test_the_digest_tells_models_apart(tmp_path: Path) -> None:
    folder = whole(tmp_path / "m")
    first = model_folder.digest(folder)
    assert model_folder.digest(whole(tmp_path / "copy")) == first
    (folder / "notes.md").write_text("not part of the model")
    assert model_folder.digest(folder) == first
    (folder / "model.safetensors").write_bytes(weights(last=1))
    assert model_folder.digest(folder) != first


def test_traits_ignore_the_weights_and_the_version_does_not(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        shutil.copytree(pack_path("vlm"), folder)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "0.0"}))
    (other / "model.safetensors").write_bytes(b"other weights")
    assert model_folder.compatibility_traits(one) == model_folder.compatibility_traits(other)
    assert model_folder.version(one).startswith("one-")
    assert model_folder.version(one).removeprefix("one") != model_folder.version(other).removeprefix("other")
    (other / "tokenizer.json").write_text("{}")
    assert model_folder.compatibility_traits(one) != model_folder.compatibility_traits(other)
