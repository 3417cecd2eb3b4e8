"""Files that are no checkpoint's: whatever a reader makes of them, one sentence comes of it."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.files.checkpoint import open_weights
from models.files.config import read_json
from models.files.tensors import read_plain, read_tensors
from models.parts.vq import count_numbered
from models.registry import family_of
from rewards.errors import RewardError
from rewards.files.weights import read_tensors as read_reward


def zipped(**members: bytes) -> bytes:
    """A zip file as torch writes one, with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", content)
    return file.getvalue()


def storage(*named: object) -> bytes:
    """A pickle whose one tensor stands for a storage that is described wrongly."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return named if obj is Ellipsis else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"weight": ...})
    return file.getvalue()


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(64)}, file)
    return file.getvalue()


MALFORMED = {
    "empty": b"",
    "text": b"<!DOCTYPE html>",
    "zip of nothing": zipped(),
    "zip without data": zipped(version=b"3"),
    "zip of a number": zipped(data_pkl=pickle.dumps(3, 2), version=b"3"),
    "version in words": zipped(data_pkl=pickle.dumps({}, 2), version=b"three", byteorder=b"middle"),
    "storage of no kind": zipped(data_pkl=storage("storage", 3, "0", "cpu", 4), version=b"3"),
    "storage of too few words": zipped(data_pkl=storage("storage"), version=b"3"),
    "storage that is none": zipped(data_pkl=storage("module"), version=b"3"),
    "a stack that is empty": zipped(data_pkl=b"\x80\x02.", version=b"3"),
    "a memo that was never made": zipped(data_pkl=b"\x80\x02h\x07.", version=b"3"),
    "a mark that is not there": zipped(data_pkl=b"\x80\x02t.", version=b"3"),
    "half a file": saved()[: len(saved()) // 2],
    "the end of a file": saved()[200:],
    "the old format, cut": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2),
    "a plain pickle": pickle.dumps({"weight": 3}, 2),
    "a list": pickle.dumps([], 2),
    "names that are none": pickle.dumps({3: None}, 2),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_no_reader_s_own_error_comes_through(case: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(MALFORMED[case])
    for read, refusal in ((read_tensors, ModelError), (read_reward, RewardError)):
        with pytest.raises(refusal) as refused:
            read(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_bytes_at_random(tmp_path: Path):
    """A hundred files with some of their bytes changed: read, or refused."""
    generator = torch.Generator().manual_seed(0)
    path, whole = tmp_path / "weights.pt", saved()
    refused = 0
    for _ in range(100):
        bytes_ = bytearray(whole)
        for place in torch.randint(len(whole), (8,), generator=generator).tolist():
            bytes_[place] = int(torch.randint(256, (), generator=generator))
        path.write_bytes(bytes(bytes_))
        try:
            read_plain(path)
        except ModelError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 100_000, "is nested too deep"),
        ('{"a":' * 100_000, "is nested too deep"),
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"a": "\xff"}', "is not JSON"),
    ],
)
def test_a_config_that_is_none(content: str, says: str, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="latin-1")
    for read in (lambda: read_json(path), lambda: family_of(str(tmp_path))):
        with pytest.raises(ModelError, match=says):
            read()


def test_a_folder_instead_of_a_config(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("model_type", [["janus"], {"of": "janus"}, 3, None])
def test_a_model_type_that_is_no_word(model_type: object, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match="has model_type"):
        family_of(str(tmp_path))


@pytest.mark.parametrize("place", ["/etc/passwd", "../outside.bin", "in/../../outside.bin"])
def test_a_shard_outside_the_folder_is_never_opened(place: str, tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "in").mkdir(parents=True)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "outside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"weight": place}}))
    with pytest.raises(ModelError, match=rf"index.json names {place}, which is not beside it"):
        open_weights(folder)


def test_a_shard_in_a_folder_of_its_own(tmp_path: Path):
    (tmp_path / "in").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "in" / "shard.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"weight": "in/shard.bin"}}))
    assert open_weights(tmp_path)["weight"].shape == (2,)


def test_a_number_type_that_torch_lacks(tmp_path: Path):
    header = json.dumps({"weight": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ModelError, match="weight is F4, so the weights are quantised"):
        open_weights(tmp_path)


def test_a_number_in_a_name_is_no_count():
    assert count_numbered(["layers.999999999.weight", "layers.0.weight", "layers.0.bias"], "layers.") == 2


def test_codes_and_adapters_among_a_reward_s_weights(tmp_path: Path):
    path = tmp_path / "weights.pt"
    torch.save({"head.weight": torch.ones(2, 2, dtype=torch.int8), "head.SCB": torch.ones(2)}, path)
    with pytest.raises(RewardError, match=r"head.weight is int8, so the weights are quantised"):
        read_reward(path)
    torch.save({"head.weight": torch.ones(2, 2), "head.lora_A.weight": torch.ones(2, 2)}, path)
    with pytest.raises(RewardError, match=r"head.lora_A.weight is an adapter beside its base"):
        read_reward(path)
    torch.save({"head.weight": torch.ones(2, 2), "position_ids": torch.arange(3)}, path)
    assert read_reward(path).keys() == {"head.weight", "position_ids"}
