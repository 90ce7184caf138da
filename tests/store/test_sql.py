"""The settings of our connections, by what goes wrong without them."""

import subprocess
import sys
from pathlib import Path

FAILING_COPIES = """
import sys
import duckdb
from pipeline.store.sql import open_duckdb
late = "SELECT CASE WHEN range = 1500000 THEN error('late') ELSE range END AS n FROM range(2000000)"
with open_duckdb() as connection:
    for _ in range(100):
        try:
            connection.execute(f"COPY ({late}) TO '{sys.argv[1]}' (FORMAT parquet)")
        except duckdb.Error as error:
            assert "late" in str(error)
        else:
            raise SystemExit("the query did not fail")
"""


def test_a_copy_that_fails_ends(tmp_path: Path) -> None:
    """With DuckDB 2.0's own settings about one in fifty waits for ever, deaf to an interrupt."""
    subprocess.run([sys.executable, "-c", FAILING_COPIES, str(tmp_path / "rows.parquet")], check=True, timeout=120)
