"""docs/sql.md: every query runs and gives what the document shows, and the table of views is the catalog's own."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from asked_dataset import make
from questions import DOCUMENT, Question, answer, columns, questions, rewritten, there

from pipeline.catalog import refresh
from pipeline.sql_shell.session import Session
from pipeline.store.dataset import Dataset
from pipeline.store.views.comments import VIEWS

ASKED = questions(DOCUMENT.read_text())
TRAINED = ("similar", "embeddings", "metrics", "evaluations", "seconds", "regions", "label_cooccurrence")
"""What a query reads whose numbers hang on a training, on a clock, or on which detector was at hand."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    dataset = make(tmp_path_factory.mktemp("asked"))
    refresh(dataset)
    with Session(dataset.catalog) as opened:
        yield opened


def test_there_are_twenty_questions_with_a_title_each() -> None:
    titles = [question.title for question in ASKED if question.title]
    assert len(titles) == len(set(titles)) == 20
    assert re.findall(r"^## (\d+)\.", DOCUMENT.read_text(), re.MULTILINE) == [str(n) for n in range(1, 21)]


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.title or "first")
def test_a_question_has_rows_with_the_columns_that_are_shown(session: Session, question: Question) -> None:
    found = answer(session, question.sql)
    assert columns(found) == question.columns
    for box in found.split("┌")[1:]:
        assert box.partition("├")[2].count("\n│") > 0, "no rows"
    assert "…" not in "".join(name for names in question.columns for name in names)
    assert question.output != "?"


def test_the_table_of_what_there_is_is_the_catalogs_own(session: Session) -> None:
    assert there(session) in DOCUMENT.read_text()
    rows = session.rows(
        "SELECT view_name FROM duckdb_views() WHERE NOT internal AND NOT starts_with(view_name, 'embeddings_')"
    )
    assert {view for (view,) in rows} == set(VIEWS)


def test_the_document_is_written_anew_and_then_stays(session: Session) -> None:
    before = DOCUMENT.read_text()
    after = rewritten(before, session)
    assert [question.sql for question in questions(after)] == [question.sql for question in ASKED]
    assert [question.output for question in questions(after)] != [question.output for question in ASKED]
    assert rewritten(after, session) == after
    assert rewritten(before, session, lambda _, sql: next(q.output for q in ASKED if q.sql == sql)) == before


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        # Pictures of the test split that the training split has: made pictures differ, so none; all split as one would.
        ("SELECT count(*) FROM kept AS a JOIN kept AS b USING (key) WHERE a.split <> b.split", 0),
        ("SELECT count(*) FROM verdicts WHERE rule = 'http_404' AND stage = 'download'", None),
        ("SELECT count(*) FROM unextracted", 2),
    ],
)
def test_the_made_dataset_is_what_the_questions_need(session: Session, sql: str, expected: int | None) -> None:
    ((found,),) = session.rows(sql)
    assert found == expected if expected is not None else found > 0


@pytest.mark.slow
@pytest.mark.skipif("PAIRMILL_DEMO" not in os.environ, reason="PAIRMILL_DEMO names no folder of a finished demo")
def test_the_demo_answers_as_the_document_says() -> None:
    """Where the answer hangs on the data alone."""
    dataset = Dataset(Path(os.environ["PAIRMILL_DEMO"]))
    refresh(dataset)
    compared = 0
    with Session(dataset.catalog) as opened:
        for question in ASKED:
            if not any(word in question.sql for word in TRAINED):
                assert answer(opened, question.sql) == question.output, question.title
                compared += 1
    assert compared >= 8
