"""A notebook in real JupyterLab in a headless Chromium, for tests.

    with Lab(folder, chromium) as lab:              # a server of its own on a free port, private settings, all gone at the end
        page = lab.open("simplex.ipynb")            # kernel idle
        lab.run_all(page)
        lab.press(page, "epoch", "ArrowRight")      # the slider with that label
        lab.figures(page)                           # plotly's data as plain lists
        lab.complaints(page)                        # console errors and requests that left this machine
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = ("--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
         "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader").split()   # the last three: WebGL in software
KERNEL = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel"
DECODE = """
const kinds = {f8: Float64Array, f4: Float32Array, i4: Int32Array, u4: Uint32Array, i2: Int16Array, u2: Uint16Array, i1: Int8Array, u1: Uint8Array};
const plain = v => ArrayBuffer.isView(v) ? Array.from(v) : Array.isArray(v) ? v.map(plain)
    : v && typeof v === 'object' ? ('bdata' in v ? Array.from(new kinds[v.dtype](Uint8Array.from(atob(v.bdata), c => c.charCodeAt(0)).buffer))
    : Object.fromEntries(Object.entries(v).filter(([k]) => !k.startsWith('_')).map(([k, w]) => [k, plain(w)]))) : v;
"""


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


class Lab:
    "JupyterLab over a folder, and a browser to look at it."
    allowed = ()   # (part of a console error, why it is not ours)

    def __init__(self, folder, chromium, env=None, dark=False, size=(1400, 1800)):
        self.folder, self.chromium, self.dark, self.size = Path(folder), chromium, dark, dict(width=size[0], height=size[1])
        self.private = Path(tempfile.mkdtemp(prefix="geonb-lab-")); self.errors, self.outside = {}, {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER") and k != "IN_TEST"} | {
            **{f"JUPYTER_{k}_DIR": str(self.private/k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}, "IPYTHONDIR": str(self.private/"ipython"),
            **{f"JUPYTERLAB_{k}_DIR": str(self.private/k.lower()) for k in ("SETTINGS", "WORKSPACES")}} | (env or {})

    def __enter__(self):
        try: self._start()
        except BaseException: self.__exit__(); raise
        return self

    def _start(self):
        from playwright.sync_api import sync_playwright
        for plugin, choice in {"notification": {"fetchNews": "false"}, "themes": {"theme": "JupyterLab Dark" if self.dark else "JupyterLab Light"}}.items():
            file = self.private/"settings"/"@jupyterlab"/"apputils-extension"/f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True); file.write_text(json.dumps(choice))
        port, token = free_port(), self.private.name
        self.base, self.token, self.log = f"http://127.0.0.1:{port}", token, self.private/"server.log"
        self.server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={self.folder}",
            "--allow-root", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
            env=self.env, stdout=self.log.open("w"), stderr=subprocess.STDOUT, start_new_session=True)
        self._await_server()
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=self.chromium, headless=True, args=FLAGS)

    def _await_server(self, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.server.poll() is None:
            try: return self.api("")
            except (OSError, urllib.error.URLError): time.sleep(.2)
        raise RuntimeError(f"JupyterLab did not start: {self.log.read_text()[-1500:]}")

    def api(self, path, method="GET"):
        "Jupyter's REST interface."
        request = urllib.request.Request(f"{self.base}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as r: return json.loads(r.read() or "null")

    def __exit__(self, *_):
        for one in ("browser", "playwright"):
            if it := getattr(self, one, None): (it.close if one == "browser" else it.stop)()
        if server := getattr(self, "server", None):
            try:
                for k in self.api("kernels"): self.api(f"kernels/{k['id']}", "DELETE")   # kernels lead process groups of their own
            except (OSError, ValueError): pass
            server.terminate()
            try: server.wait(15)
            except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL); server.wait()
        shutil.rmtree(self.private, ignore_errors=True)

    def open(self, notebook):
        "A page with the notebook open and its kernel idle."
        page = self.browser.new_context(viewport=self.size).new_page()
        self.errors[page], self.outside[page] = [], []
        here = (self.base, self.base.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda r: r.url.startswith(here) or self.outside[page].append(r.url))
        page.on("websocket", lambda s: s.url.startswith(here) or self.outside[page].append(s.url))
        page.on("console", lambda m: m.type == "error" and self.errors[page].append(m.text))
        page.on("pageerror", lambda e: self.errors[page].append(str(e)))
        page.goto(f"{self.base}/lab/tree/{notebook}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=90_000)
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")   # room for the notebook
        return page

    def run_all(self, page, seconds=180):
        "Run all cells and wait for the last; an error output is raised."
        done = page.evaluate("""s => Promise.race([window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true), new Promise(r => setTimeout(() => r(false), 1000 * s))])""", seconds)
        wrong = self.error_outputs(page)
        if wrong or not done: raise AssertionError(wrong[0] if wrong else f"the notebook did not finish in {seconds} s")

    def error_outputs(self, page):
        "What failing cells said, from the notebook's model (cells out of sight are not in the page)."
        return page.evaluate("""() => [...window.jupyterapp.shell.currentWidget.content.widgets].flatMap(c => (c.model.sharedModel.getSource && c.model.toJSON().outputs || []))
            .filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`)""")

    def settle(self, page, kernel=True):
        "Wait until the kernel is idle and what it sent has been drawn."
        if kernel: page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=60_000)
        page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r, 60))))")

    def control(self, page, label):
        "The ipywidget with that label."
        return page.locator(f".lm-Widget:has(> .widget-label:text-is('{label}'))").first

    def press(self, page, label, key, times=1):
        "Move the slider with that label by keyboard."
        self.control(page, label).locator(".noUi-handle").first.focus()
        for _ in range(times): page.keyboard.press(key)
        self.settle(page)

    def select(self, page, label, option):
        "Choose from the menu with that label."
        self.control(page, label).locator("select").select_option(label=option); self.settle(page)

    def click(self, page, text):
        "Click a widget button by its text."
        page.locator(f".widget-toggle-button:text-is('{text}'), .widget-button:text-is('{text}')").first.click(); self.settle(page)

    def figures(self, page):
        "Data of every plotly figure in the page, as plain lists and dicts."
        return page.evaluate(f"() => {{ {DECODE} return [...document.querySelectorAll('.js-plotly-plot')].map(gd => plain(gd.data)) }}")

    def complaints(self, page):
        "Console errors that are not allowed, and requests that left this machine."
        ours = [e[:300] for e in self.errors[page] if not any(part in e for part, _ in self.allowed)]
        return ours + [f"request to {u[:200]}" for u in sorted(set(self.outside[page]))]
