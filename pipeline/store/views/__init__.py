"""The SQL views over a dataset's files. Nothing is copied; a view exists once its stage has run.

`create_views` makes those that the stages read themselves; `create_catalog` all of them, the macros, and what is said
of each view and column (`pipeline.store.views.comments`; docs/sql.md shows them).
"""

from typing import TYPE_CHECKING

import duckdb

from pipeline.store.views.chain import create_chain_views
from pipeline.store.views.comments import create_comments
from pipeline.store.views.duplicates import create_duplicates_view
from pipeline.store.views.features import create_feature_views, create_region_views
from pipeline.store.views.macros import create_macros
from pipeline.store.views.training import create_training_views

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

__all__ = ["create_catalog", "create_views"]


def create_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", images: bool = True) -> None:
    """Create every view of the data whose table is finished; without `images`, none that reads those."""
    if dataset.pairs.exists:
        create_chain_views(connection, dataset, images and dataset.images.exists)
        create_feature_views(connection, dataset)


def create_catalog(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """All views, the macros, and their comments."""
    create_views(connection, dataset)
    create_duplicates_view(connection, dataset)
    create_region_views(connection, dataset)
    create_training_views(connection, dataset)
    create_macros(connection, dataset)
    create_comments(connection)
