"""dev.py makes, mends or refuses `.venv`, and judges skipped tests; other files of the repository agree with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dev

ROOT = Path(dev.__file__).parent

TESTS = """
import pytest
def test_passes(): pass
def test_fails_as_expected(): pytest.xfail("known")
def test_skips(): pytest.skip("{reason}")
@pytest.mark.slow
def test_slow(): raise SystemExit("must not run")
"""


@pytest.mark.parametrize("arguments", [[], ["tset"], ["check", "src"], ["fix", "--all"], ["wheel", "a", "b"]])
def test_a_line_that_is_no_command_prints_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main(arguments) == 2
    assert capsys.readouterr().out.startswith("usage: python3 dev.py COMMAND")


def test_what_is_no_environment_is_never_touched(tmp_path: Path) -> None:
    folder, file, link = (tmp_path / name for name in ("folder", "file", "link"))
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("a file")
    link.symlink_to(tmp_path / "gone")
    for path in (folder, file, link):
        with pytest.raises(dev.Stop, match=r"is not a virtual environment \(it has no pyvenv.cfg\)") as stopped:
            dev.make_or_mend(path)
        assert stopped.value.code == 2
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert link.is_symlink()


@pytest.mark.parametrize("missing", ["ensurepip", "venv"])
def test_a_machine_without_venv_is_told_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian leaves these modules out of its python3."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(dev.Stop, match=r"install python3\.\d+-venv \(apt-get install python3\.\d+-venv\)") as stopped:
        dev.make_or_mend(tmp_path / "new")
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_half_made_environments_are_mended(tmp_path: Path) -> None:
    """Without pip, as an interrupted start leaves it; then without a Python, as an update of the system leaves it."""
    venv = tmp_path / "half"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "kept").touch()
    assert not dev.has_pip(venv)
    assert dev.make_or_mend(venv) == sys.version_info[:2]
    assert dev.has_pip(venv)
    assert dev.make_or_mend(venv) == sys.version_info[:2]
    assert (venv / "kept").exists()
    python = dev.python_of(venv)
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    assert dev.version_of(venv) == ()
    assert dev.make_or_mend(venv) == sys.version_info[:2]
    assert dev.has_pip(venv)
    assert not (venv / "kept").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a Python in bin/")
def test_fast_tests_and_judged_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "VENV", Path(sys.prefix))
    monkeypatch.setenv("CI", "1")
    file = tmp_path / "test_some.py"
    file.write_text(TESTS.format(reason="the moon is full"))
    with pytest.raises(dev.Stop, match=r"a reason that dev\.py does not accept: the moon is full$"):
        dev.test("--fast", "-n0", str(file))
    assert "1 passed, 1 skipped, 1 deselected, 1 xfailed" in capfd.readouterr().out
    file.write_text(TESTS.format(reason="no CUDA device"))
    dev.test("--fast", "-n0", str(file))
    assert "1 tests skipped, all for accepted reasons" in capfd.readouterr().out


def test_every_accepted_skip_is_one_that_a_test_has() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    unused = [part for pattern in dev.ACCEPTED_SKIPS for part in pattern.split("|") if part not in texts]
    assert unused == []


def test_versions_agree() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version
    assert citation["version"] == version[1]


def test_all_ways_to_check_are_the_same() -> None:
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
    assert hook["entry"] == "python3 dev.py check"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["ci"]["steps"][-1] == {"run": ".ci/run"}
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("python3")] == ["python3 dev.py test", "python3 dev.py wheel"]


def test_what_a_container_forbids_is_compiled_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(dev, "VENV", Path(sys.prefix))
    (tmp_path / "compiled.py").write_text("x = 1")
    dev.run_python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import compiled")
    assert len(list(tmp_path.glob("__pycache__/compiled.*.pyc"))) == 1
