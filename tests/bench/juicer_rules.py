"""Word-count, character and repetition rules by Data-Juicer's own operators: a peer, run by a Python of its own that
has `py-data-juicer` (and none of this project). Prints how many pairs were kept and the operators' seconds alone.

`python tests/bench/juicer_rules.py KEPT.parquet '{"min_words": 3, ...}' PAIRS.parquet ...`
"""

import json
import sys
import time

PROCESSES = 2


def operators(rules: dict[str, float]) -> list:
    """The operators for these rules of ours, which are defined after them."""
    from data_juicer.ops import OPERATORS

    limits = [
        ("words_num_filter", {"min_num": rules["min_words"], "max_num": rules["max_words"]}),
        ("text_length_filter", {"min_len": rules["min_characters"], "max_len": rules["max_characters"]}),
        ("character_repetition_filter", {"rep_len": 10, "max_ratio": rules["max_character_repetition"]}),
        ("word_repetition_filter", {"rep_len": 10, "max_ratio": rules["max_word_repetition"]}),
    ]
    return [OPERATORS.modules[name](**arguments, num_proc=PROCESSES) for name, arguments in limits]


def main() -> None:
    kept_path, rules, *files = sys.argv[1:]
    from data_juicer.core.data import NestedDataset
    from datasets import disable_caching, load_dataset

    disable_caching()  # else a second run would only look the answers up
    pairs = load_dataset("parquet", data_files=files, split="train", columns=["uid", "text"])
    started = time.monotonic()
    # Without its monitor of resources, which would slow it down.
    kept = NestedDataset(pairs).process(operators(json.loads(rules)), open_monitor=False)
    seconds = time.monotonic() - started
    kept.select_columns(["uid"]).to_parquet(kept_path)
    print(json.dumps({"kept": len(kept), "seconds": seconds}))


if __name__ == "__main__":
    main()
