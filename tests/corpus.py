"""A small made-up corpus with every sort of picture and text that the stages tell apart."""

import csv
import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NOUNS = ("cat", "house", "tree", "Straße", "дом", "猫", "शब्द", "arrow_1", "naïve", "22")
VERBS = ("stands by", "runs to", "is like", "holds", "über")

RECIPE = """
name = "small"
[ingest]
inputs = [{inputs}]
shards = 3
[screen.rules]
max_images_per_text = 4
min_words = 3
max_words = 9
vocabulary = 110
[download]
images_per_shard = 30
threads = 8
allow_hosts = ["127.0.0.1"]
timeout = 4
deadline = 8
retries = 0
max_megapixels = 1
max_bytes = 200000
image_size = 96
[filter.rules]
side_above = 40
aspect_below = 3
max_texts_per_image = 4
max_copies = 1
[extract.region]
kind = "region"
weights = ["{detector}"]
image_size = 128
min_boxes = 4
max_boxes = 8
[extract.grid]
kind = "grid"
image_size = 64
cells = 2
[extract.pixel]
kind = "pixel"
image_size = 64
patch = 32
"""


@dataclass(frozen=True)
class Corpus:
    """Pictures in `pictures`, and what to say about them: `rows` of (file name, text)."""

    pictures: Path
    rows: list[tuple[str, str]]

    def write_lists(self, folder: Path, base_url: str) -> list[Path]:
        """Two thirds of the rows as CSV, the rest as Parquet; some rows stand in both."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [(f"{base_url}/{name}", text) for name, text in self.rows]
        cut = 2 * len(rows) // 3
        with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("url", "text"), *rows[:cut], ("", "a row without url"), (rows[0][0], "  ")])
        urls, texts = zip(*rows[cut - 7 :], strict=True)
        pq.write_table(pa.table({"url": urls, "text": texts}), folder / "b.parquet")
        return [folder / "a.csv", folder / "b.parquet"]


def encoded(array: np.ndarray, kind: str, **options: object) -> bytes:
    mode = options.pop("mode", None)
    image = Image.fromarray(array)
    if mode:
        image = image.convert(str(mode))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _noise(draw: np.random.Generator, width: int, height: int, channels: int = 3) -> np.ndarray:
    small = draw.integers(0, 256, (max(1, height // 8), max(1, width // 8), channels), dtype=np.uint8)
    image = Image.fromarray(small.squeeze())
    return np.asarray(image.resize((width, height)))


def pictures(seed: int = 0) -> dict[str, bytes]:
    """File name -> bytes."""
    draw = np.random.default_rng(seed)
    files = {}
    for index in range(16):
        files[f"plain{index:02d}.png"] = encoded(_noise(draw, 60 + 9 * index, 200 - 8 * index), "PNG")
    for index in range(10):
        files[f"photo{index:02d}.jpg"] = encoded(_noise(draw, 90 + index, 120), "JPEG")
    for index in range(3):
        files[f"alpha{index}.png"] = encoded(_noise(draw, 80, 70 + index, 4), "PNG")
        files[f"grey{index}.png"] = encoded(_noise(draw, 80, 90 + index, 1), "PNG")
        files[f"cmyk{index}.jpg"] = encoded(_noise(draw, 100, 70 + index), "JPEG", mode="CMYK")
        deep = draw.integers(0, 65536, (60 + index, 70)).astype(np.uint16)
        files[f"deep{index}.png"] = encoded(deep, "PNG")
        files[f"palette{index}.png"] = encoded(_noise(draw, 64, 65 + index), "PNG", mode="P")
        files[f"web{index}.webp"] = encoded(_noise(draw, 64, 65 + index), "WEBP", lossless=True)
        files[f"old{index}.bmp"] = encoded(_noise(draw, 64, 75 + index), "BMP")
        files[f"tiny{index}.png"] = encoded(_noise(draw, 8 + index, 9), "PNG")
    for index, side in enumerate((40, 41)):  # on the threshold and over it
        files[f"edge{index}.png"] = encoded(_noise(draw, side, 80), "PNG")
    for index, side in enumerate((149, 150, 151, 400)):
        files[f"wide{index}.png"] = encoded(_noise(draw, side, 50), "PNG")
    for index in range(4):
        files[f"copy{index}.png"] = files["plain03.png"]
        files[f"again{index}.jpg"] = files["photo04.jpg"]
    files["huge.png"] = encoded(np.zeros((1001, 1000), np.uint8), "PNG")
    files["cap.png"] = encoded(np.zeros((1000, 1000), np.uint8), "PNG")
    files["fat.png"] = encoded(draw.integers(0, 256, (300, 300, 3), dtype=np.uint8), "PNG")
    files["page.png"] = b"<!doctype html><title>gone</title>" * 40
    files["empty.png"] = b""
    files["rubbish.jpg"] = draw.bytes(4000)
    files["header.png"] = files["plain05.png"][:60]
    files["cut.jpg"] = files["photo02.jpg"][: 2 * len(files["photo02.jpg"]) // 3]
    return files


def make(folder: Path, seed: int = 0) -> Corpus:
    """Write the pictures; make up texts that hit every rule on both sides of its threshold."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, content in pictures(seed).items():
        (folder / name).write_bytes(content)
        names.append(name)
    names += [f"absent{index}.png" for index in range(3)]
    draw = random.Random(seed)

    def phrase() -> str:
        return f"{draw.choice(NOUNS)} {draw.choice(VERBS)} {draw.choice(NOUNS)}"

    rows = []
    for name in names:
        texts = [phrase() for _ in range(draw.randint(1, 3))]
        texts += draw.choices(
            [
                "gramastar",
                "two words",
                "  a\tcat\u00a0and\u2003a \n house ",
                "cat is like cat " * 3,
                "the tree holds cat, cat, cat, cat, cat, cat",
                "a a a a a a a a a",
                "a a a a a a a a a a",
                "e\u0301tude of a tree",
                "\u00e9tude of a tree",
                f"never before {draw.randint(0, 999)} seen {draw.randint(0, 999)}",
            ],
            k=draw.randint(0, 2),
        )
        rows += [(name, text) for text in texts]
    rows += [("plain01.png", phrase() + f" nr {index % 7}") for index in range(14)]
    rows += [(f"copy{index}.png", "cat holds tree") for index in range(2)] + [("plain03.png", "cat holds tree")]
    rows += rows[:5]
    draw.shuffle(rows)
    return Corpus(folder, rows)
