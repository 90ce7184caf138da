"""The corpus-wide rules on a cluster of two nodes, one of which dies midway."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import call, committed_bytes, until

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

RECIPE = """
name = "cluster"
[ingest]
inputs = ["{inputs}"]
shards = 24
[screen.rules]
max_images_per_text = 3
max_texts_per_url = 4
min_words = 2
max_words = 5
vocabulary = 300
min_word_frequency = 40
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 4))) for _ in range(400)]
    rows = [
        (f"http://h/{draw.randrange(9000)}", " ".join(draw.choices(words, range(400, 0, -1), k=draw.randint(1, 6))))
        for _ in range(30_000)
    ]
    urls, texts = zip(*rows, strict=True)
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "list.parquet")
    recipe = tmp_path / "cluster.toml"
    recipe.write_text(RECIPE.format(inputs=tmp_path / "list.parquet"))
    return recipe


@pytest.mark.slow
def test_a_node_that_dies_midway_changes_no_verdict(lists: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    def arguments(name: str) -> list[str]:
        return ["--data", str(tmp_path / name), "--recipe", str(lists)]

    for stage, name in (("ingest", "alone"), ("ingest", "many"), ("screen", "alone")):
        status, out, err = call(stage, *arguments(name), cwd=tmp_path)
        assert status == 0, out + err

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=2)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "screen", "--engine", "ray", *arguments("many")],
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        staging = tmp_path / "many" / ".staging" / "screen"
        until(lambda: process.poll() is not None or len(list(staging.rglob("*.found.parquet"))) >= 4, 90, "some work")
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        cluster.remove_node(doomed, allow_graceful=False)
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
    finally:
        cluster.shutdown()
    assert committed_bytes(tmp_path / "many") == committed_bytes(tmp_path / "alone")
    assert (tmp_path / "many" / "signals" / "ngrams").exists()
