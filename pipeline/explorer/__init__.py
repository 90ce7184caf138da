"""The explorer: a local web app to question a dataset and look at it. `make explore`.

app.py       the pages' table, what they share (header, appearance, the route of the pictures), the server
guard.py     which hosts and origins are answered, and what a browser may load
querying.py  SQL, read-only, in processes that can be killed: time, rows, memory and files are limited (worker.py)
explorer.py  `Explorer`: what every page is given;  appearance.py: light or dark, which plots and editors follow
grid.py      rows as pictures, shared by the pages;  boxes.py: a detector's boxes drawn into a picture
pages/       a page each: an async function of the explorer, and a row in `app.PAGES`

A page's function builds into the open page: the header is there already, and all that it makes goes below it.

    async def page(explorer: Explorer) -> None:
        ui.label("...")                                        # the frame first: a response must not wait for SQL
        await ui.context.client.connected()                    # then ask
        answer = await explorer.ask("SELECT uid, key, text FROM kept WHERE text LIKE ?", ["%cat%"], rows=60)
        for row in answer.rows: row["uid"]                     # dicts by column; answer.more: there were more rows
        words = (await explorer.arrays("SELECT words FROM screened"))["words"]     # numpy, masked where NULL
        await picture_grid(explorer, answer.rows)              # rows with a `uid` or a `key`; paged

`explorer.dataset`, `.recipe` (None where none was named), `.recipe_path`, `.pictures`, `.encode` (run, text) -> list of
float, or None; `.views()`: the catalog's views with columns and comments (`"embeddings" in await explorer.views()`).
Errors that a user can cause are PairmillError, from `ask` as well (DuckDB's words, a limit, a refusal): `said(error)`
of grid.py shows them. Cancelling the task that waits for `ask` ends the query.

What comes from the dataset is text: labels, tables, inputs; never `ui.html`, `ui.markdown`, an icon, a link's target, a
class, or the key of a dictionary of properties (NiceGUI takes keys that begin with a colon for JavaScript).
"""
