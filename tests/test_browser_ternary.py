"The ternary explorer in JupyterLab, in a headless Chromium: every control, the pointer, typed indices, the pad, a lasso."
import shutil
from dataclasses import replace

import numpy as np
import pytest
from geonb.explorers.choosing import enclosed
from geonb.explorers.ternary import LAYOUTS, TernaryExplorer
from lab import Lab
from scipy.spatial import cKDTree
from pages import expect
from test_explorers import coverage
from test_explorers_ternary import ternary_bundle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SPOT = """([x, y]) => { const g = document.querySelector('.js-plotly-plot'), b = g.getBoundingClientRect(), f = g._fullLayout; return [b.x + f.xaxis._offset + f.xaxis.d2p(x), b.y + f.yaxis._offset + f.yaxis.d2p(y)] }"""
WHERE = """() => { const f = document.querySelector('.js-plotly-plot')._fullLayout; return [f.xaxis.range, f.yaxis.range].flat() }"""


@pytest.mark.parametrize("kind", ["dual", pytest.param("hyperbolic", marks=pytest.mark.slow)])
def test_ternary_explorer(root, chromium, tmp_path, kind):
    shutil.copy(root/"nbs"/"explorers"/"ternary.ipynb", tmp_path); folder = ternary_bundle(tmp_path/"runs", kind, coverage(10))   # the notebook finds it as the newest run
    explorer, shots = TernaryExplorer(folder), tmp_path/"shots"; shots.mkdir(); state = explorer.first()
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2600)) as lab:
        page = lab.open("ternary.ipynb"); lab.run_all(page); page.wait_for_selector(".js-plotly-plot .heatmaplayer image", state="attached", timeout=60_000)
        spot = lambda i: page.evaluate(SPOT, explorer.places(state.layout, state.path)[i].tolist()); aside = lambda: (page.mouse.move(5, 5), lab.settle(page))
        see = lambda **changes: expect(lab, page, explorer, replace(state, **changes), 60) or replace(state, **changes)
        card = lambda: page.locator(".geonb-card").inner_text()
        state = see(); page.screenshot(path=shots/"start.png")
        lab.press(page, "epoch", "ArrowRight", 4); state = see(epoch=4)
        lab.select(page, "pathway", "B"); state = see(path="B")
        for layout in (*LAYOUTS[1:], LAYOUTS[0]):
            lab.select(page, "layout", layout); state = see(layout=layout)
            for colour in list(explorer.colours)[slice(None, None, 1 if layout == "disc" else 4)]:
                lab.select(page, "colour", colour); state = see(colour=colour)
                assert page.evaluate("() => document.querySelector('.js-plotly-plot').layout.coloraxis.cmax") == pytest.approx(explorer.dress(state)["coloraxis"]["cmax"])
            page.screenshot(path=shots/f"{layout}.png")

        box = lab.control(page, "operation").locator("input")   # typed: an index, nine trits, a name, nonsense
        for text, index in (("77", 77), ("+0-+0-+0-", 3785), ("max", 19569)):
            box.fill(text); box.press("Enter"); state = see(operation=str(index)); assert str(index) in card()
        assert str(int(explorer.decoder.read['B'][19569])) in card()
        box.fill("nonsense"); box.press("Enter"); page.wait_for_selector(".geonb-problem", timeout=10_000); assert "no operation is called" in page.locator(".geonb-problem").inner_text(); see()
        far = np.argsort(-cKDTree(at := explorer.places("disc", "B").astype(float)).query(at, k=2)[0][:, 1])[:2].tolist()   # furthest from their neighbours: no doubt what the pointer is on
        for layout, index in (("map", 15633), ("tree", 2), ("disc", far[0])):   # the pointer
            if state.layout != layout: lab.select(page, "layout", layout); state = replace(state, layout=layout); box.fill("1"); box.press("Enter"); state = see(operation="1")
            page.locator(".js-plotly-plot").scroll_into_view_if_needed(); x, y = spot(index); page.mouse.move(x - 3, y - 2); page.mouse.move(x, y); page.wait_for_selector(".hoverlayer text", timeout=20_000); lab.settle(page)
            state = see(operation=str(index)); assert f"{index}, " in page.locator(".hoverlayer").text_content() and not page.locator(".geonb-problem").count()
        page.screenshot(path=shots/"hover.png"); aside(); lab.click(page, "click"); state = see(pick="click")
        x, y = spot(far[1]); page.mouse.move(x, y); page.wait_for_timeout(400); lab.settle(page); see(); page.mouse.click(x, y); lab.settle(page); state = see(operation=str(far[1])); aside()

        point = page.locator(".geonb-pad-point").first; point.scroll_into_view_if_needed(); b = point.bounding_box(); cx, cy = b["x"] + b["width"] / 2, b["y"] + b["height"] / 2   # the pad: 320 pixels for 2,000 units
        page.mouse.move(cx, cy); page.mouse.down(); page.mouse.move(cx + 40, cy - 24, steps=8); lab.settle(page); page.mouse.up(); lab.settle(page)
        pushed = lambda: tuple(int(lab.control(page, k).locator("input").input_value()) for k in ("push →", "push ↑"))
        x, y = pushed(); assert abs(x - 250) < 8 and abs(y - 150) < 8; state = see(x=x, y=y); there = explorer.pushed(state)
        shown = lambda: " ".join(page.locator(".geonb-readout", has_text="decodes to").inner_text().split()); assert f"pushed by {x}, {y} decodes to {there['read']} " in shown()
        point.focus(); page.keyboard.press("ArrowLeft"); lab.settle(page); assert pushed() == (x - 20, y); state = see(x=x - 20); assert f"decodes to {explorer.pushed(state)['read']} " in shown()
        page.screenshot(path=shots/"pad.png")

        for layout in LAYOUTS:   # a lasso in each picture, whose list is that of the polygon
            lab.select(page, "layout", layout); state = see(layout=layout); page.locator(".js-plotly-plot").scroll_into_view_if_needed(); where = page.evaluate(WHERE)
            o = page.evaluate(SPOT, [where[0], where[2]]); e = page.evaluate(SPOT, [where[1], where[3]]); at = lambda u, v: (o[0] + u * (e[0] - o[0]), o[1] + v * (e[1] - o[1]))
            corners = [(.2, .1), (.75, .15), (.6, .8), (.3, .7)]; page.mouse.move(*at(*corners[0])); page.mouse.down()
            for c in (*corners[1:], corners[0]): page.mouse.move(*at(*c), steps=5)
            page.mouse.up(); aside(); aside(); listed = lab.control(page, "listed").locator("textarea").input_value()
            polygon = np.array([(where[0] + u * (where[1] - where[0]), where[2] + v * (where[3] - where[2])) for u, v in corners])
            grown, shrunk = (set(enclosed([polygon.mean(0) + f * (polygon - polygon.mean(0))], explorer.places(layout, state.path)).tolist()) for f in (1.02, .98)); found = set(map(int, listed.split()))
            assert found and shrunk <= found <= grown; state = see(chosen=listed); assert f"listed {len(found):,} of 19,683" in " ".join(page.locator(".geonb-readout").first.inner_text().split())
            assert page.evaluate("() => (document.querySelector('.js-plotly-plot').layout.selections || []).length") == 0
        page.screenshot(path=shots/"lasso.png")
        area = lab.control(page, "listed").locator("textarea"); area.fill("5 mod 243, 7"); area.press("Tab"); lab.settle(page); state = see(chosen="5 mod 243, 7")
        lab.press(page, "epoch", "End"); state = see(epoch=9); lab.click(page, "clear the list"); state = see(chosen="")
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); lab.settle(page)
        for layout in LAYOUTS: lab.select(page, "layout", layout); state = see(layout=layout); page.screenshot(path=shots/f"dark_{layout}.png")
        assert page.locator(".js-plotly-plot").count() == 1 and not page.locator(".geonb-problem").count() and lab.complaints(page) == []
