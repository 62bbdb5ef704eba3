"""Inputs of benchmarks/fuzz.py that a stranger makes: archives with odd members, results of runs that never ran."""

from __future__ import annotations

import io
import json
import random
import stat
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

from promptcl.reports import report, results


def odd_archives(png: bytes) -> dict[str, list[bytes]]:
    """Archives with members that no archive of images needs: links, devices, names twice, encrypted, packed in bits."""
    made = {}
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
            for part in ("train/a", "test/a"):
                for name in ("0.png", "0.png", "ä.png", ".hidden/x.png", "\udcff.png", "n" * 240 + ".png"):
                    info = tarfile.TarInfo(f"{part}/{name}")
                    info.size = len(png)
                    tar.addfile(info, io.BytesIO(png))
                for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)):
                    for target in ("0.png", f"{part}/0.png", f"{number}.lnk.png", "../../../etc/passwd", "/dev/zero"):
                        info = tarfile.TarInfo(f"{part}/{number}.lnk.png")
                        info.type, info.linkname = kind, target
                        tar.addfile(info)
        made[suffix] = [buffer.getvalue()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for part in ("train/a", "test/a"):
            for name in ("0.png", "0.png", "ä.png", "b\\c.png", "n" * 240 + ".png"):
                archive.writestr(f"{part}/{name}", png)
            for number, target in enumerate(("0.png", "../a/0.png", "1.png", "/dev/zero")):
                link = zipfile.ZipInfo(f"{part}/{number}.link.png")
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(link, target)
    plain = buffer.getvalue()
    at = plain.rindex(b"PK\1\2")
    made[".zip"] = [plain, plain[: at + 8] + b"\1" + plain[at + 9 :]]  # the last one says that it is encrypted
    made[".tar.gz"] += made[".tar"]
    return made


def result_files() -> list[bytes]:
    """results.json of a run with prompts and tasks, and of a stream without tasks."""
    task = {"average_accuracy": 50.0, "forgetting": None}
    common: dict[str, Any] = {
        "average_accuracy": 50.0,
        "forgetting": 5.0,
        "learning_accuracy": 55.0,
        "accuracy_matrix": [[60.0, None], [50.0, 50.0]],
        "trained_parameters": 10,
        "tasks": [{"task": t, "name": name, **task} for t, name in enumerate(("spring", "task 2"))],
        "test_sets": ["spring", "näh"],
        "warnings": ["the pool has collapsed"],
        "seconds": 3.0,
        "backbone": {"name": "x", "sha256": None},
        "device": "cpu",
        "config": {"seed": 1, "method": {"name": "l2p"}, "data": {"root": "/x"}},
        "versions": {"torch": "2"},
        "git_commit": None,
    }
    counts = {"train": [[5, 3], None], "test": [[5, 3, 1], [2, 6]]}
    pool = {"collapsed": False, "train": [{"cosine": 0.5}, None], "test": []}
    schedule: dict[str, Any] = {"steps": 3, "sigma": 2.0, "peaks": [0.0, 4.0], "expected_classes": [1.0, 1.5]}
    schedule["included"] = [[0], [0, 1]]
    made = [{**common, "prompt_selections": counts, "pool": pool}, {**common, "schedule": schedule}]
    return [json.dumps(one, indent=1).encode() for one in made]


_HOSTILE: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 10**30, 2**53, "", "../x", '"><script>', "\udcff\u202e"]
_HOSTILE += [[], {}, [[]], [None], ["x"] * 50, [[1.0] * 3] * 2, [[1], [1, 2]], {"seed": "/../x"}, [{"task": 5}]]


def hostile(document: Any, rng: random.Random) -> Any:
    """The document with another value in one place."""
    if not document or not isinstance(document, dict | list) or rng.random() < 0.1:
        return rng.choice(_HOSTILE)
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = rng.choice(keys)
    if isinstance(document, dict):
        return {**document, key: hostile(document[key], rng)}
    return [hostile(value, rng) if place == key else value for place, value in enumerate(document)]


def read_report(data: bytes, folder: Path) -> object:
    """Read the results of a run; of some that are read, write the page, which takes a hundred times as long.

    Data that are no JSON choose what is wrong in results that are.
    """
    file, rng = folder / "results.json", random.Random(data)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        document = json.loads(rng.choice(result_files()))
        for _ in range(rng.randint(1, 3)):
            document = hostile(document, rng)
        data = json.dumps(document).encode()
    file.write_bytes(data)
    groups = results.read([file])
    if zlib.crc32(data) % 50 == 0:
        report.write([file], folder / "page.html")
    return groups
