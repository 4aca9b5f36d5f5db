"What every notebook, module and tracked file has in common."
import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser

import check
import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in check.sources(ROOT) if p.suffix == ".ipynb" and ROOT/"nbs" in p.parents)
RUNS = [p for p in NOTEBOOKS if p.parent == ROOT/"nbs" and p.name not in ("index.ipynb", "references.ipynb")]
MODULES = sorted((ROOT/"geonb").rglob("*.py"))
name = lambda p: p.relative_to(ROOT).as_posix()
each = lambda what, paths: pytest.mark.parametrize(what, paths, ids=name)


def cells(path, kind=None):
    "(source, cell) of a notebook's cells."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c) for c in found if kind in (None, c["cell_type"])]


def exported(path): return [s for s, _ in cells(path, "code") if re.match(r"\s*#\|\s*(export|exports|exporti)\b", s)]
def target(path): return next((m[1] for s, _ in cells(path, "code") if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", s, re.M))), None)


# --- notebooks

@each("path", NOTEBOOKS)
def test_opens_with_title_and_subtitle(path):
    first = cells(path, "markdown")[0][0]
    assert re.fullmatch(r"# \S.*\n+> \S.*(\n> .*)*\n?", first), "the first prose cell is '# Title', then '> one line', and nothing else: the docs step keeps no more of it"


@each("path", NOTEBOOKS)
def test_kernel_is_named(path):
    spec = json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]
    assert (spec["name"], spec["language"]) == ("python3", "python")   # papermill needs both


@each("path", RUNS)
def test_run_notebook_has_one_parameters_cell_and_it_comes_first(path):
    code = [c["metadata"].get("tags", []) for _, c in cells(path, "code")]
    assert [i for i, tags in enumerate(code) if "parameters" in tags] == [0]


@each("path", RUNS)
def test_parameters_are_plain_literals(path):
    for node in ast.parse(cells(path, "code")[0][0]).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name), ast.unparse(node)
        ast.literal_eval(node.value)


@each("path", RUNS)
def test_run_notebook_holds_no_logic(path):
    assert not exported(path) and target(path) is None
    for source, _ in cells(path, "code"):
        plain = re.sub(r"^\s*[%!].*$", "", source, flags=re.M)
        assert not [n for n in ast.walk(ast.parse(plain)) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))], source


@each("path", NOTEBOOKS)
def test_saved_outputs_are_for_readers(path):
    for source, cell in cells(path, "code"):
        for out in cell["outputs"]:
            assert out["output_type"] != "error", source
            text = "".join(out.get("text", [])) + "".join("".join(v) for k, v in out.get("data", {}).items() if k.startswith("text/") and isinstance(v, (str, list)))
            assert "Traceback (most recent call last)" not in text, source
            assert not re.search(r"(?<![\w.])/(work|home|root|Users|tmp/tmp)\b", text), f"a path of one machine in the output of\n{source}"


@each("path", [p for p in NOTEBOOKS if exported(p)])
def test_imports_have_cells_of_their_own(path):
    isimport = lambda n: isinstance(n, (ast.Import, ast.ImportFrom))
    for source, _ in cells(path, "code"):
        if source in exported(path) or source.startswith(("%%", "#| hide")): continue   # a hidden set-up cell stands on its own; the docs check runs it
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
        assert not any(map(isimport, ast.walk(tree))) or all(map(isimport, tree.body)), f"the docs build executes a cell that holds an import, and few others:\n{source}"


@each("path", [p for p in NOTEBOOKS if exported(p)])
def test_exported_cells_are_short(path):
    long = {source.splitlines()[1]: n for source in exported(path) if (n := len(source.strip().splitlines())-1) > 40}
    assert not long


def test_one_notebook_for_each_module():
    made = [target(p) for p in NOTEBOOKS if target(p)]
    assert len(made) == len(set(made)), sorted(m for m in set(made) if made.count(m) > 1)
    files = {m.replace(".", "/")+".py" for m in made}
    there = {p.relative_to(ROOT/"geonb").as_posix() for p in MODULES} - {"_modidx.py"}
    assert not files - there, "not exported"
    assert not [f for f in there - files if not f.endswith("__init__.py") or [line for line in (ROOT/"geonb"/f).read_text().splitlines() if line and not line.startswith("__version__")]], "exported by no notebook"


def test_export_and_clean_change_nothing():
    assert check.drift(ROOT) == []


def test_drift_is_found(tmp_path):
    copy = check.copy_tree(ROOT, tmp_path/"tree")
    module = copy/"geonb"/"core"/"errors.py"
    module.write_text(module.read_text().replace("exit_code = 2", "exit_code = 3"))
    notebook = copy/"nbs"/"api"/"core"/"01_seeds.ipynb"
    nb = json.loads(notebook.read_text()); nb["cells"][0]["metadata"]["collapsed"] = True; notebook.write_text(json.dumps(nb, indent=1))
    assert {"geonb/core/errors.py", "nbs/api/core/01_seeds.ipynb"} <= set(check.drift(copy))


def test_a_tree_without_git_is_copied_without_by_products(tmp_path):
    tree = tmp_path/"unpacked"
    for f in ("settings.ini", "nbs/index.ipynb", "papermill_runs/README.md"): (tree/f).parent.mkdir(parents=True, exist_ok=True); (tree/f).write_text("x")
    for f in (".venv/bin/python", "papermill_runs/pentachora/digits/0123456789-r1/config.json", "geonb/__pycache__/x.pyc", "_docs/index.html"):
        (tree/f).parent.mkdir(parents=True, exist_ok=True); (tree/f).write_text("x")
    assert sorted(p.relative_to(tree).as_posix() for p in check.sources(tree)) == ["nbs/index.ipynb", "papermill_runs/README.md", "settings.ini"]


# --- modules

@each("path", MODULES)
def test_module_is_short_enough_to_read(path):
    assert path.name == "_modidx.py" or len(path.read_text(encoding="utf-8").splitlines()) <= 500


@each("path", [p for p in MODULES if p.name != "_modidx.py"])
def test_every_exported_symbol_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not silent
    drawers = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and re.search(r"Utils?$|Manager$|Helper$|Processor$", n.name)]
    assert not drawers


# --- the tree

def test_nothing_names_this_machine():
    own = "|".join(map(re.escape, ("../"+"shared", "/work/"+"main", "/work/"+"shared", "design"+".md", "toolchain"+".md", "/opt/"+"wheels", "/opt/"+"pypi")))
    hits = {}
    for path in check.sources(ROOT):
        if name(path) == ".ci/run" or path.suffix in (".png", ".npz"): continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := re.findall(rf"{own}|\bissue\s+#?\d+", text, re.I): hits[name(path)] = sorted(set(found))
    assert not hits


def test_requirements_stand_in_one_place():
    cp = ConfigParser(delimiters=["="]); cp.read(ROOT/"settings.ini", encoding="utf-8"); cfg = cp["DEFAULT"]
    names = {re.split(r"[<>=\[]", r)[0].lower() for k in cfg if k.endswith("requirements") for r in cfg[k].split()}
    pinned = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\s*(==|>=|<=|~=|<)\s*\d", re.I)
    where = {name(p) for p in check.sources(ROOT) if p.suffix in (".ini", ".toml", ".py", ".txt", ".cfg", "") and p.parent in (ROOT, ROOT/".ci") and pinned.search(p.read_text(encoding="utf-8"))}
    assert where == {"settings.ini", "constraints-cpu.txt"}
    for must in ("nbdev==2.4", "execnb<", "fastcore<", "ghapi<", "fastgit<"): assert must in cfg["requirements"], f"{must}: nbdev 2.4 breaks with newer companions"
    pair = dict(line.split("==") for line in (ROOT/"constraints-cpu.txt").read_text().split())
    assert set(pair) == {"torch", "torchvision"}


def test_installed_metadata_is_that_of_settings():
    from importlib import metadata
    cp = ConfigParser(delimiters=["="]); cp.read(ROOT/"settings.ini", encoding="utf-8"); cfg = cp["DEFAULT"]
    version = subprocess.run([sys.executable, "-c", "import geonb; print(geonb.__version__)"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert version == cfg["version"] == metadata.version("geonb")
    assert f"version: {version}" in (ROOT/"CITATION.cff").read_text()
    scripts = {e.name: e.value for e in metadata.distribution("geonb").entry_points if e.group == "console_scripts"}
    assert scripts == dict(s.split("=") for s in cfg["console_scripts"].split())


def test_no_tracked_file_is_large():
    assert {name(p): p.stat().st_size for p in check.sources(ROOT) if p.stat().st_size > 2**20} == {}


def test_readme_is_made_from_the_index_notebook():
    import docs
    text, pictures = docs.readme(ROOT/"nbs")
    assert (ROOT/"README.md").read_text(encoding="utf-8") == text, "call `make readme`"
    for path, data in pictures.items(): assert (ROOT/path).read_bytes() == data, path
    for link in re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", text): assert (ROOT/link.partition("#")[0]).exists(), f"README links to {link}"


@pytest.mark.skipif(not shutil.which("make"), reason="no make on PATH")
@pytest.mark.parametrize("command, message", [
    ("run PYTHON=no-such-python", "no 'no-such-python' on PATH; geonb needs Python 3.11, 3.12 or 3.13"),
    ("run PYTHON=./old", "'./old' is Python 3.8.10; geonb needs Python 3.11, 3.12 or 3.13"),
    ("assets PYTHON=no-such-python", "no 'no-such-python' on PATH"), ("help", "make run ")])
def test_make_says_what_is_wrong(tmp_path, command, message):
    shutil.copy(ROOT/"Makefile", tmp_path)
    old = tmp_path/"old"; old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 && exit 0\nexit 1\n'); old.chmod(0o755)
    for f in ("settings.ini", "setup.py", "pyproject.toml", "constraints-cpu.txt", ".ci/install.py"): (tmp_path/f).parent.mkdir(exist_ok=True); shutil.copy(ROOT/f, tmp_path/f)
    done = subprocess.run(["make", *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert message in done.stdout+done.stderr
    assert (done.returncode != 0) == ("PYTHON=" in command)
    assert not (tmp_path/".venv").exists()
