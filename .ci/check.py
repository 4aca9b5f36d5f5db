"""Checks of a checkout that need the whole tree.

    python .ci/check.py drift        nbdev_export and nbdev_clean change no file (on a temporary copy)
    python .ci/check.py notebooks    nbdev_test passes offline, without data, and leaves no file behind"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = {".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "_proc", "_docs", "build", "dist"}


def files(root):
    "Every file under `root` that is not the by-product of a tool."
    for folder, subs, names in os.walk(root):
        subs[:] = [s for s in subs if s not in MADE and not s.endswith(".egg-info")]
        yield from (Path(folder)/n for n in names)


def sources(root):
    "The files of the project: what git tracks or would track, or everything where there is no git."
    def git(*args): return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout
    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() == root.resolve():
            return [p for name in git("ls-files", "-coz", "--exclude-standard").split("\0") if name and (p := root/name).is_file()]
    except (OSError, subprocess.CalledProcessError): pass
    runs = root/"papermill_runs"
    return [p for p in files(root) if runs not in p.parents or p.name in ("README.md", ".gitkeep")]


def copy_tree(root, to):
    "Copy the project's files, edits that are not committed included."
    for p in sources(root):
        (q := Path(to)/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(p, q)
    return Path(to)


def tool(name, *args, **kw):
    "Run a command that was installed next to this Python."
    return subprocess.run([str(Path(sys.executable).parent/name), *args], stdin=subprocess.DEVNULL, **kw)


def drift(root=ROOT):
    "Names of the files that export and clean would change, add or remove."
    with tempfile.TemporaryDirectory(prefix="geonb-") as tmp:
        copy = copy_tree(root, Path(tmp)/"tree")
        before = {p: p.read_bytes() for p in files(copy)}
        for name in ("nbdev_export", "nbdev_clean"): tool(name, cwd=copy, check=True)
        after = {p: p.read_bytes() for p in files(copy)}
        return sorted(p.relative_to(copy).as_posix() for p in {*before, *after} if before.get(p) != after.get(p))


def notebooks(root=ROOT):
    "Run every notebook; the exit status of nbdev_test and the files it left behind."
    env = {k: v for k, v in os.environ.items() if k not in ("GEONB_RUNS", "GEONB_DATA")}
    before = {*files(root)}
    done = tool("nbdev_test", "--n_workers", "2", cwd=root, env={**env, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    return done.returncode, sorted(str(p.relative_to(root)) for p in {*files(root)} - before)


def main(what):
    if what == "drift":
        changed = drift()
        if changed: sys.exit("nbdev_export or nbdev_clean would change these files; run both and commit:\n  " + "\n  ".join(changed))
        print("drift: notebooks and geonb/ agree, notebooks are clean")
    elif what == "notebooks":
        status, left = notebooks()
        if status: sys.exit(status)
        if left: sys.exit("nbdev_test left files behind:\n  " + "\n  ".join(left))
        print("notebooks: all ran, none left a file behind")
    else: sys.exit(__doc__)


if __name__ == "__main__": main(*sys.argv[1:2] or [""])
