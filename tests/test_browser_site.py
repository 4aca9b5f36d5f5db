"The site in a browser: every explorer's page and the landing page move without a kernel, and ask nobody else."
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading

import check
import pytest
from lab import FLAGS

KEEP = ("index", "laboratories/pentachora", "explorers/simplex", "explorers/ternary", "explorers/chromatic", "explorers/tokens", "explorers/runs")
FILM = "document.querySelector('.geonb-film .js-plotly-plot')"
SHOWN = f"""() => JSON.stringify({FILM}.data.map(t => [t.x, t.y, t.z, t.marker && t.marker.color, t.line && t.line.color]
    .map(v => ArrayBuffer.isView(v) ? Array.from(v) : v)), (k, v) => ArrayBuffer.isView(v) ? Array.from(v) : v)"""


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    "The plain site of the pages that move, built from a copy of the checkout as `make docs` builds it."
    tree = check.copy_tree(root, tmp_path_factory.mktemp("site")/"tree")
    for p in (tree/"nbs").rglob("*.ipynb"):
        if p.relative_to(tree/"nbs").with_suffix("").as_posix() not in (*KEEP, "api/core/01_seeds"): p.unlink()
    out = tree.parent/"out"; script = tree.parent/"build.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(tree/'.ci')!r}); import docs\nif __name__ == '__main__': docs.build({str(out)!r}, {str(tree)!r})")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def server(site):
    "The site on this machine: its address, and what was sent whole."
    sent = []
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def log_request(self, code="-", size="-"): sent.append((self.path, int(code)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{s.server_address[1]}", sent
        s.shutdown()


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield b
        b.close()


class Reader:
    "Somebody with a browser: one context, so that its cache is one."
    def __init__(self, browser, base, watched=True, **how):
        self.context, self.base, self.errors, self.outside = browser.new_context(viewport=dict(width=1300, height=1500), **how), base, [], []
        if watched: self.context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), self.elsewhere)
    def elsewhere(self, route):
        self.outside.append(route.request.url); route.fulfill(status=200, content_type="text/javascript", body="")
    def open(self, page):
        tab = self.context.new_page(); tab.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None); tab.on("pageerror", lambda e: self.errors.append(str(e)))
        tab.goto(f"{self.base}/{page}.html"); return tab
    def film(self, page):
        "A page whose film stands: its frames are there and the still is gone."
        tab = self.open(page); tab.wait_for_function(f"() => {FILM} && {FILM}._transitionData && {FILM}._transitionData._frames.length > 1 && !document.querySelector('.geonb-film > img')", timeout=120_000)
        return tab


def test_films_are_small_and_plotly_lies_there_once(site):
    sizes = {p.name: p.stat().st_size for p in (site/"films").iterdir()}; print(sizes)
    assert {f"{p.split('/')[1]}.js" for p in KEEP if p.startswith("explorers/")} <= sizes.keys()
    assert all(n <= 5_000_000 for k, n in sizes.items())
    assert [p.relative_to(site).as_posix() for p in site.rglob("*plotly*")] == ["films/plotly.min.js"] and b"plotly.js v" in (site/"films"/"plotly.min.js").read_bytes()[:200]
    for page in site.rglob("*.html"):
        outside = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)', page.read_text())
        assert not outside, f"{page.name} asks {outside}"


@pytest.mark.parametrize("page", [p for p in KEEP])
def test_page_moves(page, browser, server):
    base, sent = server; reader = Reader(browser, base, reduced_motion="reduce"); tab = reader.film(page)
    before = tab.evaluate(SHOWN); steps = tab.evaluate(f"() => {FILM}.layout.sliders[0].steps.map(s => s.label)"); active = tab.evaluate(f"() => {FILM}.layout.sliders[0].active || 0")
    assert len(steps) > 1
    tab.locator(".geonb-film").scroll_into_view_if_needed(); other = len(steps) - 1 if active < len(steps) / 2 else 0
    rail = tab.locator(".geonb-film .slider-rail-touch-rect").first.bounding_box(); tab.mouse.click(rail["x"] + (rail["width"] - 2 if other else 2), rail["y"] + rail["height"]/2)
    tab.wait_for_function(f"([was, show]) => eval(show)() !== was", arg=[before, SHOWN], timeout=60_000)
    assert tab.evaluate(f"() => {FILM}.layout.sliders[0].active") == other
    assert not reader.errors and not reader.outside
    reader.context.close()


def test_plotly_travels_once(browser, server):
    base, sent = server; reader = Reader(browser, base, watched=False, reduced_motion="reduce"); sent.clear()   # a watched context has no cache
    for page in KEEP[:3]: reader.film(page).close()
    assert [code for path, code in sent if path.endswith("plotly.min.js") and code == 200] == [200], "the browser has it in its cache"
    reader.context.close()


def test_landing_page_plays_by_itself_unless_motion_is_unwanted(browser, server):
    reader = Reader(browser, server[0]); tab = reader.film("index"); before = tab.evaluate(SHOWN)
    tab.wait_for_function("([was, show]) => eval(show)() !== was", arg=[before, SHOWN], timeout=60_000); reader.context.close()
    calm = Reader(browser, server[0], reduced_motion="reduce"); tab = calm.film("index"); before = tab.evaluate(SHOWN); tab.wait_for_timeout(1500)
    assert tab.evaluate(SHOWN) == before; calm.context.close()


def test_without_javascript_the_still_stays(browser, server):
    reader = Reader(browser, server[0], java_script_enabled=False); tab = reader.open("explorers/simplex"); still = tab.locator(".geonb-film img")
    assert still.count() == 1 and still.bounding_box()["width"] > 300 and "still" in still.get_attribute("alt")
    reader.context.close()


def test_film_opens_from_a_folder(browser, site):
    reader = Reader(browser, "http://nowhere"); tab = reader.context.new_page(); tab.goto((site/"explorers"/"runs.html").as_uri())
    tab.wait_for_function(f"() => {FILM} && {FILM}._transitionData && {FILM}._transitionData._frames.length > 1", timeout=60_000); reader.context.close()


@pytest.mark.parametrize("theme, darker", [("light", False), ("dark", True)])
def test_text_of_a_film_is_legible_in_the_reader_s_theme(theme, darker, browser, server):
    "Contrast of at least 4.5 between the page's ground and the film's own text."
    reader = Reader(browser, server[0], color_scheme=theme, reduced_motion="reduce"); tab = reader.film("explorers/simplex")
    ink, ground = (list(map(float, re.findall(r"[\d.]+", tab.evaluate(js))[:3])) for js in (f"() => getComputedStyle(document.querySelector('.geonb-film .gtitle')).fill", "() => getComputedStyle(document.body).backgroundColor"))
    light = lambda c: sum(w*(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), (x/255 for x in c)))
    high, low = sorted((light(ink), light(ground)), reverse=True); assert (high + .05)/(low + .05) > 4.5 and (light(ground) < .1) == darker
    reader.context.close()
