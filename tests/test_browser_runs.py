"The runs explorer in JupyterLab, in a headless Chromium."
import shutil
import time
from dataclasses import replace

import pytest
from geonb.explorers.runs import RunsExplorer
from lab import Lab
from pages import expect
from shelves import finished, partial

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def soon(check, seconds=20):
    "Wait until it is so."
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end: time.sleep(.1)
    return check()


@pytest.mark.timeout(600)
def test_runs_explorer(root, chromium, tmp_path):
    "Filters, headings, boxes by click and by keyboard, panels, columns, pages, refresh, checks; a bundle damaged and one gone meanwhile."
    shelf = tmp_path/"runs"; kept = [finished(shelf, f"{c*10}-r1", seed=i, skill=.6 + .1*i, lr=lr) for i, (c, lr) in enumerate(zip("abcd", (.1, .2, .1, .2)))]
    for i in range(26): finished(shelf, f"{i:010d}-r1", seed=i, laboratory="ternary", metric="exact A", answers=False, started="2025-06-01T00:00:00Z", width=i % 4)
    partial(shelf, "ffffffffff-r1", lr=.3); (shelf/"pentachora"/"digits"/"holiday-r1").mkdir(); spoilt = finished(shelf, "9999999999-r1", seed=9); (spoilt/"manifest.json").write_text("{")
    shutil.copy(root/"nbs"/"explorers"/"runs.ipynb", tmp_path); explorer, shots = RunsExplorer(shelf), tmp_path/"shots"; shots.mkdir(); state = explorer.first()
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(shelf)}, size=(1500, 2400)) as lab:
        page = lab.open("runs.ipynb"); lab.run_all(page); page.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000)
        def rows(): return [" ".join(t.split()) for t in page.locator(".geonb-row:visible").all_inner_texts() if t.strip()]
        def labels(): return [t for t in page.locator(".geonb-runs .widget-checkbox:visible").all_inner_texts() if t.strip() and "first" not in t]
        def same(state):
            expect(lab, page, explorer, state, 60); want = [label for _, label, _ in explorer.table(state)]
            assert soon(lambda: labels() == want), (labels()[:4], want[:4]); n = len(explorer.settled(state).selected); assert soon(lambda: page.locator(".geonb-row.chosen").count() == sum(k in explorer.settled(state).selected for k, _, _ in explorer.table(state))), n
        def box(name): return page.get_by_label(name, exact=True)
        same(state); page.screenshot(path=shots/"start.png"); assert any("the command that started it continues it" in r for r in rows())
        box("cccccccccc-r1").uncheck(); same(state := explorer.settled(replace(state, selected=("dddd", "bbbb"))))
        box("aaaaaaaaaa-r1").focus(); page.keyboard.press("Space"); lab.settle(page); same(state := explorer.settled(replace(state, selected=("dddd", "bbbb", "aaaa"))))   # by keyboard alone
        lab.select(page, "column", "loss/total"); same(state := replace(state, column="loss/total")); lab.select(page, "laboratory", "pentachora"); same(state := replace(state, laboratory="pentachora"))
        page.get_by_placeholder("words, or name=value").fill("lr=0.2"); same(state := replace(state, text="lr=0.2")); page.get_by_placeholder("words, or name=value").fill(""); same(state := replace(state, text=""))
        lab.select(page, "status", "finished"); same(state := replace(state, status="finished")); lab.select(page, "data set", "digits"); same(state := replace(state, dataset="digits")); lab.select(page, "metric", "test accuracy"); same(state := replace(state, metric="test accuracy"))
        page.locator("button:has-text('metric')").first.focus(); page.keyboard.press("Enter"); lab.settle(page); same(state := replace(state, sort="metric", descending=True)); page.get_by_label("largest or newest first").uncheck(); same(state := replace(state, descending=False))
        lab.select(page, "order by", "run"); same(state := replace(state, sort="run"))
        lab.click(page, "confusion"); same(state := replace(state, panel="confusion")); page.screenshot(path=shots/"confusion.png"); lab.click(page, "difference"); same(state := replace(state, panel="difference")); page.screenshot(path=shots/"difference.png"); lab.click(page, "curves"); same(state := replace(state, panel="curves"))
        lab.select(page, "laboratory", "all"); lab.select(page, "status", "all"); same(state := replace(state, laboratory="all", status="all")); lab.select(page, "page", "2 of 2"); same(state := replace(state, page=1)); assert len(labels()) == len(explorer.shelf.rows) - 25 and any("holds no run of geonb" in r for r in rows())
        shown = " ".join(page.locator(".geonb-readout").inner_text().split())
        for name, value in explorer.readout(state): assert f"{name} {value}" in shown
        for part in ("lr", "test accuracy", "one run of each cannot tell"): assert part in page.locator(".geonb-runs").last.inner_text() + " ".join(page.locator(".geonb-runs").all_inner_texts())
        (kept[1]/"history.csv").write_text("spoilt"); lab.click(page, "verify selected"); assert soon(lambda: "3 checked, 1 not in order" in " ".join(page.locator(".geonb-runs").all_inner_texts()), 60)
        said = " ".join(page.locator(".geonb-runs").all_inner_texts()); assert "bbbbbbbbbb-r1: history.csv does not match its SHA-256" in said and "dddddddddd-r1: sound" in said; page.screenshot(path=shots/"verified.png")
        lab.select(page, "laboratory", "pentachora"); same(state := replace(state, laboratory="pentachora", page=0)); lab.click(page, "verify shown"); assert soon(lambda: "7 checked, 4 not in order" in " ".join(page.locator(".geonb-runs").all_inner_texts()), 60)
        shutil.rmtree(kept[3]); lab.select(page, "column", "val/accuracy"); assert soon(lambda: page.locator(".geonb-problem").count()) and "history.json of dddddddddd-r1 is not there, nor is its folder any more" in page.locator(".geonb-problem").inner_text(); page.screenshot(path=shots/"vanished.png")
        finished(shelf, "eeeeeeeeee-r1", seed=5, lr=.4); lab.click(page, "refresh"); explorer = RunsExplorer(shelf); same(state := explorer.settled(replace(state, selected=("bbbb", "aaaa"), column="val/accuracy")))
        assert "unticked" in page.locator(".geonb-problem").inner_text() and "1 new" in page.locator("[role=status]").first.inner_text()
        lab.click(page, "untick all"); same(state := explorer.settled(replace(state, selected=(), column=""))); assert not page.locator(".geonb-problem").count()
        for name in ("aaaaaaaaaa-r1", "cccccccccc-r1", "eeeeeeeeee-r1"): box(name).check()
        same(state := explorer.settled(replace(state, selected=("aaaa", "cccc", "eeee"))))
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); lab.settle(page); same(state); page.screenshot(path=shots/"dark.png"); lab.click(page, "confusion"); same(state := replace(state, panel="confusion")); page.screenshot(path=shots/"dark_confusion.png")
        assert page.locator(".js-plotly-plot").count() == 1 and lab.complaints(page) == []
