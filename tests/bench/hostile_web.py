"""Images of a web of which some hosts drip their bytes, some bodies are huge and some pictures are bombs, next to plain
img2dataset with the same threads.

`python -m tests.bench.hostile_web --images 2000`
"""

import argparse

from tests.bench.bench_web import serving
from tests.bench.crawls import Settings, alternating
from tests.bench.table import Row, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=100, help="of which 2 in 100 drip")
    parser.add_argument("--drip-seconds", type=float, default=300, help="how long one of their bodies takes")
    parser.add_argument("--huge", type=int, default=4, help="bodies of 400 MB")
    parser.add_argument("--bombs", type=int, default=4, help="PNGs of 30 000 x 30 000 pixels")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--deadline", type=float, default=10, help="seconds for one answer; img2dataset has none")
    options = parser.parse_args()
    dripping = max(1, options.hosts * 2 // 100)
    with serving(options.hosts, options.drip_seconds) as hosts:
        urls = []
        for index in range(options.images):
            host = index % len(hosts)
            kind = "drip" if host < dripping else "photo"
            if kind == "photo" and index // len(hosts) < 1:
                nth = host - dripping
                kind = "huge" if nth < options.huge else "bomb" if nth < options.huge + options.bombs else kind
            urls.append(f"{hosts[host]}/{kind}/{index}.jpg")
        settings = Settings(
            urls, options.threads, timeout=5, deadline=options.deadline, retries=1, images_per_shard=1000
        )
        ours, theirs = alternating(settings, 1)
    clean = sum("/photo/" in url for url in urls)
    if ours.ok != clean:
        raise RuntimeError(f"{clean} pictures are sound, but {ours.ok} were stored")
    work = f"{options.images:,} images, {dripping} % of hosts drip for {options.drip_seconds:.0f} s, huge bodies, bombs"
    peer = f"plain img2dataset, same threads ({theirs.seconds:.0f} s, {theirs.peak / 1e6:,.0f} MB)"
    peak = ours.peak / 1e6
    write(
        "hostile_web",
        [
            Row.of(work, peer, theirs.seconds / ours.seconds, "x faster", ">= 10"),
            Row.of("the same: peak memory of a worker", "itself", peak, "MB", "<= 700"),
        ],
    )


if __name__ == "__main__":
    main()
