"In JupyterLab, in a headless Chromium: what the page shows is what the pure view says."
import shutil

import pytest
from lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


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
