"""Fixtures: a made-up corpus behind a real web server, and a detector's checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path

import corpus
import pytest
from served import FAULTS, Web

from pipeline.demo.server import serving

# Ray's workers import the tests' own functions from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as ultralytics writes it, of a small detector of seven made-up classes."""
    import torch

    from pipeline.extractors.detector import import_ultralytics, settle

    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = DetectionModel("yolo11n.yaml", nc=7, verbose=False)
        settle(model)
        # A head that says something: untouched, every class of every anchor scores all but the same.
        with torch.no_grad():
            for branch in model.model[-1].cv3:
                branch[-1].weight.normal_(0, 0.1)
                branch[-1].bias.fill_(-1.0)
    path = tmp_path_factory.mktemp("detector") / "made_up.pt"
    torch.save({"model": model.half(), "train_args": {}}, path)
    return path


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory, detector: Path) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    made = corpus.make(folder / "pictures")
    with serving(made.pictures, 0, FAULTS) as base_url:
        lists = made.write_lists(folder / "lists", base_url)
        recipe = folder / "small.toml"
        inputs = ", ".join(f'"{path}"' for path in lists)
        recipe.write_text(corpus.RECIPE.format(inputs=inputs, detector=detector))
        yield Web(made, folder, base_url, lists, recipe)
