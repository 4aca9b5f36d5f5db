"The chromatic explorer in JupyterLab, in a headless Chromium."
import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from geonb.core.assets import example
from geonb.core.atomic import read_json
from geonb.data.images import load_images
from geonb.explorers.chroma import ChromaExplorer
from lab import Lab
from pages import expect
from PIL import Image
from test_explorers_chroma import chromatic_bundle, population

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.mark.timeout(600)
def test_chromatic_explorer(root, chromium, tmp_path):
    "Metrics, calibration, ellipses, boxes, menus, clicks and a lasso in the page; the notebook finds the run as the newest."
    shutil.copy(root/"nbs"/"explorers"/"chromatic.ipynb", tmp_path); explorer, shots = ChromaExplorer(chromatic_bundle(tmp_path/"runs", p=population())), tmp_path/"shots"; shots.mkdir(); state = explorer.first()
    def spot(page, seed):   # of a member on the map, in the page
        x, y = (explorer.view(state)["map"][k][explorer.seeds.index(seed)] for k in "xy")
        return page.evaluate("""([x, y]) => { const g = document.querySelector('.js-plotly-plot'), b = g.getBoundingClientRect(), f = g._fullLayout; return [b.x + f.xaxis._offset + f.xaxis.d2p(x), b.y + f.yaxis._offset + f.yaxis.d2p(y)] }""", [float(x), float(y)])
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2400)) as lab:   # the whole notebook in sight: JupyterLab draws no others
        page = lab.open("chromatic.ipynb"); lab.run_all(page); page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=60_000)
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plane", ["t-SNE", pytest.param("UMAP", marks=pytest.mark.slow)])   # UMAP takes half a minute to import
def test_views_and_pictures_of_the_example(root, chromium, tmp_path, plane):
    "Without any run the notebook opens the example: a view from the menu, and the images of the examples that divide two members, pixel by pixel those of the set."
    shutil.copy(root/"nbs"/"explorers"/"chromatic.ipynb", tmp_path); (tmp_path/"runs").mkdir(); folder = example("chromatic"); explorer = ChromaExplorer(folder); state = explorer.first(); one, other = explorer.seeds[2], explorer.seeds[7]
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2400)) as lab:
        page = lab.open("chromatic.ipynb"); lab.run_all(page); page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=60_000); expect(lab, page, explorer, state, 60)
        lab.select(page, "map", plane); expect(lab, page, explorer, state := replace(state, plane=plane), 240); assert f"{plane} is a view" in page.locator(".geonb-readout").inner_text()
        for menu, seed in (("compare", one), ("with", other)): lab.select(page, menu, str(seed))
        expect(lab, page, explorer, replace(state, one=one, other=other), 60)
        page.wait_for_function("words => document.querySelector('.geonb-cards')?.innerText.includes(words)", arg=f"{one} right, {other} wrong", timeout=20_000)
        shown = page.evaluate("() => [...document.querySelectorAll('.geonb-cards figure')].map(f => [f.innerText, f.querySelector('img').src, f.querySelector('img').naturalWidth])"); assert lab.complaints(page) == []
    named = read_json(folder/"config.json")["parameters"]; d = load_images(named["dataset"], named.get("size") or None); x, place = (np.concatenate([getattr(s, k) for s in (d.train, d.val)]) for k in ("images", "ids")); x = x[np.argsort(place)]
    groups = explorer.answers.disagreements(2, 7, state.calibrated); want = [e["id"] for g in groups.values() for e in g["examples"]]; assert [int(re.search(r"no\. (\d+)", words)[1]) for words, _, _ in shown] == want and len(want) > 5
    for (_, uri, width), i in zip(shown, want): assert width == x.shape[2] and np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))), x[i].squeeze())


@pytest.mark.slow   # its twin is test_browser_live.py, where messages are lost on purpose
@pytest.mark.timeout(600)
def test_a_figure_comes_up_and_listens_where_plotly_loads_slowly(root, chromium, tmp_path):
    "A page with a twelfth of a processor: plotly's module takes longer than the two seconds after which anywidget drops all messages of a module. The figure is complete, what was changed before it stood is in it, and it hears what comes later."
    shutil.copy(root/"nbs"/"explorers"/"chromatic.ipynb", tmp_path); explorer = ChromaExplorer(chromatic_bundle(tmp_path/"runs", p=population())); state = explorer.first()
    notebook = tmp_path/"chromatic.ipynb"; nb = json.loads(notebook.read_text()); nb["cells"][-1] |= dict(cell_type="code", source="explorer.go(ellipses=False)\nNone", outputs=[], execution_count=None); notebook.write_text(json.dumps(nb))
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2400)) as lab:
        page = lab.open("chromatic.ipynb"); cdp = page.context.new_cdp_session(page)
        page.evaluate("() => { window.begun = performance.now(); new MutationObserver((_, o) => document.querySelector('.js-plotly-plot .svg-container') && (window.stood ??= performance.now(), o.disconnect())).observe(document.body, {childList: true, subtree: true}) }")
        cdp.send("Emulation.setCPUThrottlingRate", dict(rate=12)); lab.run_all(page, 300); page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=300_000); cdp.send("Emulation.setCPUThrottlingRate", dict(rate=1))
        expect(lab, page, explorer, state := replace(state, ellipses=False), 60); print(f" figure after {(page.evaluate('() => window.stood - window.begun')) / 1000:.1f} s ", end="")
        lab.select(page, "metric", "js"); expect(lab, page, explorer, replace(state, metric="js"), 60); assert lab.complaints(page) == []
