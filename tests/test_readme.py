"Every command line of the README does what it says; those that ask the hub ask one in a folder on this machine."
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geonb.app.cli import command
from geonb.core.assets import example
from geonb.core.bundles import list_runs
from geonb.core.folder_hub import FolderHub
from geonb.ternary.hyperbolic import build_hyperbolic, HyperbolicSpec

ROOT, BIN = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
LINES = [line for block in re.findall(r"```sh\n(.*?)```", (ROOT/"README.md").read_text(encoding="utf-8"), re.S) for line in block.strip().splitlines()]
REPO = "someone/checkpoints"


def papermill(line): words = shlex.split(line); assert words[0] == "papermill" and words[2] == "out.ipynb"; return Path(words[1]), words[3:]
def of(kind): return [line for line in LINES if line.split()[0] == kind]


def test_there_are_lines_of_the_known_kinds():
    assert {line.split()[0] for line in LINES} == {"make", "papermill", "geonb"} and len(LINES) >= 7


@pytest.mark.parametrize("line", of("make"))
def test_make_knows_the_target(line):
    done = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True); assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", of("papermill"))
def test_the_parameters_of_a_run_are_taken(line, capsys):
    "Before a kernel starts; where the dataset is not on this machine, that is what is said."
    notebook, given = papermill(line); assert (ROOT/notebook).is_file()
    code = command(["run", notebook.stem, *given, "--check"]); said = capsys.readouterr().err
    assert code == 0 or (code == 4 and "mnist" in line and "geonb data get mnist" in said)


def on_a_folder(line, folder):
    "A geonb command with a hub of one checkpoint in a folder, in a process with an HF_HOME of its own."
    file = folder/"hub"/REPO/"homeostatic_rich"/"best.pt"; file.parent.mkdir(parents=True); torch.save({"model_state_dict": build_hyperbolic(HyperbolicSpec(use_dual_projection=True)).state_dict()}, file)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "GEONB_OFFLINE"}
    with FolderHub(folder/"hub") as hub:
        env = kept | dict(HF_ENDPOINT=hub.url, HF_HOME=str(folder/"home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_REPO_ID=REPO)
        return subprocess.run([str(BIN/"geonb"), *shlex.split(line)[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("line", [x for x in of("geonb") if x.split()[1] == "sweep"])
def test_a_grid_is_taken(line, capsys):
    "All its runs are checked, none is begun."
    assert command([*shlex.split(line)[1:], "--check"]) == 0 and re.search(r"(\d+) runs, (\d+) cells of (\d+) seeds", capsys.readouterr().out)


def test_the_line_that_goes_on_from_a_run(capsys):
    line, = [x for x in of("geonb") if "-p start" in x]; words = [str(example("pentachora")) if w == "RUN" else w for w in shlex.split(line)]
    assert command([*words[1:], "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", [x for x in of("geonb") if " RUN" not in x and x.split()[1] != "sweep"])
def test_a_command_answers(line, tmp_path):
    done = on_a_folder(line, tmp_path); assert done.returncode == 0 and "homeostatic_rich/best.pt" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("laboratory, least, runs_left", [("ternary", 3, 2), ("chromatic", 3, 1)])
def test_the_lines_of_a_laboratory_as_they_stand(laboratory, least, runs_left, tmp_path):
    "In their order, from the project's folder, each with the run of the line before as RUN."
    runs, env = tmp_path/"runs", os.environ | {"GEONB_RUNS": str(tmp_path/"runs"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    lines = [x for x in LINES if laboratory in x]; assert len(lines) >= least
    for line in lines:
        words = [str(tmp_path/"out.ipynb") if w == "out.ipynb" else list_runs(runs)[-1]["run_id"] if w == "RUN" else w for w in shlex.split(line)]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True); assert done.returncode == 0, (line, done.stderr[-2000:])
    assert [r["status"] for r in list_runs(runs)] == ["finished"]*runs_left
