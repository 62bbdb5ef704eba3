"""Tensors of any kind and size: the bytes are those of the library, the memory is that of one copy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forked import in_child

from promptcl.errors import UserError
from promptcl.store import files, tensor_file

KIND = files.Kind("thing", 1, "get another")
KINDS = ["float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool", "complex64"]


@pytest.mark.parametrize("last", ["", "plain", 'a "quote"\\ \n\x01\x7f', "größe \u2028 \U0001f600"])
def test_the_bytes_are_those_of_the_library(last: str) -> None:
    tensors = {}
    for number, kind in enumerate(KINDS):
        dtype: torch.dtype = getattr(torch, kind)
        for shape in ((3, 5), (), (0, 4), (1,), (7,)):
            tensors[f"{number % 3}.{kind}{list(shape)}{last}"] = (torch.rand(shape) * 9).to(dtype)
    assert b"".join(tensor_file.pieces(tensors)) == safetensors.torch.save(tensors)
    one = dict(list(tensors.items())[:1])
    assert b"".join(tensor_file.pieces(one)) == safetensors.torch.save(one)
    assert b"".join(tensor_file.pieces({})) == safetensors.torch.save({})


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path: Path) -> None:
    whole = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    tensors = {"whole": whole, "again": whole, "part": whole[1:], "turned": whole.T, "one": whole[0, :1].expand(5)}
    files.write_pair(tmp_path / "thing.json", {"format": 1}, tensors)
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert next(tmp_path.glob("state-*")).read_bytes() == safetensors.torch.save(copies)
    found = files.read_pair(tmp_path / "thing.json", KIND).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    found["whole"].zero_()
    assert torch.equal(found["again"], whole)


def test_a_store_of_earlier_code_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    earlier = Path(__file__).with_name("format-1") / "l2p"
    pair = files.read_pair(earlier / "learner.json", KIND)
    assert files.write_pair(tmp_path / "learner.json", pair.document, pair.tensors) == pair.checksum
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (earlier / path.name).read_bytes()


MEMORY = """
import sys
from pathlib import Path
import torch
from promptcl.runtime.provenance import resident_peak
from promptcl.errors import UserError
from promptcl.store import files

path, size = Path(sys.argv[2]), 300e6
if sys.argv[1] == "write":
    tensors = {f"{n}": torch.full((2_500_000,), float(n)) for n in range(10)} | {"big": torch.ones(48_000_000)}
    tensors["turned"] = torch.ones(2000, 1000).T
    before = resident_peak()
    files.write_pair(path, {"format": 1}, tensors)
else:
    before = resident_peak()
    tensors = files.read_pair(path, files.Kind("thing", 1, "get another")).tensors
    assert all(tensors[f"{n}"].eq(n).all() for n in range(10)) and tensors["big"].eq(1).all()
print((resident_peak() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not say how much memory is used")
def test_a_large_state_is_in_memory_once(tmp_path: Path) -> None:
    """300 MB: writing needs next to nothing more, reading needs them once."""

    def grown(what: str) -> float:
        command = [sys.executable, "-c", MEMORY, what, str(tmp_path / "thing.json")]
        environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    assert grown("write") < 0.1
    assert 0.9 < grown("read") < 1.3


def test_what_was_read_outlives_its_file(tmp_path: Path) -> None:
    """A mapped file that is cut kills who looks at it."""

    def cut() -> None:
        files.write_pair(tmp_path / "thing.json", {"format": 1}, {"x": torch.ones(3000)})
        pair = files.read_pair(tmp_path / "thing.json", KIND)
        os.truncate(next(tmp_path.glob("state-*")), 0)
        assert pair.tensors["x"].sum() == 3000

    assert in_child(cut) == "done"


def test_a_file_of_other_size_under_the_hash_of_nothing(tmp_path: Path) -> None:
    """The size is part of what is checked, whatever the hash of what was not read is."""
    sha256 = hashlib.sha256().hexdigest()
    document = {"format": 1, "state": {"sha256": sha256, "bytes": 7}}
    text = files._text({**document, "checksum": files._checksum(document)})
    (tmp_path / "thing.json").write_bytes(text)
    files._state_file(tmp_path / "thing.json", sha256).write_bytes(b"")
    with pytest.raises(UserError, match="is not what was written: 0 bytes, expected 7; get another"):
        files.read_pair(tmp_path / "thing.json", KIND)
