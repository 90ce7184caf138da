"""DuckDB's own shell, where it is installed and understands the catalog."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.store.sql import READING

_TRIAL = "SELECT count(*) FROM duckdb_columns()"
"""Reads every view of the catalog, which a version that lacks what one of them uses cannot."""
_PATIENCE = 20.0


def replace_by_duckdb(catalog: Path) -> bool:
    """Become `duckdb` on this catalog, and do not return; False where there is none that can open it."""
    found = shutil.which("duckdb")
    if found is None:
        return False
    if not _opens(found, catalog):
        print(f"{found} cannot open this catalog (it may be older): this is PairMill's own prompt", file=sys.stderr)
        return False
    sys.stdout.flush()
    os.execv(found, [found, "-readonly", "-cmd", READING, str(catalog)])


def _opens(program: str, catalog: Path) -> bool:
    command = [program, "-init", os.devnull, "-readonly", "-cmd", READING, "-c", _TRIAL, str(catalog)]
    try:
        trial = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return trial.returncode == 0
