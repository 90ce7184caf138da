"""Which image of a dataset a published id means.

* "stem": the last part of the image's url, without its suffix, letter case aside. Where two images have the same, the
  id means neither.
* "key": the image's own key, as in what was exported from this dataset.
* a CSV or Parquet with the columns `id` and `url`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.store.atomic import file_sha256, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.sql import literal, number, parquet, write_parquet

_STEM = (
    "nullif(lower(regexp_replace(try(url_decode(regexp_extract(url, '^[^?#]*/([^/?#]*)', 1))), '\\.[^.]*$', '')), '')"
)


@dataclass(frozen=True)
class Matched:
    """What became of the ids: how many images have features, and what was left over."""

    images: int
    without_image: int
    """Ids that mean no image."""
    ambiguous: int
    """Ids that mean several, by their stem."""
    repeated: int
    """Further features of an image that has some: the first in the order of the files count."""
    without_features: int
    """Images that no id means."""

    def __str__(self) -> str:
        said = {
            "ids name no image": self.without_image,
            "ids are the stem of several images' urls": self.ambiguous,
            "repeat an image": self.repeated,
            "images have none": self.without_features,
        }
        return ", ".join(f"{count:,} {what}" for what, count in said.items() if count)


def digest_of(match: str) -> str:
    """What a match is, for a key: its name, or its file's sha256."""
    return match if match in ("stem", "key") else file_sha256(_file(match))


def match_places(dataset: Dataset, match: str, places: Sequence[Path], target: Path) -> Matched:
    """Write the places of the images that have one, with (shard, key), in that order, to `target`.

    Raises PairmillError for a match that is neither a name nor a readable file.
    """
    source = parquet(dataset.images.paths(".parquet"), ", filename = true")
    with dataset.connect() as connection:
        connection.execute(
            "CREATE TEMP TABLE named_images AS SELECT url, contents.key FROM images JOIN contents USING (sha256) "
            "WHERE status = 'ok'"
        )
        fold = "lower(id)" if match == "stem" else "id"
        connection.execute(f"CREATE TEMP VIEW published AS SELECT *, {fold} AS name FROM {parquet(places)}")
        _create_names(connection, match)
        connection.execute(
            "CREATE TEMP TABLE means AS SELECT name, count(DISTINCT key) AS images FROM names GROUP BY name"
        )
        several = "SELECT name FROM means WHERE images > 1" if match == "stem" else "SELECT '' AS name WHERE false"
        ambiguous = number(connection, f"SELECT count(*) FROM published SEMI JOIN ({several}) USING (name)")
        lost = number(connection, "SELECT count(*) FROM published ANTI JOIN means USING (name)")
        connection.execute(
            "CREATE TEMP TABLE found AS SELECT names.key, published.* FROM published JOIN names USING (name) "
            f"ANTI JOIN ({several}) USING (name)"
        )
        rows = number(connection, "SELECT count(*) FROM found")
        first = "row_number() OVER (PARTITION BY key ORDER BY file, number, id) = 1"
        shards = f"SELECT key, parse_filename(filename, true) AS shard FROM {source}"
        with replacing(target) as path:
            query = (
                f"SELECT shard, found.* EXCLUDE (name) FROM found JOIN ({shards}) USING (key) QUALIFY {first} "
                "ORDER BY shard, key"
            )
            write_parquet(connection, query, path)
        images = number(connection, f"SELECT count(*) FROM {parquet([target])}")
        every = number(connection, "SELECT count(DISTINCT key) FROM named_images")
    return Matched(images, lost, ambiguous, rows - images, every - images)


def _create_names(connection: duckdb.DuckDBPyConnection, match: str) -> None:
    """The table `names`: (name, key), each once."""
    if match == "stem":
        query = f"SELECT {_STEM} AS name, key FROM named_images"
    elif match == "key":
        query = "SELECT key AS name, key FROM named_images"
    else:
        query = f"SELECT id::VARCHAR AS name, key FROM {_file_source(match)} JOIN named_images USING (url)"
    try:
        connection.execute(f"CREATE TEMP TABLE names AS SELECT DISTINCT * FROM ({query}) WHERE name IS NOT NULL")
    except (duckdb.BinderException, duckdb.InvalidInputException, duckdb.IOException) as error:
        raise PairmillError(
            f"{match} cannot be read: {str(error).splitlines()[0]}",
            "it is a CSV or Parquet with the columns id and url",
        ) from None


def _file(match: str) -> Path:
    path = Path(match)
    if not path.is_file():
        raise PairmillError(f"--match {match}: there is no such file", "or say stem, or key")
    return path


def _file_source(match: str) -> str:
    path = _file(match)
    if path.suffix == ".parquet":
        return parquet([path])
    return f"read_csv({literal(path)}, header = true, all_varchar = true)"
