"""What every command makes of errors of the system and of memory."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import torch
import typer

from promptcl.cli.errors import explain, one_sentence
from promptcl.errors import UserError
from promptcl.recipes import load_config


def test_out_of_memory_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def torch_on_the_cpu() -> None:
        torch.empty(1 << 50)

    def python() -> None:
        bytearray(1 << 60)

    def gpu() -> None:  # no GPU is needed to raise what torch raises there
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    for command in (torch_on_the_cpu, python, gpu):
        with pytest.raises(typer.Exit) as stopped:
            one_sentence(command)()
        assert stopped.value.exit_code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: out of memory (")
        assert "lower train.batch_size, eval.batch_size, data.cache_mb or backbone.image_size" in line


def test_other_runtime_errors_are_not_hidden() -> None:
    def wrong() -> None:
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="size"):
        one_sentence(wrong)()


def test_full_disk_and_no_permission_are_sentences() -> None:
    assert "no disk space left" in explain(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    assert "no permission" in explain(PermissionError(errno.EACCES, "Permission denied", "runs/x"))
    assert explain(OSError(errno.EIO, "Input/output error", "a.png")) == "a.png: Input/output error"


@pytest.mark.parametrize("setting", ["train.epocs=1", "train.epochs=0", "data.cache_mb=lots", "tasks=no"])
def test_a_bad_setting_is_named_before_torch_is_imported(setting: str) -> None:
    code = (
        "import sys; from promptcl.cli.main import main\n"
        f"sys.argv = ['promptcl', 'train', 'demo', {setting!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    sys.exit(3 if 'torch' in sys.modules else end.code)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert setting.partition("=")[0] in found.stderr


@pytest.mark.parametrize(
    ("setting", "meant"), [("train.prompt_lr=1", "method.prompt_lr"), ("prompt_lenght=3", "method.prompt_length")]
)
def test_an_option_of_the_method_in_the_wrong_section_is_found(setting: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        load_config("l2p", [setting])
