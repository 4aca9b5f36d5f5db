"Who may import whom: downwards only, and never from one laboratory to another."
import ast
import subprocess
import sys
from pathlib import Path

import pytest

LABS = {"pentachora", "ternary", "operators", "chromatic"}
MAY = {
    "core": set(), "stats": {"core"}, "geometry": {"core"}, "data": {"core"}, "plots": {"core", "geometry", "stats"},
    **{lab: {"core", "stats", "geometry", "data", "plots"} for lab in LABS},
    "explorers": {"core", "stats", "geometry", "data", "plots", *LABS},
    "app": {"core", "stats", "geometry", "data", "plots", *LABS, "explorers"},
}


def imported_rooms(path, package):
    "Rooms that the module at `path` imports, relative and nested imports included; '' is the package itself."
    here = path.relative_to(package.parent).parts[:-1]                      # the package the module lies in
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[:len(here)+1-node.level]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            found = [f"{base}.{a.name}" for a in node.names] if base == package.name else [base]
        else: continue
        for name in found:
            first, _, rest = name.partition(".")
            if first == package.name: yield rest.partition(".")[0], node.lineno


def upward(package):
    "Arrows that the table does not allow, as sentences."
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        if len(parts) == 1: continue                                        # the package's own face stands above the rooms
        for room, line in imported_rooms(path, package):
            if room != parts[0] and room not in MAY[parts[0]]:
                yield f"{'/'.join(parts)}:{line} imports {room or package.name}, which {parts[0]} may not know"


def test_imports_point_downwards(root):
    assert list(upward(root/"geonb")) == []


def test_every_room_is_in_the_table(root):
    rooms = {p.name for p in (root/"geonb").iterdir() if (p/"__init__.py").exists()}
    assert rooms <= set(MAY), "a new room needs a line in the table"


def test_the_table_has_no_way_round():
    reach = {room: set(below) for room, below in MAY.items()}
    for _ in MAY: reach = {room: below | {x for b in below for x in reach[b]} for room, below in reach.items()}
    assert not [room for room, below in reach.items() if room in below]
    assert not [lab for lab in LABS if reach[lab] & LABS]


@pytest.mark.parametrize("source, arrow", [
    ("from geonb.app.cli import main", "imports app"), ("from ..app import cli", "imports app"), ("from .. import explorers", "imports explorers"),
    ("def f():\n    import geonb.ternary.dual", "imports ternary"), ("from geonb import load", "imports load"), ("import geonb", "imports geonb")])
def test_an_upward_or_sideways_arrow_is_found(tmp_path, source, arrow):
    (tmp_path/"geonb"/"pentachora").mkdir(parents=True)
    module = tmp_path/"geonb"/"pentachora"/"task.py"
    module.write_text("from ..core.seeds import stream\nfrom .losses import ramp\nimport numpy\n")
    assert list(upward(tmp_path/"geonb")) == []
    module.write_text(source)
    assert [arrow in one for one in upward(tmp_path/"geonb")] == [True]


def test_importing_geonb_is_cheap():
    heavy = "torch torchvision numpy scipy sklearn matplotlib plotly pandas medmnist umap tensorboard IPython ipywidgets pydantic typer".split()
    code = f"import sys; before = set(sys.modules); import geonb; print([m for m in {heavy} if m in sys.modules and m not in before], len(set(sys.modules) - before))"
    loaded, count = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.rsplit(maxsplit=1)
    assert loaded == "[]"
    assert int(count) < 60, "import geonb should load next to nothing"
