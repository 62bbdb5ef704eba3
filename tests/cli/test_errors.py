"""What every command makes of errors of the system and of memory."""

from __future__ import annotations

import errno

import pytest
import torch
import typer

from promptcl.cli.errors import explain, one_sentence


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
