"""Compose pictures from clip art, train a small detector on them, and say how good it is on art that it never saw."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.demo.detector.training import FILES, Settings, train
from pipeline.errors import PairmillError


def _whole(least: int, multiple_of: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least or value % multiple_of:
            raise argparse.ArgumentTypeError(f"{text} is less than {least} or no multiple of {multiple_of}")
        return value

    parse.__name__ = "whole number"  # what argparse calls it where int() fails
    return parse


def _hours(text: str) -> float:
    value = float(text)
    if not 0 < value < 24 * 365:
        raise argparse.ArgumentTypeError(f"{text} is no time to train for")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    shipped = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo.detector",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--source", type=Path, default=Path("data/openclipart"), help="the clip art; fetched if need be")
    option("--work", type=Path, default=Path("data/detector"), help="for the compositions and the run's own files")
    option("--target", type=Path, default=Path(__file__).parent, help=f"where {', '.join(FILES)} go")
    option("--pictures", type=_whole(1), default=shipped.pictures, help="compositions to train on")
    option("--held-out-pictures", type=_whole(1), default=shipped.held_out_pictures, help="compositions to validate on")
    option("--per-class", type=_whole(2), help="cutouts a class at most, and then at least too; all, where not given")
    option("--epochs", type=_whole(1), default=shipped.epochs, help="how often each composition is seen")
    option("--hours", type=_hours, help="how long to train, instead of --epochs")
    option("--image-size", type=_whole(64, 32), default=shipped.image_size, help="pixels a side")
    option("--batch", type=_whole(2), default=shipped.batch, help="compositions a step")
    option("--seed", type=_whole(0), default=shipped.seed, help="of the compositions and the training")
    given = vars(parser.parse_args(arguments))
    source, work, target = (given.pop(name) for name in ("source", "work", "target"))
    said = train(source, work, target, Settings(**given))
    print(f"mAP50 {said['mAP50']:.3f}, mAP50-95 {said['mAP50-95']:.3f} on held-out art; see {target / FILES[2]}")


if __name__ == "__main__":
    try:
        main()
    except PairmillError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}\n  -> is the disk full, or not to be written to?")
