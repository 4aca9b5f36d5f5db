"The ternary explorer in JupyterLab, in a headless Chromium."
import shutil

import pytest
from geonb.explorers.coverage import COLOURS, CoverageExplorer, CoverageState
from lab import Lab
from pages import expect
from test_explorers import bundle, coverage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


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
