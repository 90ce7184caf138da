"""Fixtures over the made-up datasets of `synthetic`."""

import os

import pytest
import torch
from synthetic import make_dataset

from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore

# What is compared to the last bit is computed on the CPU, whatever the machine has.
os.environ["ACCELERATE_USE_CPU"] = "true"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Read-only: tests that write runs make their own."""
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def region_store(dataset: Dataset) -> FeatureStore:
    return FeatureStore(dataset.features("region"))
