"""The commands about models, as the Makefile calls them: what they print, and what they say of a mistake."""

from pathlib import Path

import pytest
from synthetic import make_dataset

from pipeline.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    make_dataset(root / "data", images=20)
    (root / "mine.toml").write_text(
        f'name = "mine"\n[train.clip]\nmodel = "{ROOT}/recipes/models/clip.toml"\nscale = "tiny"\n'
    )
    return root


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_models_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The one that the documentation shows."""
    assert main(["models"]) == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["study", "--models", "clip nobody"], "there is no model 'nobody'"),
        (["study", "--models", "clip", "--features", "nothing"], "no features 'nothing'"),
        (["study", "--models", "clip", "--seeds", "0"], "--seeds 0 is too few"),
        (["study", "--models", "clip", "--scale", "huge"], "clip has no scale 'huge'"),
        (["study", "--models", "clip", "--batch", "1"], "--batch 1 is too few"),
        (["study", "--models", " "], "no model is named"),
        (["export-model", "--only", "other", "--out", "out"], "the recipe has no 'other'"),
        (["export-model", "--only", "clip,clip2", "--out", "out"], "the recipe has no 'clip2'"),
        (["export-model", "--only", "", "--out", "out"], "one model is exported at a time"),
        (["export-model", "--only", "clip", "--out", "out"], "run `make train` first"),
        (["embed", "--only", "other"], "the recipe has no 'other'"),
        (["embed"], "run `make train` first"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(
    command: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], "--data", f"{folder}/data", "--recipe", f"{folder}/mine.toml", *command[1:]]) == 1
    assert said in capsys.readouterr().err
