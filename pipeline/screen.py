"""Stage `screen`: the rules that need only url and text, in SQL, before a byte is downloaded -> `verdicts/screen`.

Words are runs of Unicode letters, marks, digits and underscores, lower-cased. All counting is per distinct text, since
(url, text) is unique: the number of images that share a text is its number of pairs.
"""

import duckdb

from pipeline.job import UP_TO_DATE, Job
from pipeline.store.verdicts import write_verdicts

VERSION = 1

_TEXTS = r"""
CREATE TEMP TABLE texts AS
SELECT text, images_per_text, words, len(words) AS n FROM (
    SELECT text, count(*) AS images_per_text, regexp_extract_all(lower(text), '[\pL\pM\pN_]+') AS words
    FROM pairs GROUP BY text
)"""

# The rank of an n-gram is 1 + the number of n-grams more frequent than it, so equals share a rank and none is
# cut off by the alphabet. It follows from the count alone: a small table, whatever the corpus.
_NGRAMS = """
CREATE TEMP TABLE occurrences AS
    SELECT text, images_per_text, unnest(words) AS ngram FROM texts
    UNION ALL
    SELECT text, images_per_text, unnest(list_transform(range(1, n), lambda i: words[i] || ' ' || words[i + 1]))
    FROM texts WHERE n > 1;
CREATE TEMP TABLE ngrams AS SELECT ngram, sum(images_per_text) AS frequency FROM occurrences GROUP BY ngram;
CREATE TEMP TABLE ranks AS
    SELECT frequency,
        1 + coalesce(sum(count(*)) OVER (
            ORDER BY frequency DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS rank
    FROM ngrams GROUP BY frequency;
CREATE TEMP TABLE rarest AS
    SELECT text, min(frequency) AS frequency FROM occurrences JOIN ngrams USING (ngram) GROUP BY text"""

_SIGNALS = """
CREATE TEMP VIEW signals AS
SELECT uid, images_per_text, n AS words, {rank} AS rarest_rank
FROM (SELECT uid, text FROM pairs) JOIN texts USING (text) {join}"""


def run(job: Job) -> str:
    rules = job.recipe.screen.rules
    key = job.key(VERSION, job.recipe.screen, job.dataset.pairs)
    if job.dataset.screened.is_current(key):
        return UP_TO_DATE
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        _make_signals(connection, needs_ngrams="vocabulary" in rules)
        manifest = write_verdicts(job.dataset.screened, key, "screen", rules, connection, job.dataset.pairs)
    return (
        f"{manifest.count('pairs'):,} pairs = {manifest.count('kept'):,} kept + {manifest.count('dropped'):,} dropped"
    )


def _make_signals(connection: duckdb.DuckDBPyConnection, needs_ngrams: bool) -> None:
    connection.execute(_TEXTS)
    if needs_ngrams:
        connection.execute(_NGRAMS)
        join = "LEFT JOIN rarest USING (text) LEFT JOIN ranks USING (frequency)"
        connection.execute(_SIGNALS.format(rank="ranks.rank", join=join))
    else:
        connection.execute(_SIGNALS.format(rank="NULL", join=""))
