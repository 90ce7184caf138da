"""The query page in a browser."""

from urllib.parse import quote

import pytest
from explored import BREAKOUT, HOSTILE_CLASS, HOSTILE_URL, SCRIPT, TEMPLATE, Explored, pairs
from playwright.sync_api import Browser, Page, expect

from pipeline.explorer.pages.query import EXAMPLES

LOADED = "image => image.complete && image.naturalWidth > 0"


def ask(page: Page, sql: str) -> None:
    """Type a query into the page, which is opened where it is not, and wait for the answer."""
    if page.locator(".cm-content").count() == 0:
        page.goto(f"/?q={quote(sql)}")
    else:
        page.evaluate("document.querySelector('.explorer-answer').replaceChildren()")
        typed(page, sql)
        page.keyboard.press("Control+Enter")
    page.wait_for_selector(".explorer-answer > *", timeout=15_000)
    expect(page.get_by_role("status")).not_to_contain_text("asking for")


def typed(page: Page, sql: str) -> None:
    page.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(sql)


def test_a_query_is_typed_run_and_shown(page: Page) -> None:
    page.goto("/")
    page.wait_for_selector(".explorer-item")
    typed(page, "SELECT count(*) AS pairs, 'x' AS letter FROM pairs")
    page.keyboard.press("Control+Enter")
    cells = page.locator(".explorer-answer td")
    expect(cells).to_have_text([str(len(pairs())), "x"])
    assert "q=SELECT" in page.url
    page.reload()
    expect(page.locator(".explorer-answer td")).to_have_text([str(len(pairs())), "x"])


def test_pictures_are_shown_with_texts_and_verdicts(page: Page) -> None:
    ask(page, "SELECT uid, key FROM kept ORDER BY key LIMIT 5")
    items = page.locator(".explorer-item")
    expect(items).to_have_count(5)
    for image in items.locator("img").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function(LOADED, arg=image.element_handle())
    expect(items.first).to_contain_text("http://web.example/")
    ask(page, "FROM drops WHERE rule = 'min_side'")
    expect(page.locator(".explorer-fell").first).to_contain_text("filter: min_side 24")


def test_a_hostile_caption_is_text(page: Page) -> None:
    for caption in (SCRIPT, BREAKOUT, TEMPLATE):
        look_at(page, caption)


def look_at(page: Page, caption: str) -> None:
    ask(page, f"FROM pairs WHERE text = '{caption}'")
    expect(page.locator(".explorer-text")).to_have_text(caption)
    page.get_by_role("button", name="Table").click()
    expect(page.locator(".explorer-answer td", has_text=caption)).to_have_count(1)
    page.get_by_role("button", name="Pictures").click()
    page.locator(".explorer-item").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Every rule, in order")).to_be_visible()
    expect(dialog.get_by_text(caption).first).to_be_visible()
    page.wait_for_timeout(300)
    assert page.locator("img[src=x], svg[onload], img[onerror]").count() == 0
    dialog.get_by_role("button", name="close").click()
    expect(dialog).to_have_count(0)


def test_hostile_column_names_values_and_errors_are_text(page: Page) -> None:
    for value in (SCRIPT, BREAKOUT, TEMPLATE):
        name = value.replace('"', '""')
        ask(page, f"""SELECT '{value}' AS "{name}", {{'a': ['{value}']}} AS nested""")
        expect(page.locator(".explorer-answer th").first).to_contain_text(value)
        expect(page.locator(".explorer-answer td").first).to_have_text(value)
        ask(page, f'FROM "{name}"')
        expect(page.locator(".explorer-error")).to_contain_text(value)


def test_a_url_of_another_scheme_is_no_link(page: Page) -> None:
    ask(page, f"FROM pairs WHERE url = '{HOSTILE_URL}'")
    page.locator(".explorer-item").click()
    expect(page.get_by_role("dialog").get_by_text(HOSTILE_URL)).to_be_visible()
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.get_by_role("link", name="open").count() == 0
    page.get_by_role("button", name="close").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    ask(page, "FROM pairs WHERE url = 'http://web.example/1.png' LIMIT 1")
    page.locator(".explorer-item").click()
    link = page.get_by_role("dialog").get_by_role("link", name="open")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")


def test_boxes_are_drawn_into_the_picture_and_not_into_the_page(page: Page) -> None:
    ask(page, "FROM regions WHERE label <> 'thing' LIMIT 1")
    expect(page.locator(".explorer-item")).to_contain_text(HOSTILE_CLASS)
    with page.expect_response("**/picture/*?side=1024&boxes=region") as boxed:
        page.locator(".explorer-item").click()
    with page.expect_response("**/picture/*?side=1024") as plain:
        page.get_by_role("dialog").get_by_role("button", name="no boxes").click()
    assert boxed.value.ok
    assert plain.value.ok
    assert plain.value.body() != boxed.value.body()


def test_what_is_refused_says_why(page: Page) -> None:
    for sql, sentence in (
        ("COPY pairs TO '/tmp/stolen.csv'", "refused: COPY"),
        ("ATTACH '/tmp/other.duckdb'", "refused: ATTACH"),
        ("INSTALL httpfs", "refused: LOAD"),
        ("FROM read_csv('/etc/passwd')", "Permission Error"),
        ("SELECT nothing FROM pairs", "Binder Error"),
    ):
        ask(page, sql)
        expect(page.get_by_role("alert")).to_contain_text(sentence)


def test_a_long_query_is_cancelled_and_the_next_one_runs(page: Page) -> None:
    page.goto("/")
    page.wait_for_selector(".explorer-item")
    typed(page, "SELECT sum(i) FROM range(1000000000000000) t(i)")
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("cancelled")
    typed(page, "SELECT 42 AS answer")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".explorer-answer td")).to_have_text(["42"])


def test_every_example_runs(page: Page) -> None:
    page.goto("/")
    page.wait_for_selector(".explorer-item")
    shown = []
    for example in EXAMPLES:
        page.get_by_role("button", name="Examples").click()
        page.wait_for_selector(".q-menu .q-item")
        item = page.locator(".q-menu .q-item", has_text=example.title)
        if item.count():
            item.click()
            expect(page.get_by_role("status")).to_contain_text(" s", timeout=15_000)
            expect(page.locator(".explorer-answer > *").first).to_be_visible()
            assert page.get_by_role("alert").count() == 0, example.title
            shown.append(example.title)
        else:
            page.keyboard.press("Escape")
        expect(page.locator(".q-menu")).to_have_count(0)
    assert {"What is kept", "Why one pair fell out", "What the detector sees"} <= set(shown)
    assert "How good the models are" not in shown  # there are none here


def test_the_editor_completes_names_of_the_catalog(page: Page) -> None:
    page.goto("/")
    page.wait_for_selector(".explorer-item")
    typed(page, "FROM quarant")
    page.keyboard.type("i")
    expect(page.locator(".cm-tooltip-autocomplete")).to_contain_text("quarantine")
    # Not Enter: CodeMirror takes none for a list that has just opened, and on a busy machine it opens again and again.
    page.locator(".cm-tooltip-autocomplete li").filter(has_text="quarantine").first.click()
    expect(page.locator(".cm-content")).to_have_text("FROM quarantine")


def test_pages_of_pictures(page: Page) -> None:
    ask(page, "FROM pairs ORDER BY url, text")
    expect(page.locator(".explorer-item")).to_have_count(48)
    page.get_by_role("button", name="2", exact=True).click()
    expect(page.locator(".explorer-item")).to_have_count(len(pairs()) - 48)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, server: Explored, scheme: str) -> None:
    size = {"width": 390, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=scheme, base_url=server.address)
    page = context.new_page()
    for sql in ("FROM kept LIMIT 48", "FROM images", "EXPLAIN FROM kept"):
        ask(page, sql)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('body--dark')") == (scheme == "dark")
    context.close()


def test_the_appearance_is_kept(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/")
    page.wait_for_selector(".explorer-item")
    page.get_by_role("button", name="light or dark").click()
    page.wait_for_selector("body.body--dark")
    page.wait_for_function("document.cookie.includes('appearance=dark')")
    page.reload()
    page.wait_for_selector("body.body--dark")


def test_another_sites_link_shows_a_query_and_does_not_run_it(browser: Browser, server: Explored) -> None:
    page = browser.new_page()
    body = f'<a href="{server.address}/?q={quote("SELECT 42 AS answer")}">look</a>'
    page.route("http://web.example/", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto("http://web.example/")
    page.get_by_role("link").click()
    expect(page.locator(".cm-content")).to_have_text("SELECT 42 AS answer")
    page.wait_for_timeout(500)
    assert page.locator(".explorer-answer > *").count() == 0
    page.close()
