"""Near-duplicates by perceptual hash: of images that look alike the best one stays.

Taken best first (more original pixels, then more bytes of the file, then the key), an image falls if one that stays
lies within the radius: what falls takes nothing else down, so a chain of small changes does not collapse into its first
link. Which images stay hangs on the radius; it is found anew for each, from the hashes alone. Files of the same bytes
are one image here: whether they are kept is the business of `max_copies`. Only images of judged pairs take part.
"""

import numpy as np
import pyarrow as pa

from pipeline.job import Job
from pipeline.signals.hamming import IF_ALONE, nearest_earlier
from pipeline.signals.judged import JUDGED
from pipeline.signals.whole import write_whole
from pipeline.store.sql import parquet
from pipeline.store.table import Table

VERSION = 2

_BEST_FIRST = """
SELECT min(key) AS key, any_value(phash) AS phash, sha256
FROM (SELECT DISTINCT key, sha256, original_width, original_height, bytes FROM ({judged})) JOIN {hashes} USING (key)
WHERE phash IS NOT NULL GROUP BY sha256, original_width, original_height, bytes
ORDER BY original_width::BIGINT * original_height DESC NULLS LAST, bytes DESC NULLS LAST, key"""


def find_duplicates(job: Job, hashes: Table, radius: int, table: Table) -> None:
    """Bring `table` (key, duplicate_distance, duplicate_of) up to date: a row for each image that falls."""

    def rows() -> pa.Table:
        with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
            query = _BEST_FIRST.format(judged=JUDGED, hashes=parquet(hashes.paths(".parquet")))
            images: pa.Table = connection.sql(query).to_arrow_table()
            found = nearest_earlier(images["phash"].to_numpy(), radius, np.full(images.num_rows, IF_ALONE))
            fallen = np.flatnonzero(found.distance >= 0)
            contents = pa.table(
                {
                    "sha256": images["sha256"].take(fallen),
                    "duplicate_distance": pa.array(found.distance[fallen]),
                    "duplicate_of": images["key"].take(found.position[fallen]),
                }
            )
            connection.register("contents_that_fall", contents)
            query = (
                "SELECT key, duplicate_distance, duplicate_of FROM images JOIN contents_that_fall USING (sha256) "
                "ORDER BY key"
            )
            return connection.sql(query).to_arrow_table()

    write_whole(table, job.key(VERSION, "duplicates", radius, job.dataset.images, job.dataset.screened, hashes), rows)
