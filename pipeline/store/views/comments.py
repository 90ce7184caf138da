"""What is said of each view, column and macro: COMMENT ON ... in the catalog, and the tables of docs/sql.md."""

import duckdb

from pipeline.rules import RULES
from pipeline.store.sql import identifier, literal

_KEY = "the picture's key: in the shards, the features and the embeddings"
_UID = "the pair: 128 bits of a digest of url and text, in hexadecimal"
_BYTES = "of all its files"

VIEWS: dict[str, tuple[str, dict[str, str]]] = {
    "pairs": (
        "one row for each (url, text) pair that came in; the lists' own columns as well",
        {
            "uid": _UID,
            "url": "where the image is said to be",
            "text": "the cleaned text",
            "original": "the text as it came, where cleaning changed it",
            "file": "the list it came from",
            "row": "and the data row there, from 1",
        },
    ),
    "repeated": (
        "one row for each further copy of a pair in the lists",
        {"uid": "the pair that it repeats", "file": "the list", "row": "and the data row there, from 1"},
    ),
    "quarantine": (
        "one row for each row of the lists that could not be read",
        {
            "file": "the list",
            "row": "and the data row there, from 1",
            "reason": "what is wrong with it",
            "content": "the row",
        },
    ),
    "rules": (
        "one row for each rule of the recipe and each cause of a failed download, in the order in which they count",
        {
            "stage": "screen, download or filter",
            "rule": "its name",
            "threshold": "what values are compared with; NULL where it compares none",
            "setting": "the recipe's words for it",
            "takes": "number, fraction, names, true, or sql for a rule of the recipe's own",
            "measure": "the SQL of what it measures",
            "position": "its place in the order",
        },
    ),
    "screened": (
        "one row for each pair that `screen` judged, with what its rules measured",
        {"uid": _UID, "failures": "how many of the stage's rules it fails"},
    ),
    "filtered": (
        "one row for each pair that `filter` judged: it passed `screen` and has its image",
        {"uid": _UID, "failures": "how many of the stage's rules it fails"},
    ),
    "verdicts": (
        "one row for each rule that a pair failed",
        {
            "uid": _UID,
            "stage": "screen, download or filter",
            "rule": "the rule, or the cause of a failed download",
            "value": "what was measured; of a download the HTTP status",
            "detail": "what was found, where it is no number",
            "first": "whether the pair fell by it: it failed none before",
        },
    ),
    "drops": (
        "one row for each pair that fell out, with the first rule that it failed",
        {
            "uid": _UID,
            "stage": "the stage",
            "rule": "the rule, or the cause of a failed download",
            "value": "what was measured",
            "detail": "what was found, where it is no number",
        },
    ),
    "funnel": (
        "one row for each rule, with what it costs",
        {
            "position": "its place in the order",
            "stage": "screen, download or filter",
            "rule": "the rule, or the cause of a failed download",
            "threshold": "what values are compared with",
            "setting": "the recipe's words for it",
            "pairs": "pairs that fell by it, having passed all before",
            "failing": "pairs that fail it, whatever else they fail",
        },
    ),
    "kept": (
        "one row for each pair that no rule dropped",
        {"uid": _UID, "url": "its url", "text": "its text", "key": _KEY, "split": "train, validation or test"},
    ),
    "splits": (
        "one row for each split of the kept pairs",
        {"split": "train, validation or test", "images": "pictures, copies counted once", "pairs": "pairs"},
    ),
    "images": (
        "one row for each url that was asked for",
        {
            "key": "its key in the shards",
            "url": "the url",
            "status": "ok, or why there is no image",
            "http_status": "the server's answer",
            "content_type": "as the server called it",
            "format": "as it was found to be",
            "final_url": "after redirects",
            "bytes": "of the file as it came",
            "sha256": "of the file as it came",
            "width": "in pixels, as stored",
            "height": "in pixels, as stored",
            "original_width": "in pixels, as it came",
            "original_height": "in pixels, as it came",
            "blurred": "boxes that were blurred",
            "split": "train, validation or test, by the file's bytes",
        },
    ),
    "contents": (
        "one row for each image file's content; copies share a row",
        {"sha256": "of the bytes", "key": "of the first copy", "split": "train, validation or test"},
    ),
    "duplicates": (
        "one row for each picture that another one stands for: a file of the same bytes, or a near-duplicate",
        {
            "key": "its key in the shards",
            "stays": "the key of the picture that stands for it",
            "distance": "bits of 64 in which their perceptual hashes differ",
            "same_bytes": "whether their files are equal",
        },
    ),
    "fetches": (
        "one row for each url that was asked for, its last time",
        {
            "url": "the url",
            "status": "ok, or why there is no image",
            "http_status": "the server's answer",
            "attempts": "how often it was asked",
            "seconds": "on the network",
            "time": "when it ended, in seconds since 1970",
        },
    ),
    "features": (
        "one row for each extractor whose features are there",
        {
            "extractor": "its name in the recipe",
            "kind": "region, grid, patch or pixel",
            "model": "what made them",
            "trained": "whether the model was; if not, the features mean nothing",
            "dtype": "how they are stored",
            "weights_sha256": "of the weights",
            "images": "pictures that have features",
            "failed": "pictures that have none",
            "shards": "files",
            "bytes": _BYTES,
            "seconds": "that the extraction took",
        },
    ),
    "unextracted": (
        "one row for each image that an extractor has no features of",
        {"extractor": "its name", "key": _KEY, "cause": "why", "detail": "in the program's words"},
    ),
    "regions": (
        "one row for each box that a detector drew",
        {
            "extractor": "its name in the recipe",
            "uid": "a kept pair with this picture, the first; NULL where none is kept",
            "key": _KEY,
            "box": "x1, y1, x2, y2 in [0, 1], from the upper left",
            "label": "its class; NULL for the box of the whole image",
            "confidence": "the detector's, in [0, 1]",
            "area": "in [0, 1], of the picture's",
        },
    ),
    "embeddings": (
        "one row for each kept text and image that a run has embedded; embeddings_<run> has vectors of fixed size",
        {
            "run": "the training",
            "modality": "text or image",
            "uid": "the text's pair; NULL for images",
            "key": _KEY,
            "text": "the text; NULL for images",
            "split": "train, validation or test",
            "embedding": "a unit vector",
        },
    ),
    "runs": (
        "one row for each finished training",
        {
            "run": "its name in the recipe",
            "features": "the extractor that it read",
            "steps": "that it took",
            "parameters": "of the model",
            "loss_first": "at the beginning",
            "loss_last": "at the end",
            "seconds": "that it took",
        },
    ),
    "metrics": (
        "one row for each number that a training wrote down",
        {"run": "the training", "step": "from 0", "name": "such as loss/itc or validation/loss/itc", "value": "of it"},
    ),
    "evaluations": (
        "one row for each number that an evaluation found",
        {"run": "the training", "task": "such as retrieval", "metric": "such as t2i_r10", "value": "of it"},
    ),
}
"""View -> what a row is, and column -> what it holds."""

MACROS = {
    "funnel": "what each rule costs, in order",
    "why": "why(pair): every rule in order with what was measured of the pair, and what came of it",
    "would_keep": "would_keep(rule, threshold): pairs kept now, kept if that were the threshold, and undecided (they "
    "would pass `screen`, and no later stage has judged them); exact is false where other verdicts would move as well",
    "similar": "similar(pair, k := 10, run := NULL): the pictures nearest to the pair's picture by a run's embeddings",
    "label_cooccurrence": "label_cooccurrence(minimum := 0.2): labels seen in the same picture, with how much more "
    "often than if they had nothing to do with each other, over all pictures (lift)",
}


def create_comments(connection: duckdb.DuckDBPyConnection) -> None:
    """COMMENT ON every view, column and macro that there is."""
    columns: dict[str, list[str]] = {}
    ask = (
        "SELECT views.view_name, columns.column_name FROM duckdb_columns() AS columns JOIN duckdb_views() AS views "
        "ON columns.table_oid = views.view_oid WHERE NOT views.internal"
    )
    for view, column in connection.execute(ask).fetchall():
        columns.setdefault(view, []).append(column)
    for view, names in columns.items():
        said, of_columns = VIEWS.get(view, VIEWS["embeddings"] if view.startswith("embeddings_") else ("", {}))
        connection.execute(f"COMMENT ON VIEW {identifier(view)} IS {literal(said)}")
        for name in names:
            told = of_columns.get(name) or _of_rule(view, name)
            connection.execute(f"COMMENT ON COLUMN {identifier(view)}.{identifier(name)} IS {literal(told)}")
    there = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'table_macro'"
    )
    for (name,) in there.fetchall():
        if name in MACROS:
            connection.execute(f"COMMENT ON MACRO TABLE {identifier(name)} IS {literal(MACROS[name])}")


def _of_rule(view: str, name: str) -> str:
    if view in ("screened", "filtered"):
        return f"{RULES[name].measure}; {name} drops a pair where {RULES[name].meaning}"
    return "a column of the lists"
