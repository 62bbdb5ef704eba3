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
from promptcl.recipes.load import load_config

MIB = 2**20


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE", 4 * MIB)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("c/a.png", bytes(5 * MIB))
    with pytest.raises(UserError, match=r"'c/a.png' in .*a\.zip unpacks to 5 MiB; at most 4 are read"):
        open_tree(tmp_path / "a.zip").read("c/a.png")
    with pytest.raises(UserError, match=r"does not decode as an image .*unpacks to 5 MiB"):
        unlabelled(tmp_path / "a.zip").image(0)


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


def test_npz_bomb(tmp_path: Path) -> None:
    part = np.zeros((300, 1000, 1000), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=part, train_labels=np.zeros(300, np.int64))
    assert (tmp_path / "a.npz").stat().st_size < MIB
    with pytest.raises(UserError, match=r"unpacks to 286 MiB, more than 100 times its size"):
        load_split(DataConfig(name="npz", root=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "not valid YAML at line 2: an alias"),
        ("[" * 5000, "not valid YAML"),
        ("seed: 2001-99-99", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("# " + "x" * 200_000, "at most 100000 are read"),
    ],
)
def test_yaml_that_would_explode(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "a.yaml"))


def test_code_outside_the_package_is_refused_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("")
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("from promptcl.methods.ncm import *\nfrom promptcl.methods.ncm import Model\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"method\.name=outside\.mine is code outside promptcl.*--trust"):
        load_config("demo", ["method.name=outside.mine"])
    assert load_config("demo", ["method.name=outside.mine"], trust=True).method == {"name": "outside.mine"}
    for name in ("os", "../os", "_base", "__init__"):
        with pytest.raises(UserError, match=r"method\.name="):
            load_config("demo", [f"method.name={name}"])
    with pytest.raises(UserError, match=r"outside\.none"):
        load_config("demo", ["method.name=outside.none"], trust=True)
