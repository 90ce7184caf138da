"""Stage `download`: kept urls -> WebDataset shards `images/NNNNN.tar` with a metadata Parquet beside each.

img2dataset does the work of a shard (threads, resizing, encoding); the fetch is `pipeline.fetch`, the writer is ours so
that a shard is atomic, in order of keys, and the same bytes whatever order the answers came in. A url is fetched once,
however many texts it has.
"""

import io
import json
import math
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipeline.errors import PairmillError
from pipeline.fetch import UNREACHABLE, Fetched, Fetcher
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Download
from pipeline.store.atomic import digest, replacing, write_json
from pipeline.store.table import Manifest, Shard

VERSION = 1
TELLING = 32  # a shard of so many urls, none of them reached, speaks of our network; a smaller one may just be dead

# Hashing the urls spreads every host over all shards.
_URLS = "SELECT url, min_by(text, uid) AS caption FROM kept GROUP BY url ORDER BY sha256(url)"

_METADATA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("http_status", pa.int32()),
        ("content_type", pa.string()),
        ("final_url", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
    ]
)


def is_current(job: Job) -> bool:
    """Whether there is nothing to download."""
    return job.dataset.images.is_current(_key(job))


def _key(job: Job) -> str:
    return job.key(VERSION, job.recipe.download, job.dataset.pairs, job.dataset.screened)


def run(job: Job) -> str:
    section, table, key = job.recipe.download, job.dataset.images, _key(job)
    if is_current(job):
        return UP_TO_DATE
    lists = job.dataset.root / ".staging" / "urls"
    shard_keys = _write_lists(job, lists)
    with table.writing(key, shard_keys) as writing:
        fetch = partial(_download_shard, keys=shard_keys, lists=lists, folder=table.folder, settings=section)
        for shard in job.engine.map(fetch, writing.todo, "download"):
            writing.add(shard)
            job.log("shard", name=shard.name, **shard.counts)

        def account(manifest: Manifest) -> None:
            counts = manifest.counts()
            failed = sum(number for name, number in counts.items() if name.startswith("failed/"))
            if counts.get("requested", 0) != counts.get("ok", 0) + failed:
                raise AssertionError(f"the account of download does not add up: {counts}")

        totals = Counter[str]()
        for shard in writing.shards:
            totals.update(shard.counts)
        if totals["requested"] and not totals["ok"]:
            writing.forget()
            causes = ", ".join(f"{name[7:]} {number}" for name, number in totals.items() if name.startswith("failed/"))
            raise PairmillError(
                f"none of the {totals['requested']:,} images could be had ({causes})",
                "is the server up? [download] allow_hosts names hosts on private addresses that may be asked",
            )
        manifest = writing.commit(check=account)
    shutil.rmtree(lists)
    return (
        f"{manifest.count('requested'):,} urls = {manifest.count('ok'):,} downloaded + {_failures(manifest):,} failed"
    )


def _failures(manifest: Manifest) -> int:
    return manifest.count("requested") - manifest.count("ok")


def _write_lists(job: Job, folder: Path) -> dict[str, str]:
    """Write each shard's urls and captions as Arrow, as img2dataset reads them; returns the shards' keys."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {}
    settings = job.recipe.download.model_dump(mode="json", exclude={"threads"})
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        # Only what `screen` says counts here: verdicts of an earlier download or filter may still lie about.
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW kept AS "
            "FROM pairs ANTI JOIN (FROM verdicts WHERE stage = 'screen') USING (uid)"
        )
        reader: pa.RecordBatchReader = connection.sql(_URLS).to_arrow_reader(job.recipe.download.images_per_shard)
        for index, batch in enumerate(reader):
            name = f"{index:05d}"
            keys[name] = digest(VERSION, settings, batch.to_pydict())
            with replacing(folder / f"{name}.arrow") as path, pa.OSFile(str(path), "wb") as file:
                with pa.ipc.new_file(file, batch.schema) as writer:
                    writer.write(batch)
    return keys


def _download_shard(name: str, *, keys: dict[str, str], lists: Path, folder: Path, settings: Download) -> Shard:
    """Download one shard with img2dataset's Downloader."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network whether it is the newest
    import img2dataset.downloader
    from img2dataset.resizer import Resizer

    with pa.memory_map(str(lists / f"{name}.arrow")) as source:
        urls = pa.ipc.open_file(source).read_all()["url"].to_pylist()
    shard_digits = max(5, len(name))
    results: dict[int, Fetched] = {}
    with Fetcher(settings) as fetcher:

        def fetch(row: tuple[int, str], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
            position, url = row
            result = results[position] = fetcher.fetch(url)
            if result.content is None:
                return position, None, result.status
            stream, result.content = io.BytesIO(result.content), None
            return position, stream, None

        def writer(*arguments: Any) -> "_ShardWriter":
            return _ShardWriter(folder, name, results)

        img2dataset.downloader.download_image_with_retry = fetch
        img2dataset.downloader.write_stats = lambda *_: None
        resizer = Resizer(
            image_size=settings.image_size,
            resize_mode="keep_ratio_largest",
            resize_only_if_bigger=True,
            encode_quality=settings.jpeg_quality,
        )
        downloader = img2dataset.downloader.Downloader(
            sample_writer_class=writer,
            resizer=resizer,
            thread_count=settings.threads,
            save_caption=True,
            extract_exif=False,
            output_folder=str(folder),
            column_list=["url", "caption"],
            timeout=settings.timeout,
            number_sample_per_shard=10 ** max(1, math.ceil(math.log10(settings.images_per_shard))),
            oom_shard_count=shard_digits,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=settings.retries,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        taken = lists / f"{name}.taken.arrow"  # img2dataset removes the list that it was given
        shutil.copyfile(lists / f"{name}.arrow", taken)
        downloader.download_shard((int(name), str(taken)))

    metadata = pq.read_table(folder / f"{name}.parquet", columns=["status"])["status"].to_pylist()
    if len(metadata) != len(urls):
        raise PairmillError(f"shard {name}: {len(urls)} urls, but {len(metadata)} rows came back")
    causes = Counter(status for status in metadata if status != "ok")
    if len(urls) >= TELLING and sum(causes[cause] for cause in UNREACHABLE) == len(urls):
        raise PairmillError(
            f"shard {name}: none of its {len(urls)} urls could be reached ({', '.join(sorted(causes))})",
            "check the network and the server, then run it again: what is done is kept",
        )
    counts = {"requested": len(urls), "ok": len(urls) - causes.total()}
    counts |= {f"failed/{cause}": number for cause, number in sorted(causes.items())}
    write_json(folder / f"{name}_stats.json", counts)
    return Shard.of(folder, name, keys[name], [f"{name}.tar", f"{name}.parquet", f"{name}_stats.json"], counts)


class _ShardWriter:
    """Takes samples in any order and writes tar and Parquet in order of keys, each atomically."""

    def __init__(self, folder: Path, name: str, results: dict[int, Fetched]) -> None:
        self.folder, self.name, self.results = folder, name, results
        self.samples: dict[str, tuple[bytes | None, str, dict[str, Any]]] = {}

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        self.samples[key] = (image, caption or "", meta)

    def close(self) -> None:
        rows = []
        with replacing(self.folder / f"{self.name}.tar") as path, open(path, "wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0, user="pairmill", group="pairmill") as tar:
                for position, key in enumerate(sorted(self.samples)):
                    image, caption, meta = self.samples[key]
                    row = self._row(key, meta, self.results[position])
                    rows.append(row)
                    if image is not None:
                        described = json.dumps(row | {"caption": caption}, sort_keys=True).encode()
                        tar.write({"__key__": key, "jpg": image, "txt": caption.encode(), "json": described})
        with replacing(self.folder / f"{self.name}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, _METADATA), path, compression="zstd")

    @staticmethod
    def _row(key: str, meta: dict[str, Any], fetched: Fetched) -> dict[str, Any]:
        status = {"success": "ok", "failed_to_resize": "undecodable"}.get(meta["status"], fetched.status)
        taken = ("url", "width", "height", "original_width", "original_height", "sha256")
        return {
            "key": key,
            "status": status,
            "http_status": fetched.http_status,
            "content_type": fetched.content_type,
            "final_url": fetched.final_url,
            "bytes": fetched.bytes,
            **{name: meta[name] for name in taken},
        }
