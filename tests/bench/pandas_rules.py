"""ALIGN's text rules as one writes them with pandas, in the style of DataComp's filters: a peer, run in a process of
its own.

`python -m tests.bench.pandas_rules KEPT.npy '{"min_words": 3, ...}' PAIRS.parquet ...`
"""

import json
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd


def judge(pairs: pd.DataFrame, rules: dict[str, float]) -> dict[str, pd.Series]:
    """Which pairs fail each rule."""
    words = pairs["text"].str.lower().str.findall(r"\w+")
    number = words.str.len()
    images = pairs["text"].map(pairs["text"].value_counts())

    frequencies: Counter[str | tuple[str, str]] = Counter()
    for row in words:
        frequencies.update(row)
        frequencies.update(pairwise(row))
    # How many n-grams are more frequent than each frequency; the least frequency that is still within the vocabulary.
    by_frequency = pd.Series(Counter(frequencies.values())).sort_index(ascending=False)
    ranks = 1 + by_frequency.cumsum().shift(fill_value=0)
    least = ranks.index[ranks <= rules["vocabulary"]].min()
    vocabulary = {ngram for ngram, frequency in frequencies.items() if frequency >= least}
    is_known = words.map(lambda row: vocabulary.issuperset(row) and vocabulary.issuperset(pairwise(row)))
    return {
        "max_images_per_text": images > rules["max_images_per_text"],
        "min_words": number < rules["min_words"],
        "max_words": number > rules["max_words"],
        "vocabulary": ~is_known.astype(bool),
    }


def main() -> None:
    kept_path, rules, *files = sys.argv[1:]
    pairs = pd.concat([pd.read_parquet(file, columns=["uid", "text"]) for file in files], ignore_index=True)
    fails = judge(pairs, json.loads(rules))
    kept = pairs["uid"][~pd.concat(fails, axis=1).any(axis=1)]
    # DataComp's form of a subset: the sorted uids, as two 64-bit numbers each.
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in kept]
    np.save(kept_path, np.array(sorted(halves), np.dtype("u8,u8")))
    print(json.dumps({"kept": len(kept)} | {rule: int(failed.sum()) for rule, failed in fails.items()}))


if __name__ == "__main__":
    main()
