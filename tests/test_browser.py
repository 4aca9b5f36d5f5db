"In JupyterLab, in a headless Chromium: what the page shows is what the pure view says."
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from geonb.explorers.chroma import ChromaExplorer
from geonb.explorers.coverage import COLOURS, CoverageExplorer, CoverageState
from geonb.explorers.simplex import SimplexExplorer, SimplexState
from lab import Lab
from test_explorers import bundle, coverage
from test_explorers_chroma import chromatic_bundle, population

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def differs(page_data, view, path=""):
    "Where the page's traces and a view are further apart than 1e-6; None when they agree."
    for key, want in view.items():
        have = page_data.get(key)
        if isinstance(want, dict): where = differs(have or {}, want, f"{path}{key}.")
        elif isinstance(want, str): where = None if have == want else f"{path}{key}: {have} is not {want}"
        elif isinstance(want, np.ndarray) and want.dtype.kind != "U" and have is not None and np.shape(have) == want.shape: where = None if np.allclose(have, want, rtol=0, atol=1e-6, equal_nan=True) else f"{path}{key} is off by {np.nanmax(np.abs(np.subtract(have, want))):.2g}"
        elif have is None or len(have) != len(want): where = f"{path}{key} has {have and len(have)} values, not {len(want)}"
        elif not len(want): where = None
        elif isinstance(want[0], str): where = None if have == want else f"{path}{key}: {have[0]} is not {want[0]}"
        else: where = None if np.allclose(have, want, rtol=0, atol=1e-6) else f"{path}{key} is off by {np.abs(np.subtract(have, want)).max():.2g}"
        if where: return where


def expect(lab, page, explorer, state, seconds=10):
    "Wait for the page to show a state, to 1e-6 in every number of every trace."
    want, end = explorer.view(state), time.monotonic() + seconds
    while True:
        figures = lab.figures(page); assert len(figures) == 1
        wrong = differs({t["name"]: t for t in figures[0]}, want)
        if not wrong or time.monotonic() > end: break
        time.sleep(.05)
    assert not wrong, f"{state}: {wrong}"


def test_differences_are_found():
    explorer = SimplexExplorer(); view = explorer.view(SimplexState(3)); other = explorer.view(SimplexState(4))
    assert differs(view, view) is None and "edges.x is off" in differs(other, view) and "vertices.x has" in differs({**view, "vertices": {}}, view)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_simplex_explorer(root, chromium, tmp_path, dark):
    shutil.copy(root/"nbs"/"explorers"/"simplex.ipynb", tmp_path)
    explorer, shots = SimplexExplorer(), tmp_path/"shots"; shots.mkdir()
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, dark=dark) as lab:
        page = lab.open("simplex.ipynb"); lab.run_all(page)
        page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=30_000)
        expect(lab, page, explorer, SimplexState()); page.screenshot(path=shots/"start.png")
        lab.press(page, "epoch", "ArrowRight", 7); expect(lab, page, explorer, SimplexState(7))
        lab.press(page, "turn xw", "ArrowRight", 8); expect(lab, page, explorer, SimplexState(7, xw=40))
        lab.press(page, "turn yw", "ArrowLeft", 6); expect(lab, page, explorer, SimplexState(7, xw=40, yw=-30))
        lab.press(page, "turn zw", "ArrowRight", 3); expect(lab, page, explorer, SimplexState(7, xw=40, yw=-30, zw=15))
        lab.select(page, "pair", "3"); expect(lab, page, explorer, SimplexState(7, 3, "dispatchers", 40, -30, 15))
        lab.select(page, "stack", "specialists"); expect(lab, page, explorer, last := SimplexState(7, 3, "specialists", 40, -30, 15))
        shown = " ".join(page.locator(".geonb-readout").inner_text().split())
        for name, value in explorer.readout(last): assert f"{name} {value}" in shown
        lab.press(page, "epoch", "End"); expect(lab, page, explorer, SimplexState(20, 3, "specialists", 40, -30, 15)); page.screenshot(path=shots/"end.png")
        assert page.locator(".js-plotly-plot").count() == 1 and not page.locator(".geonb-problem").count()
        assert lab.complaints(page) == []
    assert lab.server.poll() is not None and not lab.private.exists()


def test_coverage_explorer(root, chromium, tmp_path):
    shutil.copy(root/"nbs"/"explorers"/"ternary.ipynb", tmp_path)
    explorer, shots = CoverageExplorer(bundle(tmp_path/"runs", arrays=coverage(10), laboratory="ternary")), tmp_path/"shots"; shots.mkdir()   # the notebook finds it as the newest run
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}) as lab:
        page = lab.open("ternary.ipynb"); lab.run_all(page)
        page.wait_for_selector(".js-plotly-plot .heatmaplayer image", state="attached", timeout=30_000)
        expect(lab, page, explorer, CoverageState()); page.screenshot(path=shots/"start.png")
        lab.press(page, "epoch", "ArrowRight", 4); expect(lab, page, explorer, CoverageState(4))
        lab.select(page, "pathway", "B"); expect(lab, page, explorer, CoverageState(4, "B"))
        for colour in list(COLOURS)[1:]:
            lab.select(page, "colour", colour); expect(lab, page, explorer, last := CoverageState(4, "B", colour))
            assert page.evaluate("() => document.querySelector('.js-plotly-plot').layout.coloraxis.cmax") == pytest.approx(explorer.dress(last)["coloraxis"]["cmax"])
        lab.select(page, "colour", "correct"); expect(lab, page, explorer, last := CoverageState(4, "B", "correct"))
        shown = " ".join(page.locator(".geonb-readout").inner_text().split())
        for name, value in explorer.readout(last): assert f"{name} {value}" in shown
        box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 11.5 / 243, box["y"] + box["height"] * 4.5 / 81); page.wait_for_selector(".hoverlayer text", timeout=10_000)
        assert "15633, ----00-0+, min" in page.locator(".hoverlayer").text_content()
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); lab.settle(page); page.screenshot(path=shots/"dark.png")
        lab.press(page, "epoch", "End"); expect(lab, page, explorer, CoverageState(9, "B", "correct"))
        assert page.locator(".js-plotly-plot").count() == 1 and not page.locator(".geonb-problem").count() and lab.complaints(page) == []


@pytest.mark.timeout(600)
def test_chromatic_explorer(root, chromium, tmp_path):
    "Metrics, calibration, ellipses, boxes, menus, clicks and a lasso in the page; the notebook finds the run as the newest."
    shutil.copy(root/"nbs"/"explorers"/"chromatic.ipynb", tmp_path); explorer, shots = ChromaExplorer(chromatic_bundle(tmp_path/"runs", p=population())), tmp_path/"shots"; shots.mkdir(); state = explorer.first()
    def spot(page, seed):   # of a member on the map, in the page
        x, y = (explorer.view(state)["map"][k][explorer.seeds.index(seed)] for k in "xy")
        return page.evaluate("""([x, y]) => { const g = document.querySelector('.js-plotly-plot'), b = g.getBoundingClientRect(), f = g._fullLayout; return [b.x + f.xaxis._offset + f.xaxis.d2p(x), b.y + f.yaxis._offset + f.yaxis.d2p(y)] }""", [float(x), float(y)])
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2400)) as lab:   # the whole notebook in sight: JupyterLab draws no others
        from playwright.sync_api import TimeoutError as Late
        page = lab.open("chromatic.ipynb"); lab.run_all(page); drawn = lambda: page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=60_000)
        try: drawn()
        except Late: lab.run_all(page); drawn()   # seen at a load of 15 on two cores: plotly's view came up before its model had data, and stayed empty until the cell was run again
        expect(lab, page, explorer, state, 60); page.screenshot(path=shots/"start.png")
        lab.select(page, "metric", "hellinger2"); expect(lab, page, explorer, state := replace(state, metric="hellinger2"), 60)
        lab.click(page, "raw"); expect(lab, page, explorer, state := replace(state, calibrated=False), 60)
        page.get_by_label("ellipses").uncheck(); expect(lab, page, explorer, state := replace(state, ellipses=False), 60)
        for seed in (14, 17, 18): page.get_by_label(str(seed), exact=True).uncheck()
        expect(lab, page, explorer, state := replace(state, selected=(13, 15, 16, 19)), 60)
        lab.select(page, "with", "16"); expect(lab, page, explorer, state := replace(state, other=16), 60); page.screenshot(path=shots/"chosen.png")
        page.locator(".js-plotly-plot").scroll_into_view_if_needed(); page.mouse.click(*spot(page, 18)); expect(lab, page, explorer, state := replace(state, one=16, other=18), 60)
        lab.click(page, "chooses"); page.mouse.click(*spot(page, 13)); expect(lab, page, explorer, state := replace(state, selected=(15, 16, 19)), 60)
        x, y = spot(page, 14); page.mouse.move(x - 14, y - 14); page.mouse.down()
        for at in [(x + 14, y - 14), (x + 14, y + 14), (x - 14, y + 14), (x - 14, y - 13)]: page.mouse.move(*at, steps=6)
        page.mouse.up(); inside = tuple(s for s in explorer.seeds if all(abs(a - b) < 14 for a, b in zip(spot(page, s), (x, y)))); assert 14 in inside
        expect(lab, page, explorer, state := replace(state, selected=inside), 60); page.screenshot(path=shots/"lasso.png")
        shown = " ".join(page.locator(".geonb-readout").inner_text().split())
        for name, value in explorer.readout(state): assert f"{name} {value}" in shown
        for seed in inside: page.get_by_label(str(seed), exact=True).uncheck()
        page.wait_for_selector(".geonb-problem", timeout=10_000); assert "selected is empty" in page.locator(".geonb-problem").inner_text(); expect(lab, page, explorer, state, 60)
        lab.click(page, "all"); expect(lab, page, explorer, state := replace(state, selected=explorer.seeds), 60); assert not page.locator(".geonb-problem").count()
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); lab.settle(page); page.screenshot(path=shots/"dark.png")
        assert page.locator(".js-plotly-plot").count() == 1 and lab.complaints(page) == []


def test_a_wrong_bundle_is_a_sentence_in_the_page(chromium, root, tmp_path):
    import nbformat
    nb = nbformat.read(root/"nbs"/"explorers"/"simplex.ipynb", 4); nb.cells[0].source = "bundle = 'nothing'"; nbformat.write(nb, tmp_path/"simplex.ipynb")
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}) as lab:
        page = lab.open("simplex.ipynb")
        with pytest.raises(AssertionError, match="DataMissing: no run or bundle 'nothing'"): lab.run_all(page)
        shown = page.locator(".jp-OutputArea-output:has-text('DataMissing')").last.inner_text()
        assert shown.startswith("DataMissing: no run or bundle 'nothing' here or below the runs root") and "Traceback" not in shown


def test_training_in_jupyterlab(root, chromium, tmp_path):
    "One live bar while it trains, every cell without error, a sound bundle, and a confusion slider that moves in the page."
    from geonb.core.bundles import verify_bundle
    shutil.copy(root/"nbs"/"train_pentachora.ipynb", tmp_path)
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2600)) as lab:
        page = lab.open("train_pentachora.ipynb")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs').then(() => 0)")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        bar = page.locator(".geonb-progress"); bar.wait_for(state="visible", timeout=120_000)
        page.wait_for_function("() => /loss .* val.accuracy .* left/.test(document.querySelector('.geonb-progress')?.innerText)", timeout=120_000)
        page.wait_for_function("""() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model).filter(m => m.type === 'code').every(m => m.executionCount)""", timeout=180_000)
        lab.settle(page)
        assert lab.error_outputs(page) == [] and bar.count() == 1 and "epoch 8/8" in bar.inner_text()
        text = page.evaluate("() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets.flatMap(c => c.model.toJSON().outputs || []))")
        assert "epoch 1/8 ·" not in text   # the bar is one display, updated in place; no line per epoch beside it
        movie = page.locator(".js-plotly-plot").first; movie.scroll_into_view_if_needed()
        first = lab.figures(page)[0][0]["z"]
        handle = movie.locator(".slider-grip-rect"); box = handle.bounding_box()
        page.mouse.move(box["x"] + 5, box["y"] + 5); page.mouse.down(); page.mouse.move(box["x"] + 600, box["y"] + 5, steps=8); page.mouse.up(); lab.settle(page)
        page.wait_for_function("() => /epoch 8/.test(document.querySelector('.js-plotly-plot .slider-label, .js-plotly-plot .slider-group')?.textContent)", timeout=10_000)
        assert lab.figures(page)[0][0]["z"] != first
        page.screenshot(path=tmp_path/"trained.png"); assert lab.complaints(page) == []
    bundle, = (tmp_path/"runs"/"pentachora"/"digits").glob("*-r1"); assert verify_bundle(bundle) == []
