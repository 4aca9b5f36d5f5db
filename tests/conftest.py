"Every test: offline, its own runs root, one thread for torch in this process and in those it starts."
import os
import re
import shutil
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HF_HUB_DISABLE_TELEMETRY="1", MPLBACKEND="agg")   # before anything imports torch
import pytest

pytest.register_assert_rewrite("claims")   # its asserts are tests'
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/".ci"))   # check.py, docs.py and install.py are tested here too


LONG = ("test_conformance", "test_fuzz", "test_docs", "test_browser", "test_pentachora_training", "test_ternary_training", "test_operators", "test_chromatic_run", "test_training")   # what takes longest, longest first


def pytest_collection_modifyitems(items):
    "What takes long begins first, so that no worker waits for the other at the end; within a file nothing moves."
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if item.path.stem.startswith(name)), len(LONG)))


def whole(nodeid):
    "What one worker is given: a file, since its tests share what they made; of the two files about every run notebook, the tests of one notebook."
    file, _, rest = nodeid.partition("::"); about = re.search(r"\[.*?((?:train|generate|chromatic)_\w+)", rest)
    return f"{file} {about[1]}" if about and Path(file).stem in LONG[:2] else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "`--dist loadfile`, with the pieces above (its `loadgroup` writes into a field of an item that pytest no longer reads)."
    from xdist.scheduler import LoadScopeScheduling
    if config.getvalue("dist") != "loadfile": return None
    return type("ByNotebook", (LoadScopeScheduling,), {"_split_scope": lambda self, nodeid: whole(nodeid)})(config, log)


SPENT = {}   # file -> seconds of its tests, fixtures included, over all workers


def pytest_runtest_logreport(report):
    file = report.nodeid.partition("::")[0]; SPENT[file] = SPENT.get(file, 0.) + report.duration


def pytest_terminal_summary(terminalreporter):
    "Where the time went, by file: what a budget of minutes is kept with."
    total = sum(SPENT.values())
    if total < 60: return
    terminalreporter.section("seconds by file")
    for file, s in sorted(SPENT.items(), key=lambda kv: -kv[1])[:20]: terminalreporter.write_line(f"{s:7.0f}  {s/total:4.0%}  {file}")
    terminalreporter.write_line(f"{total:7.0f}        all {len(SPENT)} files; browser {sum(s for f, s in SPENT.items() if 'test_browser' in f):.0f}")


@pytest.fixture(autouse=True)
def runs_root(tmp_path_factory, monkeypatch):
    "A runs root of this test's own, named by GEONB_RUNS."
    root = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("GEONB_RUNS", str(root))
    return root


@pytest.fixture(scope="session")
def root():
    "The checkout."
    return ROOT


@pytest.fixture
def cli(capsys):
    "Call the command line in this process: (exit code, standard output, error stream)."
    from geonb.app.cli import main
    def go(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end: main([str(a) for a in args])
        said = capsys.readouterr(); return end.value.code or 0, said.out, said.err
    return go


@pytest.fixture(scope="session")
def geonb_data():
    "The folder GEONB_DATA names; tests of real images are skipped without it."
    folder = os.environ.get("GEONB_DATA")
    if not folder: pytest.skip("GEONB_DATA names no folder with real images")
    if not Path(folder).is_dir(): pytest.skip(f"GEONB_DATA={folder!r} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def chromium():
    "Path of a Chromium: GEONB_CHROMIUM, or one on PATH; browser tests are skipped without it."
    found = os.environ.get("GEONB_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found: pytest.skip("no Chromium on PATH and GEONB_CHROMIUM is not set")
    return found


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    "Runs a run notebook's cells in a fork of a warm process (see conformance.py)."
    import warm
    w = warm.Warm(Path(__file__).with_name("conformance.py"), tmp_path_factory.mktemp("cells")); yield w
    w.close()


@pytest.fixture(scope="module")
def one_thread():
    "torch on one thread for a module whose results are compared to the last bit."
    import torch
    before = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
