"""Fetch pictures and make them what is stored: `pipeline.web.crawl` fetches; img2dataset decodes, resizes, blurs,
encodes and hashes. Imported by workers only: it takes a second.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.recipe import Download
from pipeline.web.crawl import Crawl
from pipeline.web.fetch import Fetched
from pipeline.web.img2dataset_light import blurrer, downloader
from pipeline.web.resizing import PlainResizer

Boxes = list[list[float]] | None
Finish = Callable[[int, Fetched, dict[str, Any], bytes | None], None]
"""Called for each url with its position, what the fetch said, img2dataset's account and the JPEG, or None."""

_THREADS = 1  # of img2dataset's own, which does nothing but wait for the crawl


def store(settings: Download, urls: Sequence[str], boxes: Sequence[Boxes], finish: Finish) -> None:
    """Fetch `urls`, each with boxes to blur or none, and hand over what is to be stored, as it comes.

    What `finish` raises, as on a full disk, ends the fetching and is raised here.
    """
    columns: dict[str, Any] = {"url": pa.array(urls, pa.string())}
    if settings.blur_column is not None:
        columns["boxes"] = pa.array(boxes, pa.list_(pa.list_(pa.float64())))
    results: dict[int, Fetched] = {}
    unanswered = set(range(len(urls)))
    failures: list[BaseException] = []

    class Writer:
        def __init__(self, *_: object) -> None:
            pass

        def write(self, image: bytes | None, key: str, _: object, account: dict[str, Any]) -> None:
            if failures:
                return
            fetched = results.pop(int(key))
            crawl.done_with(fetched)
            try:
                finish(int(key), fetched, account, image)
            except Exception as error:  # img2dataset would print it, drop the row and go on
                failures.append(error)

        def close(self) -> None:
            pass

    resizer = PlainResizer(
        image_size=settings.image_size,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=settings.jpeg_quality,
        blurrer=blurrer.BoundingBoxBlurrer() if "boxes" in columns else None,
    )
    with tempfile.TemporaryDirectory() as folder, Crawl(settings, urls) as crawl:

        def take(_: object, **__: Any) -> tuple[int, io.BytesIO | None, str | None]:
            # Whichever is done first, whatever row was asked for: no thread waits for a slow host.
            try:
                result = None if failures else crawl.take()
            except BaseException as error:
                failures.append(error)
                result = None
            if result is None:  # img2dataset's pool ends well only if every row is answered
                return unanswered.pop(), None, "stopped"
            unanswered.remove(result.position)
            fetched, results[result.position] = result.fetched, result.fetched
            if fetched.content is None:
                return result.position, None, fetched.status
            stream, fetched.content = io.BytesIO(fetched.content), None
            return result.position, stream, None

        downloader.download_image_with_retry = take
        downloader.write_stats = lambda *_: None
        table = pa.table(columns)
        listed = Path(folder) / "list.arrow"
        with pa.OSFile(str(listed), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        downloader.Downloader(
            sample_writer_class=Writer,
            resizer=resizer,
            thread_count=_THREADS,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=list(columns),
            timeout=settings.timeout,
            number_sample_per_shard=10,
            oom_shard_count=9,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
            blurring_bbox_col="boxes" if "boxes" in columns else None,
        ).download_shard((0, str(listed)))
    if failures:
        raise failures[0]
