"""Archives and files that would unpack to far more than they are."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from promptcl.config.schema import DataConfig
from promptcl.data import archive
from promptcl.data.archive import open_tree
from promptcl.data.inputs import unlabelled
from promptcl.data.splits import load_split
from promptcl.errors import UserError

MIB = 2**20


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE", 4 * MIB)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("c/a.png", bytes(5 * MIB))
    with pytest.raises(UserError, match=r"'c/a.png' in .*a\.zip unpacks to 5 MiB; at most 4 are read"):
        open_tree(tmp_path / "a.zip").read("c/a.png")
    with pytest.raises(UserError, match=r"does not decode as an image .*unpacks to 5 MiB"):
        unlabelled(tmp_path / "a.zip").image(0)


@pytest.mark.slow
def test_gzip_bomb(tmp_path: Path) -> None:
    """80 MiB in 80 kB: more than 64 MiB and more than a hundred times its size."""
    with gzip.open(tmp_path / "a.tar.gz", "wb", 9) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for i in range(80):
            info = tarfile.TarInfo(f"c/{i}.png")
            info.size = MIB
            tar.addfile(info, io.BytesIO(bytes(MIB)))
    assert (tmp_path / "a.tar.gz").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"unpacks to more than 64 MiB; unpack it and give the folder"):
        open_tree(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_files_that_claim_to_be_huge(tmp_path: Path, suffix: str) -> None:
    """A size of terabytes in a header, and a sparse file whose holes take no room."""
    huge = tarfile.TarInfo("c/a.png")
    huge.size = 2**42
    sparse = tarfile.TarInfo("c/b.png")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(2**42)}
    sparse.pax_headers |= {"GNU.sparse.map": f"{2**42},0", "GNU.sparse.name": "c/b.png"}
    for number, info in enumerate((huge, sparse)):
        data = info.tobuf(tarfile.PAX_FORMAT if info is sparse else tarfile.GNU_FORMAT) + bytes(10240)
        (tmp_path / f"{number}{suffix}").write_bytes(gzip.compress(data) if suffix == ".tgz" else data)
    with pytest.raises(UserError, match=r"unpacks to 4,194,304 MiB"):
        open_tree(tmp_path / f"0{suffix}")
    assert open_tree(tmp_path / f"1{suffix}").paths == []


@pytest.mark.slow
def test_npz_bomb(tmp_path: Path) -> None:
    part = np.zeros((300, 1000, 1000), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=part, train_labels=np.zeros(300, np.int64))
    assert (tmp_path / "a.npz").stat().st_size < MIB
    with pytest.raises(UserError, match=r"unpacks to 286 MiB, more than 100 times its size"):
        load_split(DataConfig(name="npz", root=str(tmp_path / "a.npz")))
