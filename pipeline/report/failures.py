"""Downloads that failed: the causes, the hosts, and how long their answers took."""

from dataclasses import dataclass

import duckdb

from pipeline.report import charts, histograms
from pipeline.report.charts import Chart
from pipeline.report.samples import order
from pipeline.rules import HOST
from pipeline.store.sql import literal

HOSTS = 12
CAUSES = 40
URLS = 4


@dataclass(frozen=True)
class Failure:
    """A cause of failed downloads: how many urls, and some of them."""

    urls: int
    examples: list[str]


@dataclass(frozen=True)
class Host:
    """A host: how many urls were asked of it, how many failed by each cause, and what its answers took."""

    name: str
    urls: int
    causes: dict[str, int]
    seconds: float | None = None
    attempts: float | None = None

    @property
    def failed(self) -> int:
        return sum(self.causes.values())


@dataclass(frozen=True)
class Failures:
    """Causes and hosts, those with most failures first. `seconds` is drawn where the log of fetches is there."""

    causes: dict[str, Failure]
    hosts: list[Host]
    all_hosts: int
    seconds: Chart | None
    remarks: list[str]


def failures(connection: duckdb.DuckDBPyConnection) -> Failures | None:
    """None where every download worked."""
    counted = connection.execute(
        f"SELECT status, count(*) FROM images WHERE status <> 'ok' GROUP BY status ORDER BY 2 DESC, 1 LIMIT {CAUSES}"
    ).fetchall()
    if not counted:
        return None
    causes = {}
    for cause, urls in counted:
        examples = connection.execute(
            f"SELECT url FROM images WHERE status = ? ORDER BY {order('url')}, url LIMIT {URLS}", [cause]
        ).fetchall()
        causes[cause] = Failure(urls, [url for (url,) in examples])
    fetched = bool(connection.execute("FROM duckdb_views() WHERE view_name = 'fetches'").fetchall())
    hosts, all_hosts = _hosts(connection, fetched)
    drawing, remarks = None, []
    if fetched and (bars := histograms.histogram(connection, "fetches", "seconds", ["status = 'ok'", "true"])):
        drawing = histograms.chart(
            bars, "Seconds by url", [charts.KEPT, charts.DROPPED], ["downloaded", "failed"], "urls"
        )
        remarks = histograms.remarks(bars, "urls")
    return Failures(causes, hosts, all_hosts, drawing, remarks)


def _hosts(connection: duckdb.DuckDBPyConnection, fetched: bool) -> tuple[list[Host], int]:
    """The hosts with most failed urls, and how many hosts there are."""
    host = f"lower(regexp_extract(url, {literal(HOST)}, 1))"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE by_host AS SELECT url, status, {host} AS host FROM images")
    ((number,),) = connection.execute("SELECT count(DISTINCT host) FROM by_host").fetchall()
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE worst AS SELECT host FROM by_host GROUP BY host "
        f"HAVING count(*) FILTER (status <> 'ok') > 0 "
        f"ORDER BY count(*) FILTER (status <> 'ok') DESC, host LIMIT {HOSTS}"
    )
    rows = connection.execute(
        "SELECT host, status, count(*) FROM by_host SEMI JOIN worst USING (host) GROUP BY ALL ORDER BY 3 DESC, status"
    ).fetchall()
    took = {}
    if fetched:
        took = {
            host: (seconds, attempts)
            for host, seconds, attempts in connection.execute(
                "SELECT host, quantile_disc(seconds, 0.5), avg(attempts) "
                "FROM (FROM by_host SEMI JOIN worst USING (host)) JOIN fetches USING (url) GROUP BY host"
            ).fetchall()
        }
    urls: dict[str, int] = {}
    causes: dict[str, dict[str, int]] = {}
    for name, status, count in rows:
        urls[name] = urls.get(name, 0) + count
        if status != "ok":
            causes.setdefault(name, {})[status] = count
    hosts = [Host(name, urls[name], own, *took.get(name, (None, None))) for name, own in causes.items()]
    return sorted(hosts, key=lambda host: (-host.failed, host.name)), number
