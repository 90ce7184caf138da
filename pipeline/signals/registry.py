"""Which groups of signals a recipe's rules need."""

from collections.abc import Callable, Iterable

from pipeline.errors import PairmillError
from pipeline.recipe import Screen
from pipeline.signals import TextSignals, named_in
from pipeline.signals.blocklist import Blocklist
from pipeline.signals.corpus import Ngrams, Sharing
from pipeline.signals.language import Language
from pipeline.signals.queries import Queries
from pipeline.signals.text import Repetition, Text

_MAKERS: list[tuple[tuple[str, ...], Callable[[Screen], TextSignals]]] = [
    (Text.columns, lambda _: Text()),
    (Repetition.columns, lambda _: Repetition()),
    (Sharing.columns, lambda _: Sharing()),
    (Ngrams.columns, lambda _: Ngrams()),
    (Language.columns, lambda _: Language()),
    (Queries.columns, lambda section: Queries(_given(section.queries, "queries", "balanced_queries"), section.seed)),
    (Blocklist.columns, lambda section: Blocklist(_given(section.blocklist, "blocklist", "blocked_hosts"))),
]


def text_signals(section: Screen, expressions: Iterable[str]) -> list[TextSignals]:
    """The groups that measure what the expressions name."""
    expressions = list(expressions)
    return [make(section) for columns, make in _MAKERS if named_in(expressions, columns)]


def _given(value: str | None, key: str, rule: str) -> str:
    if value is None:
        raise PairmillError(f"the rule {rule} needs [screen] {key}", f'name a file: {key} = "....txt"')
    return value
