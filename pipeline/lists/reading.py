"""From a part of a list to its rows. A bad row costs itself and nothing else."""

from collections.abc import Iterator, Sequence

from pipeline.errors import PairmillError
from pipeline.lists import delimited, json_lines, parquet
from pipeline.lists.files import Part, broken, unreadable
from pipeline.lists.rows import Block


def blocks(part: Part, wanted: Sequence[str], header: Sequence[str] = ()) -> Iterator[Block]:
    """Read a part, in blocks of at most `BLOCK_ROWS` rows; the first comes even where there is no row.

    `wanted` are the columns of urls and texts, `header` those of CSV and TSV lists without a header line. Raises
    PairmillError that names the file where it cannot be read at all, or breaks off.
    """
    try:
        if part.format == "parquet":
            with part.open_anywhere() as file:
                yield from parquet.read(part, file, wanted)
        else:
            with part.open() as file:
                if part.format == "jsonl":
                    yield from json_lines.read(file, wanted)
                else:
                    yield from delimited.read(part, file, "," if part.format == "csv" else "\t", header)
    except PairmillError:
        raise
    except unreadable(part.path) as error:
        raise broken(part.path, error) from None
