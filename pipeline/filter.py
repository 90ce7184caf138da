"""Stage `filter`: the rules that need the image, over the metadata that the download wrote -> `verdicts/filter`.

No image is read and nothing is fetched: another threshold costs one SQL query. The split of the images is fixed here.
"""

from pipeline.job import UP_TO_DATE, Job
from pipeline.store.verdicts import write_verdicts

VERSION = 1

# Judged are the pairs that passed `screen` and whose image is there.
_SIGNALS = """
CREATE TEMP TABLE signals AS
SELECT uid,
    least(original_width, original_height) AS shorter_side,
    greatest(original_width, original_height) / least(original_width, original_height) AS aspect,
    count(DISTINCT text) OVER (PARTITION BY sha256) AS texts_per_image,
    row_number() OVER (PARTITION BY sha256, text ORDER BY uid) AS copy
FROM (SELECT uid, url, text FROM pairs) ANTI JOIN (SELECT uid FROM verdicts WHERE stage = 'screen') USING (uid)
    JOIN images USING (url)
WHERE status = 'ok'"""


def run(job: Job) -> str:
    rules, split = job.recipe.filter.rules, job.recipe.split
    dataset = job.dataset
    key = job.key(VERSION, job.recipe.filter, split, dataset.pairs, dataset.screened, dataset.images)
    if job.dataset.filtered.is_current(key):
        return UP_TO_DATE
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        connection.execute(_SIGNALS)
        info = {"split": split.model_dump()}
        manifest = write_verdicts(job.dataset.filtered, key, "filter", rules, connection, job.dataset.pairs, info)
    return (
        f"{manifest.count('pairs'):,} pairs = {manifest.count('kept'):,} kept + {manifest.count('dropped'):,} dropped"
    )
