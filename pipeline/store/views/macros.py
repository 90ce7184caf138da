"""Questions that are asked again and again, as table macros of the catalog."""

import math
from typing import TYPE_CHECKING

import duckdb

from pipeline.rules import RULES
from pipeline.store.sql import double, identifier, literal
from pipeline.store.verdicts import top_cutoff
from pipeline.store.views.features import embeddings_of, nearest_pictures
from pipeline.store.views.thresholds import VIEWS, failing, looks_at_others

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset


def create_macros(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """`why`, `funnel`, `would_keep`, `similar` and `label_cooccurrence`, each where what it reads is there."""
    views = {
        name for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    }

    def macro(signature: str, query: str) -> None:
        connection.execute(f"CREATE OR REPLACE MACRO {signature} AS TABLE {query}")

    columns = {stage: _rules_of(connection, view) for stage, view in VIEWS.items() if view in views}
    if "kept" in views:
        macro("funnel()", "FROM funnel")
        macro("why(pair)", _why(columns))
    if columns:
        macro("would_keep(rule, threshold)", _would_keep(connection, dataset, columns))
    if {"embeddings", "images", "kept"} <= views:  # while there are no images, kept pairs have no keys
        runs = [run for run in dataset.embeddings() if embeddings_of(run) in views]
        macro('"similar"(pair, k := 10, run := NULL)', _similar(runs, _best_run(connection, runs, views)))
    if "regions" in views:
        macro("label_cooccurrence(minimum := 0.2)", _COOCCURRENCE)


def _rules_of(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    """The rules that have a column in the view, in order."""
    names = [row[0] for row in connection.execute(f"DESCRIBE {view}").fetchall()]
    return [name for name in names if name not in ("uid", "failures")]


def _why(columns: dict[str, list[str]]) -> str:
    measured = ["SELECT '' AS stage, '' AS rule, 0.0::DOUBLE AS value WHERE false"]
    judged = ["SELECT '' AS stage WHERE false"]
    for name, rules in columns.items():
        stage, view = literal(name), VIEWS[name]
        judged.append(f"SELECT {stage} AS stage FROM {view} WHERE uid = pair")
        measured += [
            f"SELECT {stage} AS stage, {literal(rule)} AS rule, {identifier(rule)} AS value FROM {view} "
            "WHERE uid = pair"
            for rule in rules
        ]
    return f"""
        WITH found AS MATERIALIZED (SELECT stage, rule, value, detail, first FROM verdicts WHERE uid = pair),
             measured AS ({" UNION ALL ".join(measured)}), judged AS ({" UNION ALL ".join(judged)})
        SELECT rules.position, rules.stage, rules.rule, rules.measure, rules.setting,
               coalesce(found.value, measured.value) AS value, found.detail,
               CASE WHEN found.first THEN 'failed: it fell here' WHEN found.rule IS NOT NULL THEN 'failed as well'
                    WHEN rules.stage IN (SELECT stage FROM judged) THEN 'passed' ELSE 'not judged' END AS verdict
        FROM rules LEFT JOIN found USING (stage, rule) LEFT JOIN measured USING (stage, rule)
        WHERE (rules.stage <> 'download' OR found.rule IS NOT NULL) AND EXISTS (SELECT 1 FROM pairs WHERE uid = pair)
        ORDER BY rules.position"""


def _would_keep(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", columns: dict[str, list[str]]) -> str:
    found = "SELECT stage, rule, threshold FROM rules WHERE threshold IS NOT NULL"
    cutoffs = {(stage, rule): double(cutoff) for stage, rule, cutoff in connection.execute(found).fetchall()}
    every = [rule for rules in columns.values() for rule in rules]
    asked = _asked([rule for rule in every if RULES[rule].takes == "fraction"])
    branches = []
    settled = dataset.is_settled
    for stage, rules in columns.items():
        view = VIEWS[stage]
        fails_now = {rule: failing(RULES[rule], cutoffs[stage, rule]) for rule in rules}
        fails_then = {rule: failing(RULES[rule], _cutoff(rule, view, asked)) for rule in rules}
        now, then = _chosen(fails_now, "false"), _chosen(fails_then, "false")
        lone = f"failures - ({now})::INTEGER = 0"
        if stage == "filter":
            kept = f"(SELECT count(*) FROM filtered WHERE {lone} AND NOT ({then}))"
            undecided = "0::BIGINT"
            radius = cutoffs.get((stage, "near_evaluation"), double(0))
            exact = f"rule <> 'near_duplicates' AND (rule <> 'near_evaluation' OR {asked} <= {radius})"
        else:
            lost = f"(SELECT count(*) FROM screened SEMI JOIN kept USING (uid) WHERE failures = 0 AND ({then}))"
            kept = f"(SELECT count(*) FROM kept) - {lost}"
            undecided = f"(SELECT count(*) FROM screened WHERE failures > 0 AND {lone} AND NOT ({then}))"
            exact = f"{_stands_alone(dataset)} AND {undecided} = 0"
        present = {rule: f"{asked} = {cutoffs[stage, rule]}" for rule in rules if RULES[rule].takes == "number"}
        same = _chosen(present, "false")
        # Of pairs that `filter` has not judged since `screen` judged anew, nothing is known for sure.
        exact = f"({exact} OR {same})" if settled else "false"
        there = f"{asked} IS NOT NULL AND rule IN ({', '.join(map(literal, rules))})" if rules else "false"
        branches.append(
            f"SELECT rule AS rule, {asked} AS threshold, (SELECT count(*) FROM kept) AS now, "
            f"{kept} AS kept, {undecided} AS undecided, {exact} AS exact WHERE {there}"
        )
    unknown = literal(f"would_keep() takes a rule of the recipe that compares numbers: {', '.join(every)}")
    no_number = literal("would_keep(): the threshold must be a number, and of a fraction one from 0 to 1")
    known = f"coalesce(rule IN ({', '.join(map(literal, ['', *every]))}), false)"
    branches.append(
        f"SELECT error(CASE WHEN {known} AND threshold IS NOT NULL THEN {no_number} ELSE {unknown} END), "
        f"NULL, NULL, NULL, NULL, NULL WHERE {asked} IS NULL OR NOT {known}"
    )
    return " UNION ALL ".join(branches)


def _chosen(by_rule: dict[str, str], otherwise: str) -> str:
    """The expression of the rule that is asked about: with a name that is known, no other rule's column is read."""
    cases = " ".join(f"WHEN {literal(rule)} THEN {expression}" for rule, expression in by_rule.items())
    return f"CASE rule {cases} ELSE {otherwise} END" if cases else otherwise


def _asked(fractions: list[str]) -> str:
    """SQL of the macro's `threshold` as a DOUBLE; NULL where the macro's rule has no such threshold."""
    number = "TRY_CAST(threshold AS DOUBLE)"
    fits = f"rule NOT IN ({', '.join(map(literal, ['', *fractions]))}) OR {number} BETWEEN 0 AND 1"
    return f"CASE WHEN {fits} THEN nullif({number}, {double(math.nan)}) END"


def _cutoff(rule: str, view: str, asked: str) -> str:
    """SQL of what values are compared with at the threshold that is asked about."""
    return top_cutoff(identifier(rule), view, asked) if RULES[rule].takes == "fraction" else asked


def _stands_alone(dataset: "Dataset") -> str:
    """Whether no rule of `filter` looks at other pairs: those that do judge anew where `screen` lets others through."""
    rules = dataset.filtered.manifest.info["rules"].values() if dataset.filtered.exists else ()
    return str(not any(looks_at_others(said["takes"], said["measure"]) for said in rules)).lower()


def _best_run(connection: duckdb.DuckDBPyConnection, runs: list[str], views: set[str]) -> str:
    """The embedded run that finds most texts' pictures among the first ten, or the first by name."""
    if "evaluations" in views:
        ask = (
            "SELECT run FROM evaluations WHERE metric = 't2i_r10' AND run IN (FROM unnest(?)) ORDER BY value DESC, run"
        )
        runs = [run for (run,) in connection.execute(ask, [runs]).fetchall()] or runs
    return runs[0]


def _similar(runs: list[str], best: str) -> str:
    of_runs = [
        f"""(SELECT other.key, array_cosine_similarity(other.embedding, mine.embedding) AS cosine
             FROM {embeddings_of(run)} AS other,
                  (SELECT key, embedding FROM {embeddings_of(run)}
                   WHERE modality = 'image' AND key = (SELECT key FROM kept WHERE uid = pair)) AS mine
             WHERE other.modality = 'image' AND other.key <> mine.key
                   AND coalesce(run, {literal(best)}) = {literal(run)})"""
        for run in runs
    ]
    unknown = literal(f"similar() takes a run that has embeddings: {', '.join(runs)}")
    of_runs.append(
        f"SELECT error({unknown}), NULL WHERE run IS NOT NULL AND run NOT IN ({', '.join(map(literal, runs))})"
    )
    return f"""
        SELECT row_number() OVER (ORDER BY cosine DESC NULLS LAST, key) AS rank, cosine, key, uid, text
        FROM ({nearest_pictures(" UNION ALL ".join(of_runs), "k")}) ORDER BY rank"""


_COOCCURRENCE = """
    WITH seen AS MATERIALIZED (SELECT DISTINCT extractor, key, label FROM regions
                               WHERE label IS NOT NULL AND confidence >= minimum),
         alone AS (SELECT extractor, label, count(*) AS images FROM seen GROUP BY ALL),
         pictures AS (SELECT extractor, images FROM features)
    SELECT extractor, a.label, b.label AS other, count(*) AS images,
           count(*) * any_value(pictures.images) / (any_value(one.images) * any_value(two.images)) AS lift
    FROM seen AS a JOIN seen AS b USING (extractor, key)
         JOIN alone AS one ON one.extractor = a.extractor AND one.label = a.label
         JOIN alone AS two ON two.extractor = a.extractor AND two.label = b.label
         JOIN pictures USING (extractor)
    WHERE a.label < b.label GROUP BY ALL ORDER BY images DESC, lift DESC, a.label, other"""
