"""Every benchmark of the data half, one after the other, into `bench/data.json` and as a Markdown table.

`python -m tests.bench.data [--quick] [--only NAME,NAME]`. With --quick it takes minutes and proves that everything
runs; figures to quote are those of the whole, on a machine that does nothing else: about an hour, and 40 GB of disk.
"""

import sys

from tests.bench import front

# Each is a module with a command line, whose defaults are the sizes to quote; here the sizes for --quick.
BENCHES = {
    "text_rules": "--pairs 300_000 --rounds 1 --growth 100_000 300_000",
    "rule_peers": "--pandas 100_000 --juicer 10_000 --rounds 1",
    "clip_art": "--quick",
    "clean_web": "--images 300 --rounds 1",
    "hostile_web": "--images 200 --drip-seconds 20 --huge 1 --bombs 1 --deadline 5",
}

if __name__ == "__main__":
    sys.exit(front.run("data", BENCHES, ("duckdb", "pandas", "img2dataset"), __doc__))
