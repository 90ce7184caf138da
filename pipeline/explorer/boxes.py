"""A detector's boxes drawn into a picture: its class names become pixels, and never a page's text."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_HUES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#e6820e", "#17becf", "#e377c2", "#8c564b")
LONGEST = 40
"""Characters of a label."""


@dataclass(frozen=True)
class Box:
    """Where something lies, in [0, 1] of the picture's sides from the top left, and what it is taken for."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str
    confidence: float


def draw(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Draw the boxes into the image, the most confident on top. What is not within the picture is cut to it."""
    colours = {label: _HUES[place % len(_HUES)] for place, label in enumerate(sorted({box.label for box in boxes}))}
    drawing = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 250))
    font = ImageFont.load_default(size=max(10, max(image.size) / 36))
    for box in sorted(boxes, key=lambda box: box.confidence):
        left, right = sorted(_within(x, image.width) for x in (box.x1, box.x2))
        top, bottom = sorted(_within(y, image.height) for y in (box.y1, box.y2))
        drawing.rectangle((left, top, right, bottom), outline=colours[box.label], width=width)
        if not box.label:  # the whole picture, as most extractors add it, or features without classes
            continue
        said = f"{box.label[:LONGEST]} {box.confidence:.2f}"
        said = "".join(character if character.isprintable() else "?" for character in said)
        _, _, wide, high = drawing.textbbox((0, 0), said, font=font)
        place = (min(left, max(0, image.width - wide - 4)), max(0, top - high - 3))
        drawing.rectangle((*place, place[0] + wide + 4, place[1] + high + 3), fill=colours[box.label])
        drawing.text((place[0] + 2, place[1] + 1), said, fill="white", font=font)


def _within(position: float, side: int) -> float:
    # NaN fails every comparison, so that it ends at 0.
    return min(position * side, side - 1.0) if position > 0 else 0.0
