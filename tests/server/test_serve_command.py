"""``carv serve``'s flags, environment and exit codes, by the command's own ``main``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from carv_server.cli import main
from tests.support.oracle import write_oracle_folder


def _exit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    try:
        code = main(["serve", "--address", "127.0.0.1:0", *arguments])
    except SystemExit as error:  # argparse's way
        code = int(error.code or 0)
    return code, capsys.readouterr().err


FLAGS = [
    (["--evaluation-budget", "0"], "--evaluation-budget: 0 is below 1"),
    (["--evaluation-budget", "many"], "'many' is not a whole number"),
    (["--torch-threads", "-1"], "--torch-threads: -1 is below 0"),
    (["--device", "cpu", "--cuda-graphs"], "--cuda-graphs needs a CUDA device"),
    (["--max-message-mib", "-1"], "--max-message-mib: -1 is below 1"),
    (["--max-draws", "0"], "--max-draws"),
    (["--conditioning-ttl", "0"], "--conditioning-ttl"),
    (["--drain-seconds", "-1"], "--drain-seconds"),
    (["--dtype", "float8"], "'float8' is none of auto, float32, float16, bfloat16"),
    (["--log-level", "loud"], "'loud' is none of"),
    (["--log-format", "xml"], "'xml' is none of text, json"),
    (["--metrics-address", "9464"], "'9464' must be host:port"),
    (["--tracing-endpoint", "collector"], "'collector' must be host:port"),
    (["--tracing-sample-ratio", "2"], "--tracing-sample-ratio: 2"),
    (["--no-such-flag"], "--no-such-flag"),
    (["--teacher", "no-equals-sign"], "expected ID=FOLDER"),
    (["--teacher", "Bad Id=/tmp"], "expected ID=FOLDER"),
    (["--teacher", "a=/tmp,null_class=x"], "null_class must be a class id"),
    (["--teacher", "a=/no/such/folder"], "/no/such/folder"),
]


@pytest.mark.parametrize(("arguments", "said"), FLAGS)
def test_a_bad_flag_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, stderr = _exit(capsys, *arguments)
    assert code == 2
    assert said in stderr
    assert "Traceback" not in stderr


def test_the_environment_is_checked_like_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARV_MAX_RENDERS", "none")
    code, stderr = _exit(capsys)
    assert code == 2 and "--max-renders: 'none' is not a whole number" in stderr
    monkeypatch.delenv("CARV_MAX_RENDERS")
    monkeypatch.setenv("CARV_TEACHER", "a=/no/such/folder;b=/nor/this")
    code, stderr = _exit(capsys)
    assert code == 2 and "/no/such/folder" in stderr


@pytest.mark.parametrize("device", ["tpu"] if torch.cuda.is_available() else ["tpu", "cuda:9"])
def test_a_device_that_is_not_there_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str
) -> None:
    folder = write_oracle_folder(tmp_path)
    code, stderr = _exit(capsys, "--teacher", f"a={folder}", "--device", device)
    assert code == 2
    assert device in stderr and "Traceback" not in stderr


def test_one_id_for_two_teachers_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_oracle_folder(tmp_path)
    code, stderr = _exit(capsys, "--teacher", f"a={folder}", "--teacher", f"a={folder}")
    assert code == 2 and "'a' is registered twice" in stderr


BROKEN = {
    "not json": "{",
    "no object": "[]",
    "no weights": "{}",
    "scales of zero": {"scales": [0.3, 0.0, 1.0]},
    "lengths differ": {"weights": [1.0]},
    "schedule above one": {"schedule": {"alphas_cumprod": [0.9, 1.5]}},
    "schedule of words": {"schedule": "linear"},
    "nested unevenly": {"means": [[1.0], [1.0, 2.0], [3.0]]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_mixture_file_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    file = write_oracle_folder(tmp_path) / "mixture.json"
    change = BROKEN[case]
    if isinstance(change, str):
        file.write_text(change)
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    code, stderr = _exit(capsys, "--teacher", f"a={tmp_path}")
    assert code == 2
    assert "mixture.json" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("where", ["taken", "256.0.0.1:0", "nothing"])
def test_an_address_that_cannot_be_bound_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, analytic_server: str, where: str
) -> None:
    folder = write_oracle_folder(tmp_path)
    address = analytic_server if where == "taken" else where
    code, stderr = _exit(capsys, "--teacher", f"a={folder}", "--address", address)
    assert code == 3
    assert f"cannot listen on {address}" in stderr and "Traceback" not in stderr
