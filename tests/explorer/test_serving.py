"""The server itself: its errors, its pictures, and several servers over one dataset."""

import io
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from explored import Explored, serving
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import main
from pipeline.explorer.boxes import Box, draw
from pipeline.store.dataset import Dataset
from pipeline.store.pictures import Pictures


def test_a_dataset_that_is_none_is_one_line_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--data", str(tmp_path), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert "make ingest" in said
    assert "Traceback" not in said


def test_a_port_in_use_is_one_line_with_a_remedy(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["explore", "--data", str(made.parent / "data"), "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "PORT=" in said


def test_another_server_over_the_same_dataset(server: Explored) -> None:
    with serving(server.data) as address:
        assert address != server.address
        assert httpx.get(address, timeout=20).status_code == 200
        assert httpx.get(server.address, timeout=20).status_code == 200


def test_pictures_are_served_in_the_size_that_is_asked_for(server: Explored) -> None:
    pictures = Pictures(Dataset(server.data).images)
    with httpx.Client(base_url=server.address, timeout=20) as client, ThreadPoolExecutor(8) as pool:
        keys = [f"00000{number:04d}" for number in range(30)]
        answers = list(pool.map(lambda key: client.get(f"/picture/{key}?side=48"), keys))
    for key, answer in zip(keys, answers, strict=True):
        expected = pictures.thumbnail(key, 48)
        assert (answer.status_code == 200) == (expected is not None)
        if expected is not None:
            assert answer.content == expected
            assert answer.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "path", ["..%2F..%2Fetc%2Fpasswd", "000000000.jpg", "00000", "%00", "000000007", "x" * 5000, "000000000%27--"]
)
def test_what_is_no_key_is_not_found(server: Explored, path: str) -> None:
    assert httpx.get(f"{server.address}/picture/{path}", timeout=20).status_code == 404


def test_odd_sizes_and_extractors_are_taken_for_what_they_can_mean(server: Explored) -> None:
    for query in ("side=-1", "side=1000000000", "boxes=nowhere", "boxes='; DROP VIEW regions --", "boxes=%00"):
        answer = httpx.get(f"{server.address}/picture/000000000?{query}", timeout=20)
        assert answer.status_code == 200
        with Image.open(io.BytesIO(answer.content)) as image:
            assert max(image.size) <= 96
    assert httpx.get(f"{server.address}/picture/000000000?side=x", timeout=20).status_code == 422


BOXES = st.builds(
    Box,
    *[st.floats(width=32) for _ in range(4)],
    st.one_of(st.text(max_size=60), st.just("<script>")),
    st.floats(width=32),
)


@given(boxes=st.lists(BOXES, max_size=5), width=st.integers(1, 80), height=st.integers(1, 80))
def test_any_boxes_can_be_drawn(boxes: list[Box], width: int, height: int) -> None:
    image = Image.new("RGB", (width, height))
    draw(image, boxes)
    assert image.size == (width, height)


def test_a_box_lies_where_it_says() -> None:
    image = Image.new("RGB", (100, 100))
    draw(image, [Box(0.2, 0.4, 0.8, 0.9, "", 1.0)])
    inked = [(x, y) for x in range(100) for y in range(100) if image.getpixel((x, y)) != (0, 0, 0)]
    assert min(x for x, _ in inked) == 20
    assert max(x for x, _ in inked) == 80
    assert min(y for _, y in inked) == 40
    assert max(y for _, y in inked) == 90
