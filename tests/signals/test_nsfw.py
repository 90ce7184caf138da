"""Nudity against the package's own detector, on photographs that other packages carry."""

from pathlib import Path

import cv2
import matplotlib
import nudenet
import nudenet.nudenet
import numpy as np
import pytest
from made_dataset import Image, made_dataset, run_filter, signal, verdicts

from pipeline.signals.nsfw import _EXPOSED, Nsfw

LABELS = vars(nudenet.nudenet)["__labels"]


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    from ultralytics.utils import ASSETS

    paths = [*sorted(Path(ASSETS).glob("*.jpg")), Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    photos = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    noise = np.random.default_rng(0).integers(0, 256, (40, 333, 3), dtype=np.uint8)
    return [*(cv2.resize(photo, (384, 384 * photo.shape[0] // photo.shape[1])) for photo in photos), noise]


def by_the_package(detector: nudenet.NudeDetector, picture: np.ndarray) -> np.ndarray:
    """(22, anchors): what its network says of its own preparation of the picture."""
    prepared = nudenet.nudenet._read_image(np.ascontiguousarray(picture[:, :, ::-1]), 320)[0]
    return detector.onnx_session.run(None, {detector.input_name: prepared})[0][0]


def test_the_classes_are_the_exposed_ones() -> None:
    assert {name: LABELS[place] for name, place in _EXPOSED.items()} == {
        name: f"{name.upper().replace(' ', '_')}_EXPOSED" for name in _EXPOSED
    }


def test_equals_the_package(photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    # On harmless photographs the exposed classes score nothing: others stand in for them.
    stand_ins = {name.lower(): place for place, name in enumerate(LABELS) if name.startswith(("FACE", "ARMPITS"))}
    monkeypatch.setattr("pipeline.signals.nsfw._EXPOSED", stand_ins)
    detector = nudenet.NudeDetector()
    found = Nsfw().measurer()(photographs)["nsfw"].to_pylist()
    detected = []
    for picture, value in zip(photographs, found, strict=True):
        said = by_the_package(detector, picture)[4:]
        wanted = [said[place, anchor] for anchor, place in enumerate(said.argmax(0)) if place in stand_ins.values()]
        assert value == pytest.approx(max(wanted, default=0), abs=1e-4)
        boxes = detector.detect(np.ascontiguousarray(picture[:, :, ::-1]))
        detected.append(max((box["score"] for box in boxes if box["class"].lower() in stand_ins), default=None))
        if detected[-1] is not None:
            assert value >= detected[-1] - 1e-4
    assert any(score is not None and score > 0.5 for score in detected)


def test_the_stage_judges_by_it_and_a_batch_changes_nothing(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    contents = [cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes() for picture in photographs]
    images = [Image(f"http://a/{place}", content) for place, content in enumerate([*contents, b"no picture"])]
    dataset = made_dataset(tmp_path, [(image.url, "a text") for image in images], [images])
    run_filter(dataset, {"max_nsfw": 0.0})
    values = [row["nsfw"] for row in signal(dataset, "nsfw")]
    assert values[-1] is None
    alone = [Nsfw().measurer()([picture])["nsfw"][0].as_py() for picture in photographs]
    assert values[:-1] == pytest.approx(alone, abs=1e-5)
    above = {url for url, _ in verdicts(dataset)}
    assert above == {f"http://a/{place}" for place, value in enumerate(values[:-1]) if value > 0}
