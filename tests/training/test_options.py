"""Options of the commands: bad values are refused with what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.errors import ConfigError
from training.__main__ import main
from training.options import check_layers, check_output, layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts", "--out", "p", "--code", "-1"], "argument --code: '-1': give a whole number from 0 on"),
        (
            ["answers", "--prompts", "p", "--out", "a", "--batch", "0"],
            "--batch: '0': give a whole number from 1",
        ),
        (["answers", "--prompts", "p", "--out", "a", "--layers", "1,x"], "'1,x': not numbers of layers"),
        (["answers", "--prompts", "p", "--out", "a", "--layers", "1,1"], "'1,1': give different numbers of layers"),
        (
            ["distil", "--answers", "a", "--out", "x", "--rank", "-1"],
            "--rank: '-1': give a whole number from 0",
        ),
        (["distil", "--answers", "a", "--out", "x", "--epochs", "two"], "--epochs: 'two': not a whole number"),
        (["distil", "--answers", "a", "--out", "x", "--learning-rate", "0"], "'0': give a number above 0"),
        (["distil", "--answers", "a", "--out", "x", "--learning-rate", "x"], "'x': not a number"),
        (["distil", "--answers", "a", "--out", "x", "--max-seconds", "nan"], "'nan': give a number above 0"),
        (["collect", "--answers", "a", "--out", "x", "--least", "2"], "'2': give a number below 1"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_nothing_to_train_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distil", "--answers", "a", "--out", str(tmp_path / "x.safetensors"), "--rank", "0"]) == 1
    assert "--rank: 0 without --layers leaves nothing to train" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "a.npz", ".npz")
    assert [*tmp_path.rglob("*")] == [tmp_path / "new"]
    with pytest.raises(ConfigError, match="give a name that ends with .npz"):
        check_output(tmp_path / "a", ".npz")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: .*; name another file"):
        check_output(tmp_path / "file" / "a.npz", ".npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConfigError, match="cannot be written: it is a folder"):
        check_output(tmp_path / "folder.npz", ".npz")


def test_layers_that_the_model_lacks_are_refused() -> None:
    check_layers(layers("0,24"), 24)
    with pytest.raises(ConfigError, match="--layers: 25; the large model has layers up to 24, its last"):
        check_layers(layers("3,25"), 24)
