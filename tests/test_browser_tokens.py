"The tokens explorer in JupyterLab, in a headless Chromium."
import math
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from geonb.core.assets import example
from geonb.explorers.tokens import TokensExplorer, numbers_of
from lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def flat(x):
    "Numbers and words of nested lists, one after another; a missing number is nan."
    if isinstance(x, np.ndarray): x = x.tolist()
    return [v for one in x for v in flat(one)] if isinstance(x, (list, tuple)) else [math.nan if x is None else x]


def differs(have, want, path=""):
    "Where a trace of the page and a view are further apart than 1e-6; None where they agree."
    if isinstance(want, dict): return next(filter(None, (differs((have or {}).get(k), v, f"{path}.{k}") for k, v in want.items())), None)
    a, b = flat(have), flat(want)
    if len(a) != len(b): return f"{path} has {len(a)} values, not {len(b)}"
    for x, y in zip(a, b):
        if isinstance(y, (str, bool)): same = x == y
        else: same = isinstance(x, (int, float)) and (x == y or abs(x - y) <= 1e-6 or x != x and y != y)
        if not same: return f"{path}: {x} is not {y}"


def expect(lab, page, explorer, state, seconds=40):
    "Wait for the page to show a state, to 1e-6 in every number of every trace that is in sight."
    want, end = explorer.view(state), time.monotonic() + seconds
    while True:
        figures = lab.figures(page); assert len(figures) == 1; have = {t["name"]: t for t in figures[0]}; wrong = next(filter(None, (differs(have.get(n), v, n) for n, v in want.items())), None)
        if not wrong or time.monotonic() > end: break
        time.sleep(.05)
    assert not wrong, f"{state}: {wrong}"


PLACE = """([name, x, y]) => { const g = document.querySelector('.js-plotly-plot'), b = g.getBoundingClientRect(), f = g._fullLayout, t = g._fullData.find(t => t.name === name), k = a => a + 'axis' + t[a + 'axis'].slice(1);
    return [b.x + f[k('x')]._offset + f[k('x')].d2p(x), b.y + f[k('y')]._offset + f[k('y')].d2p(y)] }"""


@pytest.mark.timeout(600)
def test_tokens_explorer(root, chromium, tmp_path):
    "Sliders, menus, buttons, play and clicks in the page; before the first run the notebook opens the example."
    shutil.copy(root/"nbs"/"explorers"/"tokens.ipynb", tmp_path); explorer, shots = TokensExplorer(example("operators")), tmp_path/"shots"; shots.mkdir(); last = explorer.strings.frames - 1; state, a = explorer.first(), explorer.strings
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, size=(1400, 2600)) as lab:
        page = lab.open("tokens.ipynb"); lab.run_all(page); page.wait_for_selector(".js-plotly-plot .main-svg", state="attached", timeout=60_000); click = lambda name, x, y: page.mouse.click(*page.evaluate(PLACE, [name, float(x), float(y)]))
        expect(lab, page, explorer, state, 60); page.screenshot(path=shots/"semantic.png")
        lab.press(page, "time", "ArrowRight", 3); expect(lab, page, explorer, state := replace(state, time=3))
        lab.select(page, "noise", "1"); expect(lab, page, explorer, state := replace(state, realization=1))
        fine = [int(i) for i in np.flatnonzero(a.tokens[:, 0] >= 0)]; there = next(i for i in fine if i > state.sample); lab.press(page, "sample", "ArrowRight", there - state.sample); expect(lab, page, explorer, state := replace(state, sample=there))
        lab.select(page, "level", str(a.L - 1)); expect(lab, page, explorer, state := replace(state, level=a.L - 1))
        page.locator(".widget-dropdown:has-text('category') select").first.select_option(index=1); expect(lab, page, explorer, state := replace(state, category=1))
        lab.press(page, "swap for", "ArrowRight", 3); expect(lab, page, explorer, state := replace(state, code=2)); page.screenshot(path=shots/"swap.png")
        shown = " ".join(page.locator(".geonb-readout").inner_text().split())
        for name, value in explorer.readout(state): assert " ".join(f"{name} {value}".split()) in shown
        page.locator(".js-plotly-plot").scroll_into_view_if_needed(); click("tokens", 1, 0); expect(lab, page, explorer, state := replace(state, category=0, level=1, code=-1))
        near = explorer.reading(state).near; click("near", 1, 2); expect(lab, page, explorer, state := replace(state, sample=int(near[1])))
        lab.click(page, "engineering"); expect(lab, page, explorer, state := replace(state, dashboard="engineering")); page.screenshot(path=shots/"engineering.png")
        lab.click(page, "topological"); expect(lab, page, explorer, state := replace(state, dashboard="topological")); lab.settle(page); page.screenshot(path=shots/"topological.png")
        p = numbers_of(a, "topological")["codes"]; i = int(np.argmax(p["x"])); click("codes", p["x"][i], p["y"][i]); expect(lab, page, explorer, state := replace(state, category=p["category"][i], level=p["level"][i], code=p["code"][i]))
        page.locator(".widget-play button").first.click(); page.wait_for_function(f"() => document.querySelector('.geonb-readout').innerText.includes('{last} of {last}')", timeout=60_000); lab.settle(page); expect(lab, page, explorer, state := replace(state, time=last))   # play runs to the last frame
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); lab.settle(page); page.screenshot(path=shots/"dark topological.png")
        for kind in ("semantic", "engineering"): lab.click(page, kind); expect(lab, page, explorer, state := replace(state, dashboard=kind)); page.screenshot(path=shots/f"dark {kind}.png")
        assert not page.locator(".geonb-problem").count() and page.locator(".js-plotly-plot").count() == 1 and lab.complaints(page) == []
