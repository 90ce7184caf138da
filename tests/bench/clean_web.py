"""Clean images, next to plain img2dataset with the same threads: the guard must cost nothing.

`python -m tests.bench.clean_web --images 5000`
"""

import argparse

from tests.bench.bench_web import serving
from tests.bench.crawls import Settings, alternating
from tests.bench.table import Row, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns; the medians are compared")
    options = parser.parse_args()
    with serving(options.hosts) as hosts:
        urls = [f"{hosts[index % len(hosts)]}/photo/{index}.jpg" for index in range(options.images)]
        settings = Settings(urls, options.threads, timeout=10, deadline=30, retries=1, images_per_shard=1000)
        ours, theirs = alternating(settings, options.rounds)
    if (ours.ok, theirs.ok) != (len(urls), len(urls)):
        raise RuntimeError(f"of {len(urls)} images {ours.ok} and {theirs.ok} were stored")
    work = f"{options.images:,} clean images, {ours.requested / ours.seconds:.0f} a second"
    row = Row.of(work, "plain img2dataset, same threads", theirs.seconds / ours.seconds, "x its speed", ">= 0.95")
    write("clean_web", [row])


if __name__ == "__main__":
    main()
