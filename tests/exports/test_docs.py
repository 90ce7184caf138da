"""docs/exports.md says what is so: its programs run, and its command line is open_clip's."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from kept_web import Web
from test_exports import FIFTYONE, exported

DOCS = Path(__file__).parents[2] / "docs" / "exports.md"


def section(name: str) -> str:
    return DOCS.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def programs(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section(name), re.DOTALL)


@pytest.mark.parametrize("name", ["webdataset", "parquet", "jsonl", "huggingface"])
def test_the_programs_print_what_is_there(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    exported(web, name, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for program in programs(name):
        exec(compile(program, f"docs/exports.md, {name}", "exec"), {})
    train = [image for image in web.images.values() if image.split == "train"]
    pairs = sum(len(image.captions) for image in train)
    expected = {
        "webdataset": [str(pairs)],
        "parquet": [str(pairs), str(web.pairs)],
        "jsonl": [f"images/00000/{min(image.key for image in train)}.jpg {len(train)}", str(len(train))],
        "huggingface": [f"False {len(train)}"],  # the made-up metadata has no sizes
    }
    assert capsys.readouterr().out.splitlines() == expected[name]


@pytest.mark.slow
@pytest.mark.skipif(not FIFTYONE, reason="PAIRMILL_FIFTYONE_PYTHON names no Python with fiftyone")
def test_fiftyones_program_prints_what_is_there(web: Web, tmp_path: Path) -> None:
    exported(web, "fiftyone", tmp_path / "out")
    train = sum(image.split == "train" for image in web.images.values())
    (program,) = programs("fiftyone")
    done = subprocess.run([FIFTYONE, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(train)


def test_the_command_line_of_open_clip(web: Web, tmp_path: Path) -> None:
    from open_clip_train.params import parse_args

    (command,) = re.findall(r"```\n(python -m open_clip_train.*?)```", section("open_clip"), re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    arguments = parse_args(words[3:])
    assert words[2] == "open_clip_train.main"
    assert (arguments.dataset_type, arguments.val_num_samples, arguments.workers) == ("webdataset", 235, 2)
    assert arguments.train_data == "out/train/{00000..00005}.tar"
