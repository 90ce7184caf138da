"""Every benchmark of SQL and of the explorer, one after the other, into `bench/explore.json` and as a Markdown table.

`python -m tests.bench.explore [--quick] [--only NAME,NAME]`. With --quick it takes minutes and proves that everything
runs; figures to quote are those of the whole, on a machine that does nothing else: an hour the first time, most of it
for the made-up datasets under data/bench, which take 12 GB of disk and stay there, and ten minutes from then on.
"""

import sys

from tests.bench import front

# Each is a module with a command line, whose defaults are the sizes to quote; here the sizes for --quick.
BENCHES = {
    "explore_pages": "--pairs 50_000 --rounds 3",
    "explore_sql": "--pairs 100_000 --rounds 3",
}

if __name__ == "__main__":
    sys.exit(front.run("explore", BENCHES, ("duckdb", "nicegui", "pandas", "pyarrow"), __doc__))
