"The simplex explorer in JupyterLab, in a headless Chromium."
import shutil

import pytest
from geonb.explorers.simplex import SimplexExplorer, SimplexState
from lab import Lab
from pages import differs, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


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
