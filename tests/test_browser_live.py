"The live figure where messages to the page are lost, in JupyterLab, in a headless Chromium."
import nbformat
import pytest
from lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

FIGURE = """import time
import plotly.graph_objects as go
from geonb.explorers.live import live_figure
figure = live_figure(go.Figure(go.Scatter(y=[1, 2, 3]), {"width": 400, "height": 300})); display(figure)   # which sends it as it is
channel, send = figure.comm, figure.comm.send
channel.send = lambda *args, **rest: None   # what is sent now never arrives
figure.data[0].y = [4, 5, 6]; figure.add_scatter(y=[7]); figure.layout.title.text = "lost"
channel.send = send
time.sleep(WAIT)
"""
WAITS = 0, 8   # seconds until the kernel answers: before plotly's module is there, and when the figure has long been drawn
NOW = "() => [...document.querySelectorAll('.js-plotly-plot')].map(g => [g.data?.map(t => [...t.y]), g.layout?.title?.text])"


def test_a_lost_message_is_made_good(chromium, tmp_path):
    "The page counts: where messages were lost it asks for the figure as it stands, and draws that. It hears what comes later, once."
    cells = [nbformat.v4.new_code_cell(text) for wait in WAITS for text in (FIGURE.replace("WAIT", str(wait)), "figure.add_scatter(y=[8, 9])\nNone")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), tmp_path/"figure.ipynb")
    with Lab(tmp_path, chromium, size=(1200, 1400)) as lab:
        page = lab.open("figure.ipynb"); lab.run_all(page); want = [[[[4, 5, 6], [7], [8, 9]], "lost"]]*2
        page.wait_for_function(f"want => JSON.stringify(({NOW})()) === JSON.stringify(want)", arg=want, timeout=60_000)
        page.wait_for_timeout(500); assert page.evaluate(NOW) == want and lab.complaints(page) == []   # no trace twice
