"""Calls of the command line: inside this process, and as a process of its own that can be killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

DATA_STAGES = ("ingest", "screen", "download", "filter", "extract")


def start(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`pairmill ARGUMENTS` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def call(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    return finish(start(*arguments, cwd=cwd, environment=environment))


def until(condition: Callable[[], object], seconds: float = 20, what: str = "") -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s: {what}"
        time.sleep(0.01)


def session_members(session: int) -> list[int]:
    """Processes of a session that still live (zombies do not)."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(after_name[3]) == session and after_name[0] != "Z":
                alive.append(int(entry.name))
    return alive


def kill_hard(process: subprocess.Popen[str]) -> None:
    """kill -9 of the one process; its workers must follow by themselves."""
    session = process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not session_members(session), 20, "workers outlive a killed parent")


def committed_bytes(root: Path) -> dict[str, str]:
    """Digest of every file of the tables and of their manifests without the seconds; nothing else may lie there."""
    digests = {}
    for folder in ("pairs", "verdicts", "signals", "images", "features"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.name == "manifest.json":
                    content = b"\n".join(line for line in content.splitlines() if not line.startswith(b' "seconds"'))
                digests[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return digests
