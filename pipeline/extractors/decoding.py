"""A shard's pictures, decoded once and prepared for every extractor that wants them, in threads ahead of the models.

OpenCV and Pillow let go of Python's lock while they decode and resize, so that a GPU's many cores can be fed from
threads, which copy nothing between processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import PairmillError
from pipeline.extractors.memory import is_out_of_memory
from pipeline.signals.pictures import decoded, members
from pipeline.store.atomic import file_sha256


@dataclass(frozen=True)
class Failure:
    """Why an image has no features: `unreadable` (it cannot be decoded), `missing` (the shard's metadata name it, its
    tar lacks it), `not_finite` (a model gave NaN or infinity), `out_of_memory` (even alone)."""

    cause: str
    detail: str = ""


@dataclass(frozen=True)
class Prepared:
    """One image, for each extractor that wants it: what its `prepare` made of it, or why there is nothing."""

    key: str
    of: dict[str, Any]


def prepared_pictures(
    tar: Path,
    sha256: str,
    wanted: Mapping[str, tuple[str, ...]],
    prepare: Mapping[str, Callable[[np.ndarray], Any]],
    threads: int,
    ahead: int,
) -> Iterator[Prepared]:
    """Each wanted image of a tar, in the tar's order; those that it lacks come last, as `missing`.

    `wanted`: key -> the extractors that want it. `prepare`: extractor -> its `prepare`. At most `ahead` images are
    decoded and not yet taken. Raises PairmillError for a tar that cannot be read, or whose digest is not `sha256`:
    what came before is then worth nothing.
    """
    cv2.setNumThreads(1)  # the threads are here, one picture each
    last = ""

    def contents() -> Iterator[tuple[str, bytes]]:
        nonlocal last
        for key, content in members(tar):
            if key in wanted:
                if key <= last:
                    raise _foreign(tar, f"image {key} comes after {last}")
                last = key
                seen.add(key)
                yield key, content

    def prepared(member: tuple[str, bytes]) -> Prepared:
        key, content = member
        return Prepared(key, _prepared(content, {name: prepare[name] for name in wanted[key]}))

    seen: set[str] = set()
    with ThreadPoolExecutor(threads, "decode") as pool:
        digest = pool.submit(file_sha256, tar)
        try:
            yield from _in_order(pool, prepared, contents(), ahead)
            if digest.result() != sha256:
                raise _foreign(tar, "its sha256 is another than when it was written")
        finally:
            pool.shutdown(cancel_futures=True)
    for key in sorted(wanted.keys() - seen):
        failure = Failure("missing", f"{tar.name} holds no such picture")
        yield Prepared(key, dict.fromkeys(wanted[key], failure))


def _foreign(tar: Path, what: str) -> PairmillError:
    return PairmillError(f"{tar} is not as `download` wrote it: {what}", "remove it and run `make download` again")


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[tuple[str, bytes]], Prepared],
    items: Iterable[tuple[str, bytes]],
    ahead: int,
) -> Iterator[Prepared]:
    waiting: deque[Future[Prepared]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepared(content: bytes, prepare: Mapping[str, Callable[[np.ndarray], Any]]) -> dict[str, Any]:
    try:
        image = decoded(content)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return dict.fromkeys(prepare, Failure("out_of_memory", f"while it was decoded: {error}"))
    if image is None:
        return dict.fromkeys(prepare, Failure("unreadable", f"{len(content):,} bytes that are no whole picture"))
    made: dict[str, Any] = {}
    for name, function in prepare.items():
        try:
            made[name] = function(image)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            made[name] = Failure("out_of_memory", f"while it was resized: {error}")
    return made
