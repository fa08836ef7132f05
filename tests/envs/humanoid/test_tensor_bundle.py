"""TensorFlow's checkpoints: bundles written here by the format's rules, pybullet's own, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensor_bundles import MAGIC, number, text, write

from pyrocontrol.envs.humanoid.motion import bullet_data
from pyrocontrol.envs.humanoid.tensor_bundle import read_tensor_bundle

TENSORS = {
    "agent/main/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "agent/main/bias": np.array([1.5, -2.5], np.float64),
    "agent/count": np.array([300], np.int32),
    "agent/step": np.array(7, np.int64),
    "agent/empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("per_block", [1, 100])
def test_tensors_are_read(tmp_path: Path, shards: int, per_block: int) -> None:
    write(tmp_path / "model.ckpt", TENSORS, shards=shards, per_block=per_block)
    for name in ("model.ckpt", "model.ckpt.index"):
        found = read_tensor_bundle(tmp_path / name)
        assert set(found) == set(TENSORS)
        for key, value in TENSORS.items():
            assert found[key].dtype == value.dtype and found[key].shape == value.shape
            np.testing.assert_array_equal(found[key], value)
            assert found[key].flags.writeable


def test_the_policies_of_pybullet_are_read() -> None:
    pytest.importorskip("pybullet_data")
    found = read_tensor_bundle(bullet_data() / "data/policies/humanoid3d/humanoid3d_walk.ckpt")
    assert found["agent/main/actor/0/dense/kernel"].shape == (197, 1024)
    assert found["agent/main/actor/1/dense/kernel"].shape == (1024, 512)
    assert found["agent/main/actor/dense/bias"].shape == (36,)
    assert all(np.isfinite(tensor).all() for tensor in found.values())
    # Known to the format's owner, not to its reader: the phase is scaled to -1..1.
    assert found["agent/resource/s_norm/mean"][0] == found["agent/resource/s_norm/std"][0] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"kind": 1}, r"compressed \(snappy\), which is not supported", id="snappy"),
        pytest.param({"kind": 4}, r"compressed \(kind 4\)", id="other-compression"),
        pytest.param({"types": {"flags": 7}}, "flags has TensorFlow's type 7, which is not supported", id="strings"),
        pytest.param({"types": {"flags": 1}}, r"flags has shape \[2\] of float32, but 2 bytes", id="wrong-size"),
        pytest.param({"more": text(7, b"")}, "is split into slices", id="slices"),
        pytest.param({"header": number(2, 1)}, "big-endian", id="big-endian"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write(tmp_path / "model.ckpt", TENSORS, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"model.ckpt.index: .*{message}"):
        read_tensor_bundle(tmp_path / "model.ckpt")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model.ckpt.index is missing"):
        read_tensor_bundle(tmp_path / "model.ckpt")
    write(tmp_path / "model.ckpt", TENSORS, shards=2)
    (tmp_path / "model.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match="model.ckpt.data-00001-of-00002 is missing"):
        read_tensor_bundle(tmp_path / "model.ckpt")


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.ckpt", TENSORS)
    shard = tmp_path / "model.ckpt.data-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data-00000-of-00001 is truncated: flags ends at byte"):
        read_tensor_bundle(tmp_path / "model.ckpt")


def test_any_changed_bit_of_a_shard_is_noticed(tmp_path: Path) -> None:
    long = {"agent/long": np.arange(3000, dtype=np.float64)}
    write(tmp_path / "model.ckpt", TENSORS | long)
    assert np.array_equal(read_tensor_bundle(tmp_path / "model.ckpt")["agent/long"], long["agent/long"])
    shard = tmp_path / "model.ckpt.data-00000-of-00001"
    whole = shard.read_bytes()
    for place in [0, 255, 256, 5000, *range(len(whole) - 80, len(whole))]:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"data-00000-of-00001: \S+ is damaged: its CRC is another"):
            read_tensor_bundle(tmp_path / "model.ckpt")


def test_every_truncated_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.ckpt", TENSORS)
    index = tmp_path / "model.ckpt.index"
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated"):
            read_tensor_bundle(tmp_path / "model.ckpt")
        if length >= len(whole) - len(MAGIC):
            continue
        index.write_bytes(whole[:length] + MAGIC)  # as if it had an end all the same
        with pytest.raises(ValueError, match="model.ckpt.index"):
            read_tensor_bundle(tmp_path / "model.ckpt")


def test_an_index_with_another_byte_is_refused_or_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path / "model.ckpt", TENSORS)
    index = tmp_path / "model.ckpt.index"
    whole = index.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for change in (1, 128):
            index.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                found = read_tensor_bundle(tmp_path / "model.ckpt")
            except ValueError as error:
                assert "model.ckpt.index" in str(error)
                refused += 1
            else:  # a byte that means nothing: the padding of the footer, the block of meta-data
                assert all(np.array_equal(found[key], value) for key, value in TENSORS.items())
    assert refused > 1.5 * (len(whole) - 80)
