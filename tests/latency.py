"""How long a change takes from the control to the changed picture in JupyterLab, beside the same way of a bare label; used by tests and by the benchmark.

    with Lab(folder, chromium) as lab:
        page, explorer = opened(lab, root, "chromatic")
        ms = picture(lab, page, "chromatic", *walk(explorer, "metric")[:2])   # from the event in the page to plotly's having drawn, milliseconds each
        bare(lab, page)                                        # a slider that moves a label, in the same kernel
"""
import importlib
import json
import re
import time

import numpy as np

CONTROLS = dict(simplex=("epoch", "turn xw"), ternary=("epoch", "colour"), chromatic=("metric",), tokens=("time", "swap for"), runs=("laboratory",))   # labels of what is moved in each explorer
TABLES = ("runs",)   # explorers in which these move no figure but the table above it
BARE = '''import ipywidgets as w
bare, echo = w.IntSlider(description="bare", max=1000), w.Label("0"); echo.add_class("geonb-echo")
bare.observe(lambda change: setattr(echo, "value", str(change["new"])), "value")
w.HBox([bare, echo])'''
MOVE = """([label, step, target]) => new Promise((done, fail) => {
    const box = [...document.querySelectorAll('.widget-label')].find(l => l.textContent.trim() === label && l.offsetParent)?.parentElement, handle = box?.querySelector('.noUi-handle'), menu = box?.querySelector('select');
    if (!handle && !menu) return fail(new Error(`no control is labelled ${label}`));
    const painted = () => requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = () => { clearTimeout(late); done(performance.now() - begun); }; c.port2.postMessage(0); });
    const late = setTimeout(() => fail(new Error(`${label}: no change within 60 s; ${document.querySelector('.geonb-problem')?.textContent ?? ''} ${menu?.selectedIndex ?? handle.getAttribute('aria-valuenow')} ${document.querySelectorAll('.js-plotly-plot').length}`)), 60000);
    if (target) { const o = new MutationObserver(() => { o.disconnect(); painted(); }); o.observe(document.querySelector(target), { childList: true, subtree: true, characterData: true }); }
    else { const gd = document.querySelector('.js-plotly-plot'), ends = ['plotly_update', 'plotly_restyle', 'plotly_afterplot'], end = () => { ends.forEach(e => gd.removeListener(e, end)); painted(); }; ends.forEach(e => gd.on(e, end)); }
    const begun = performance.now();
    if (handle) handle.dispatchEvent(new KeyboardEvent('keydown', { key: step > 0 ? 'ArrowRight' : 'ArrowLeft', bubbles: true }));
    else { menu.selectedIndex += step; menu.dispatchEvent(new Event('change', { bubbles: true })); }
})"""   # plotly says when it has drawn; then comes the next frame, and what the browser does with it


def explorer_of(root, name):
    "The explorer that a notebook opens, here."
    text = "".join("".join(c["source"]) + "\n" for c in json.loads((root/"nbs"/"explorers"/f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code")
    module, kind = re.search(r"from (geonb\.explorers\.\w+) import (\w+)", text).groups(); kind = getattr(importlib.import_module(module), kind)
    return kind()


def opened(lab, root, name, seconds=300):
    "The notebook, with a bare slider after it, in a page of its own; run."
    nb = json.loads((root/"nbs"/"explorers"/f"{name}.ipynb").read_text())
    nb["cells"].append(dict(cell_type="code", id="bare", metadata={}, source=BARE, outputs=[], execution_count=None)); (lab.folder/f"{name}.ipynb").write_text(json.dumps(nb))
    page = lab.open(f"{name}.ipynb"); lab.run_all(page, seconds); page.wait_for_selector(".js-plotly-plot .main-svg", state="attached", timeout=120_000); page.wait_for_selector(".geonb-echo", timeout=60_000); lab.settle(page); return page


def control(explorer, label):
    "The widget with that label, here."
    explorer.widget; return next(c for c in explorer.inputs.values() if getattr(c, "description", None) == label)


def walk(
    explorer,     # with a `widget`
    label: str,   # of a slider or menu
    n: int = 20,  # moves
):                # (label, steps of +1 or -1, values that follow)
    "To the end of a control and back, and so on."
    one = control(explorer, label); options = [v for _, v in one._options_full] if hasattr(one, "_options_full") else list(range(one.min, one.max + 1, one.step))
    at, step, steps = options.index(one.value), 1, []
    if len(options) < 2: return label, [], []
    values = []
    for _ in range(n):
        if not 0 <= at + step < len(options): step = -step
        at += step; steps.append(step); values.append(options[at])
    return label, steps, values


def picture(lab, page, name, label, steps):
    "Milliseconds from a change to its picture, or to its rows of a table, each after the last has come to rest."
    took = []
    for step in steps: took.append(page.evaluate(MOVE, [label, step, ".geonb-explorer" if name in TABLES else None])); lab.settle(page)
    return took


def bare(lab, page, n=20):
    "Milliseconds from a bare slider to a bare label."
    took = []
    for _ in range(n): took.append(page.evaluate(MOVE, ["bare", 1, ".geonb-echo"])); lab.settle(page)
    return took


def numbers(x):
    "Numbers and words of nested lists, one after another; a missing number is nan."
    x = x.tolist() if isinstance(x, np.ndarray) else x
    return [v for one in x for v in numbers(one)] if isinstance(x, (list, tuple)) else [float("nan") if x is None else x]


def differs(have, want, path=""):
    "Where a trace of the page and one of a view are further apart than 1e-6; None where they agree."
    if isinstance(want, dict): return next(filter(None, (differs((have or {}).get(k), v, f"{path}.{k}") for k, v in want.items())), None)
    a, b = numbers(have), numbers(want)
    if len(a) != len(b): return f"{path} has {len(a)} values, not {len(b)}"
    same = lambda x, y: x == y if isinstance(y, (str, bool)) else isinstance(x, (int, float)) and (x == y or abs(x - y) <= 1e-6 or x != x and y != y)
    return next((f"{path}: {x} is not {y}" for x, y in zip(a, b) if not same(x, y)), None)


def stands(lab, page, want, seconds=30):
    "Wait for the page to show a view; where it does not, or None."
    end = time.monotonic() + seconds
    while True:
        have = {t["name"]: t for t in lab.figures(page)[0]}; wrong = next(filter(None, (differs(have.get(name), data, name) for name, data in want.items())), None)
        if not wrong or time.monotonic() > end: return wrong
        time.sleep(.05)


def said(ms): return f"median {np.median(ms):.0f} ms, p95 {np.percentile(ms, 95):.0f} ms"
