"""A made-up web up to its boxes, once a session; and no hub for the libraries that would ask one."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import kept_web


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> kept_web.Web:
    """Not to be changed."""
    return kept_web.make(tmp_path_factory.mktemp("kept") / "data")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug, and everybody else's files would be waited for as well."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares goes to the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
