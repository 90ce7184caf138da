"""The demo's own input, counted independently pair by pair."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pytest
import reference
from PIL import Image

from pipeline import summary
from pipeline.cli import main
from pipeline.demo import openclipart
from pipeline.demo.server import Faults, serving
from pipeline.errors import PairmillError
from pipeline.recipe import load
from pipeline.store.dataset import Dataset

ROOT = Path(__file__).parents[2]


def is_undecodable(content: bytes) -> bool:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None


def stored_in(dataset: Dataset) -> dict[str, reference.Stored]:
    with dataset.connect() as connection:
        urls = dict(connection.execute("SELECT key, url FROM images WHERE status = 'ok'").fetchall())
    found = {}
    for path in dataset.images.paths(".tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == "jpg":
                    content = tar.extractfile(member)
                    assert content
                    with Image.open(io.BytesIO(content.read())) as image:
                        found[urls[key]] = reference.Stored(key, int(str(imagehash.phash(image)), 16))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demos_numbers_are_those_of_the_independent_count(tmp_path: Path) -> None:
    try:
        library = openclipart.get(ROOT / "data" / "openclipart")
    except PairmillError as error:
        pytest.skip(f"the Open Clip Art Library is not to be had here: {error}")
    demo = ROOT / "recipes" / "demo.toml"
    settings = load(demo)
    with serving(library.png, 0, Faults()) as base_url:
        openclipart.write_lists(library, tmp_path / "lists", base_url)
        lists = [tmp_path / "lists" / name for name in ("titles.csv", "descriptions.csv", "keywords.parquet")]
        recipe = tmp_path / "t.toml"
        recipe.write_text(f'extends = "{demo}"\n[ingest]\ninputs = {[str(path) for path in lists]}\n')
        for stage in ("ingest", "screen", "download", "filter"):
            assert main([stage, "--data", str(tmp_path / "data"), "--recipe", str(recipe)]) == 0
    expected = reference.chain(
        lists,
        library.png,
        vars(Faults()),
        settings.screen.rules,
        settings.filter.rules,
        settings.download.max_megapixels,
        settings.download.max_bytes,
        is_undecodable,
        stored_in(Dataset(tmp_path / "data")),
    )
    numbers = summary.collect(Dataset(tmp_path / "data"))
    assert summary.is_balanced(numbers)
    assert numbers["pairs_in"] == expected.ingested.rows_in == 17_771
    assert numbers["kept"] == len(expected.kept)
    found = Counter({rule: number for rule, number in numbers["dropped"].items() if number})
    found += Counter(numbers["failed"])
    assert found.pop("repeated_pair", 0) == expected.ingested.repeated
    assert found == expected.first_causes()
    with Dataset(tmp_path / "data").connect() as connection:
        kept = {uid for (uid,) in connection.execute("SELECT uid FROM kept").fetchall()}
        screened = Counter(
            connection.execute("SELECT uid, rule, value FROM verdicts WHERE stage = 'screen'").fetchall()
        )
    assert kept == expected.kept
    assert screened == Counter((uid, *verdict) for uid, verdicts in expected.screened.items() for verdict in verdicts)
