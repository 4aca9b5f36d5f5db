"The simplex explorer in JupyterLab, in a headless Chromium: every control, a drag, a click in space, and a run trained from a moved vertex."
import re
import shutil
import time
from dataclasses import replace

import pytest
from geonb.core.assets import example
from geonb.core.atomic import read_json
from geonb.core.bundles import verify_bundle
from geonb.explorers.simplex import SimplexExplorer, SimplexState
from geonb.explorers.simplex_edit import on_pad
from lab import Lab
from pages import differs, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
WHERE = """([name, i]) => { const gd = document.querySelector('.js-plotly-plot'), s = gd._fullLayout.scene._scene, t = gd.data.find(t => t.name === name), c = s.glplot.cameraParams, box = s.container.getBoundingClientRect();
    const times = (m, v) => [0, 1, 2, 3].map(r => [0, 1, 2, 3].reduce((a, k) => a + m[r + 4 * k] * v[k], 0)), at = k => (t[k].get ? t[k].get(i) : t[k][i]);
    const p = times(c.projection, times(c.view, times(c.model, [...['x', 'y', 'z'].map((k, n) => at(k) * s.dataScale[n]), 1])));
    return [box.left + box.width * (.5 + .5 * p[0] / p[3]), box.top + box.height * (.5 - .5 * p[1] / p[3])]; }"""   # where plotly's camera puts a point


def click_in_space(lab, page, name, i):
    page.locator(".js-plotly-plot").scroll_into_view_if_needed(); lab.settle(page); x, y = page.evaluate(WHERE, [name, i])
    page.mouse.move(x - 3, y - 3); page.mouse.move(x, y, steps=3); time.sleep(.8); page.mouse.move(x + 1, y); time.sleep(.5)   # plotly looks under the pointer once a frame, and frames take their time here
    page.mouse.down(); time.sleep(.3); page.mouse.up(); lab.settle(page)


def drag(lab, page, vertex, dx, dy):
    point = page.locator(".geonb-pad-point").nth(vertex); point.scroll_into_view_if_needed(); b = point.bounding_box(); x, y = b["x"] + b["width"] / 2, b["y"] + b["height"] / 2
    page.mouse.move(x, y); page.mouse.down()
    for i in range(1, 9): page.mouse.move(x + dx * i / 8, y + dy * i / 8); time.sleep(.02)
    page.mouse.up(); lab.settle(page)


def typed(page, lab, label, text):
    box = lab.control(page, label).locator("input"); box.fill(text); box.press("Enter"); lab.settle(page)


def read(lab, page, label): return lab.control(page, label).locator("input").input_value()


def edits(lab, page, when, seconds=20):
    "The line of edits once it is as wanted and has rested: messages of a gesture follow one another, each after the answer to the last."
    end, text, since = time.monotonic() + seconds, None, 0
    while time.monotonic() < end:
        if (new := read(lab, page, "edits")) != text: text, since = new, time.monotonic()
        if when(text) and time.monotonic() - since > .7: return text
        time.sleep(.05)
    raise AssertionError(f"the edits stay {text!r}")


def on_page(page, explorer, state, plane):
    "The pad's points as the page names them agree with the pad of the state."
    want = [[p["x"], p["y"]] for p in on_pad(explorer, state, plane)["points"]]; have = [[float(v) for v in re.findall(r" [xy] ([^,]+)", n.get_attribute("aria-label"))] for n in page.locator(".geonb-pad-point").all()]
    assert len(have) == len(want) and all(abs(a - b) <= 1e-3 + .006 * abs(b) for h, w in zip(have, want) for a, b in zip(h, w)), (have, want)   # a label has three digits


def test_differences_are_found():
    explorer = SimplexExplorer("demonstration"); view = explorer.view(SimplexState(3)); other = explorer.view(SimplexState(4))
    assert differs(view, view) is None and "edges.x is off" in differs({**other, **{k: view[k] for k in view if "trail" in k}}, view) and "vertices.x has" in differs({**view, "vertices": {}}, view)


@pytest.fixture
def lab(root, chromium, tmp_path, request):
    shutil.copy(root/"nbs"/"explorers"/"simplex.ipynb", tmp_path); (tmp_path/"shots").mkdir()
    with Lab(tmp_path, chromium, env={"GEONB_RUNS": str(tmp_path/"runs")}, dark=getattr(request, "param", False)) as one: yield one
    assert one.server.poll() is not None and not one.private.exists()


def opened(lab):
    page = lab.open("simplex.ipynb"); lab.run_all(page); page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.wait_for_selector(".js-plotly-plot .gl-container canvas", state="attached", timeout=30_000); return page


def test_every_control_and_a_run_from_a_moved_vertex(lab, tmp_path):
    explorer, shots, page = SimplexExplorer(example("pentachora")), tmp_path/"shots", opened(lab); last = len(explorer.epochs)
    expect(lab, page, explorer, now := explorer.opening()); page.screenshot(path=shots/"start.png")
    lab.press(page, "epoch", "Home"); lab.press(page, "epoch", "ArrowRight", 5); expect(lab, page, explorer, now := replace(now, epoch=5))
    lab.press(page, "turn xw", "ArrowRight", 2); lab.press(page, "turn yw", "ArrowLeft", 10); lab.press(page, "turn zw", "ArrowRight", 3); expect(lab, page, explorer, now := replace(now, xw=40, yw=-30, zw=15))
    lab.select(page, "pair", "3"); lab.select(page, "stack", "specialists"); expect(lab, page, explorer, now := replace(now, pair=3, stack="specialists"))
    for name in ("trails", "samples"):
        box = page.locator(f"label:has-text('{name}') input[type=checkbox]").first; box.click(); lab.settle(page); expect(lab, page, explorer, replace(now, **{name: False})); box.click(); lab.settle(page)
    lab.click(page, "2"); typed(page, lab, "sample", "7"); expect(lab, page, explorer, now := replace(now, vertex=2, sample=7))
    shown = " ".join(page.locator(".geonb-readout").first.inner_text().split())
    for name, value in explorer.readout(now): assert f"{name} {value}" in shown
    play = page.locator(".lm-Widget:has(> .widget-label:text-is('rotation'))").locator("button"); play.first.click(); time.sleep(2); play.first.click(); lab.settle(page); turned = int(lab.control(page, "turn xw").locator(".widget-readout").inner_text())
    assert turned != 40; expect(lab, page, explorer, now := replace(now, xw=turned))

    drag(lab, page, 4, 60, -45); text = edits(lab, page, lambda t: t.startswith("specialists:3:4:")); expect(lab, page, explorer, now := replace(now, vertex=4, epoch=last, edits=text)); plane = "the shadow's x and z"; on_page(page, explorer, now, plane)
    page.locator(".geonb-pad-point").nth(1).focus()
    for _ in range(4): page.keyboard.press("ArrowUp")
    text = edits(lab, page, lambda t: t.count("specialists:3:") == 2); expect(lab, page, explorer, now := replace(now, vertex=1, edits=text)); on_page(page, explorer, now, plane)
    lab.select(page, "plane", plane := "axes 1 and 2"); on_page(page, explorer, now, plane)
    typed(page, lab, "axis 4", "0.5"); text = edits(lab, page, lambda t, old=text: t != old); expect(lab, page, explorer, now := replace(now, edits=text)); assert abs(explorer.shape(now)["coordinates"][1, 3] - .5) < 1e-4
    lab.click(page, "undo"); back = edits(lab, page, lambda t: t != text); assert back.count(":") == text.count(":"); lab.click(page, "reset"); edits(lab, page, lambda t: t == ""); expect(lab, page, explorer, now := replace(now, edits=""))
    typed(page, lab, "edits", "specialists:3:9:1,0,0,0"); assert "the vertices 0 to 4" in page.locator(".geonb-problem").inner_text()
    typed(page, lab, "edits", text := "specialists:3:1:0.5,-0.5,0.25,0"); expect(lab, page, explorer, now := replace(now, edits=text)); assert not page.locator(".geonb-problem").count()
    follows = " ".join(page.locator(".geonb-follows").inner_text().split()); told = explorer.consequences(text); assert f"NLL {told['before']['nll']:.4f} {told['nll']:.4f}" in follows

    lab.click(page, "copy command"); line = page.locator(".geonb-copy code").inner_text(); assert page.evaluate("() => navigator.clipboard.readText()") == line and f'-p vertex_edit "{text}"' in line
    typed(page, lab, "epochs", "1"); page.screenshot(path=shots/"moved.png"); lab.click(page, "train from here"); page.wait_for_function("() => /epoch 1.1|seed/.test(document.querySelector('.geonb-line')?.innerText)", timeout=180_000)
    lab.press(page, "turn zw", "ArrowRight", 2); expect(lab, page, explorer, now := replace(now, zw=25))   # live while it trains
    page.wait_for_function("() => [...document.querySelectorAll('select')].some(s => /^trained:\\s/.test(s.selectedOptions[0]?.text))", timeout=300_000); lab.settle(page)
    bundle, = (tmp_path/"runs"/"pentachora"/"digits").glob("*-r1"); trained = SimplexExplorer(bundle)
    assert verify_bundle(bundle) == [] and read_json(bundle/"config.json")["parameters"]["vertex_edit"] == text
    expect(lab, page, trained, trained.opening()); page.screenshot(path=shots/"trained.png"); lab.select(page, "run", "original"); expect(lab, page, explorer, now)
    assert page.locator(".js-plotly-plot").count() == 1 and lab.complaints(page) == []


@pytest.mark.parametrize("lab", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "dark"], indirect=True)
def test_clicks_in_space(lab, tmp_path):
    explorer, page = SimplexExplorer(example("pentachora")), opened(lab); expect(lab, page, explorer, now := explorer.opening())
    for vertex in (3, 1): click_in_space(lab, page, "vertices", vertex); expect(lab, page, explorer, now := replace(now, vertex=vertex))
    far = max(range(len(explorer.labels)), key=lambda i: explorer.view(now)["samples"]["z"][i]); click_in_space(lab, page, "samples", far); expect(lab, page, explorer, now := replace(now, sample=far))
    drag(lab, page, 2, 30, 30); expect(lab, page, explorer, replace(now, vertex=2, edits=edits(lab, page, lambda t: t.startswith("dispatchers:0:2:")))); page.screenshot(path=tmp_path/"shots"/"below.png")
    page.locator(".js-plotly-plot").scroll_into_view_if_needed(); lab.settle(page); page.screenshot(path=tmp_path/"shots"/"above.png"); assert lab.complaints(page) == []
