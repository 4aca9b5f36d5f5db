"In JupyterLab, in a headless Chromium: how long a change takes to its picture in each explorer, printed beside a bare label; asserted is that the last picture is the right one."
import json
import os

import pytest
from conftest import ROOT
from lab import Lab
from latency import CONTROLS, bare, control, explorer_of, opened, picture, said, stands, walk

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
NAMES = sorted(p.stem for p in (ROOT/"nbs"/"explorers").glob("*.ipynb"))


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    "One JupyterLab for all, without any run: what opens are the examples that come with geonb."
    folder = tmp_path_factory.mktemp("latency"); (folder/"runs").mkdir()
    with Lab(folder, chromium, env={"GEONB_RUNS": str(folder/"runs")}, size=(1400, 3000)) as one: yield one


@pytest.mark.parametrize("name", [n if n == "runs" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_from_a_change_to_its_picture(lab, name, capsys, monkeypatch):
    monkeypatch.setenv("GEONB_RUNS", str(lab.folder/"runs")); explorer = explorer_of(ROOT, name); page = opened(lab, ROOT, name); took = {}
    for label in CONTROLS[name]:
        _, steps, values = walk(explorer, label); assert len(steps) == 20, f"{label} has one value only"
        took[label] = picture(lab, page, name, label, steps); control(explorer, label).value = values[-1]
        assert explorer.problem.value == "" and not (wrong := stands(lab, page, explorer.view(explorer.state))), wrong
    label_ms = bare(lab, page); assert page.locator(".geonb-echo").inner_text() == "20"
    with capsys.disabled(): print(f"\n{name}: " + "; ".join(f"{k}: {said(v)}" for k, v in took.items()) + f"; bare label: {said(label_ms)}; load {os.getloadavg()[0]:.1f} ", end="")
    (lab.folder/f"{name}.json").write_text(json.dumps(dict(picture=took, bare=label_ms, load=os.getloadavg()))); page.screenshot(path=lab.folder/f"{name}.png"); assert lab.complaints(page) == []; page.context.close()
