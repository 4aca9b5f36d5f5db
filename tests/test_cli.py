"The command line as a person or a script meets it: help, answers, exit codes, signals."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import typer
from nbformat.v4 import new_code_cell, new_notebook

from geonb.app import cli as face
from geonb.app import execute, runs

GEONB = str(Path(sys.executable).parent/"geonb")
PARAMETERS = 'dataset = "digits"\nepochs = 3\nseed = 0\nruns_root = None\ndevice = "auto"\nthreads = 0\nfresh = False'
OPEN = '''from geonb.core.run import Run
from geonb.pentachora.config import TrainPentachora
config = TrainPentachora.from_notebook(globals())
run = Run.open(config, config.dataset, {"numbers": "made here"})'''
TRAIN = '''import os, time, torch
from geonb.core.training import Stage, Task, fit
from geonb.core.seeds import torch_stream
class Line(Task):
    monitor, steps = ("val/accuracy", "max"), 10
    def __init__(self, seed, epochs):
        super().__init__(); self.stages, self.seed = (Stage("train", epochs),), seed
        m = torch.nn.Linear(3, 1)
        with torch.no_grad(): m.weight.copy_(torch.randn(1, 3, generator=torch_stream(seed, "init"))); m.bias.zero_()
        self.modules = {"line": m}; self.optimisers = {"adam": torch.optim.Adam(m.parameters(), 1e-2)}; self.streams = {"x": self}
    def batch(self, epoch, i): time.sleep(float(os.environ.get("SLOW", 0))); return torch.randn(16, 3, generator=torch_stream(self.seed, "data", epoch, i))
    def loss(self, b): return {"fit": ((self.modules["line"](b["x"]) - b["x"].sum(1, keepdim=True))**2).mean()}
    def evaluate(self): return {"val/accuracy": 1/(1 + float(self.modules["line"].weight.sub(1).abs().sum()))}
t = fit(Line(config.seed, config.epochs), run)'''
FINISH = '''import numpy as np
from safetensors.torch import save_file
def write(folder):
    w = t.task.modules["line"].state_dict(); (folder/"weights").mkdir()
    save_file(w, folder/"weights"/"line.safetensors", {"config_sha256": run.config_sha256}); np.savez(folder/"predictions_test.npz", logits=w["weight"].numpy())
best = max(r["val/accuracy"] for r in t.history)
run.finish(write, t.history, {"kind": "line"}, {"headline": {"test accuracy": best}}, ("val/accuracy", best, "max")).name'''


def notebook(folder, *cells):
    "A stand-in for train_pentachora: its parameters, other cells."
    nb = new_notebook(cells=[new_code_cell(c) for c in (PARAMETERS, *cells)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nb.cells[0].metadata["tags"] = ["parameters"]; folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder/"train_pentachora.ipynb"); return str(folder/"train_pentachora.ipynb")


def geonb(*args, cwd=None, **env):
    "The installed command in a process of its own."
    return subprocess.run([GEONB, *map(str, args)], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err
def everything(folder): return sorted((str(p), p.stat().st_mtime_ns) for p in Path(folder).rglob("*"))


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    "A finished run of the stand-in: (notebook, runs root, what `geonb run --json` said)."
    folder = tmp_path_factory.mktemp("line"); path = notebook(folder/"nbs", OPEN, TRAIN, FINISH)
    done = geonb("run", path, "-p", "epochs", "2", "--json", "-o", folder/"copy.ipynb", cwd=folder, GEONB_RUNS=str(folder/"runs"))
    assert done.returncode == 0, done.stderr
    return path, folder/"runs", json.loads(done.stdout), done


@pytest.fixture
def shelf(line, runs_root):
    "A copy of that run in this test's own runs root: (notebook, bundle)."
    shutil.copytree(line[1], runs_root, dirs_exist_ok=True)
    return line[0], runs_root/Path(line[2]["path"]).relative_to(line[1])


# --- help

def leaves(command, name=()):
    if not hasattr(command, "commands"): yield name, command
    for k, c in getattr(command, "commands", {}).items(): yield from leaves(c, (*name, k))

LEAVES = dict(leaves(typer.main.get_command(face.app)))


def test_the_commands_are_those_of_the_design():
    assert {" ".join(k) for k in LEAVES} == {"run", "sweep", "export", "publish", "runs list", "runs show", "runs compare", "runs verify", "runs rm", "data list", "data get", "data check", "data rm", "data convert cifar10-jpeg", "doctor", "dashboards",
                                                    "ternary evaluate", "ternary analyze", "ternary benchmark", "ternary compare", *(f"checkpoints {k}" for k in ("list", "info", "download", "upload", "convert", "verify")),
                                                    *(f"operators {k}" for k in ("info", "validate", "extract", "generate")), *(f"chromatic {k}" for k in ("analyze", "test", "ensemble", "embed", "verify"))}


@pytest.mark.parametrize("name", LEAVES, ids=" ".join)
def test_every_command_explains_itself_and_speaks_json(cli, name):
    code, out, err = cli(*name, "--help")
    assert (code, err) == (0, "") and out.startswith(f"Usage: geonb {' '.join(name)}") and "--json" in out
    for p in LEAVES[name].params: assert getattr(p, "help", "x"), p.name


def test_help_version_and_nothing(cli):
    code, out, _ = cli("--help"); assert code == 0 and "130 interrupted" in out
    import geonb as package
    assert cli("--version") == (0, f"geonb {package.__version__}\n", "")
    code, out, err = cli(); assert (code, out) == (2, "") and "Usage: geonb" in err
    code, out, err = cli("runs"); assert (code, out) == (2, "") and "verify" in err


def test_help_is_quick_and_needs_no_torch():
    heavy = "torch numpy papermill nbclient medmnist IPython".split()
    code = f"import sys; from geonb.app.cli import command; command(['run', '--help']); command(['--version']); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith("[]\n")
    def seconds(): t = time.perf_counter(); assert geonb("--help").returncode == 0; return time.perf_counter() - t
    assert min(seconds() for _ in range(3)) < 2


# --- wrong usage

@pytest.mark.parametrize("args, sentence", [
    ("rnu", "Did you mean 'run'"), ("runs lst", "Did you mean 'list'"), ("data gte", "Did you mean 'get'"), ("run train_pentachora --chek", "No such option: --chek"),
    ("run", "Missing argument"), ("run train_pentachor", "did you mean 'train_pentachora'"), ("run /nowhere/train_pentachora", "there is no notebook"), ("run train_pentachora -p", "needs a name and a value"),
    ("run train_pentachora -p epochs", "needs a name and a value"), ("run train_pentachora --check -p epochz 3", "did you mean 'epochs'"), ("run train_pentachora --check -p epochs many", "epochs='many' (str) is not allowed: a whole number from 1"),
    ("run train_pentachora --check -p dataset bloodmnits", "did you mean 'bloodmnist'"), ("run train_pentachora --check -p epochs 0", "epochs=0"), ("run train_pentachora --check -p lr -1", "lr=-1"),
    ("run train_pentachora --check -f no-such.yaml", "cannot be read"), ("run train_pentachora --check -y [1]", "a mapping such as"), ("run train_pentachora --check -y {", "not readable YAML"),
    ("run train_pentachora -o /nowhere/at/all/x.ipynb", "the folder does not exist"), ("runs verify", "name the runs to verify, or pass --all"), ("runs rm", "Missing argument"), ("runs show ''", "an empty run name"),
    ("data get digitz", "did you mean 'digits'"), ("data get mnist --size 29", "--size 29 is not allowed"), ("data check mnist --size many", "valid integer"), ("data rm digits/../../x --yes", "is not known"), ("data get chestmnist", "14 labels per image"),
    ("data convert cifar10-jepg x.npz", "Did you mean 'cifar10-jpeg'"), ("data convert cifar10-jpeg", "Missing argument"), ("data convert cifar10-jpeg a.npz b.npz c.npz", "3 files were given"),
    ("data convert cifar10-jpeg /nowhere/at/all.npz", "in a folder that exists"), ("data convert cifar10-jpeg out.zip", "ending in .npz"), ("data convert cifar10-jpeg out.npz --size 3", "size=3 is not allowed"),
])
def test_a_mistake_is_one_sentence_and_two(cli, args, sentence):
    import shlex
    code, out, err = cli(*shlex.split(args))
    assert (code, out) == (2, "") and one_sentence(err) and sentence in err, err


@pytest.mark.parametrize("args", ["run train_pentachora --check -p dataset mnist", "run train_pentachora -p dataset bloodmnist", "run train_pentachora --check -p dataset no/such.npz", "data get mnist", "data check kmnist",
                                  "data rm mnist --yes", "data convert cifar10-jpeg out.npz", "data convert cifar10-jpeg none.npz out.npz", "runs show 0123456789-r1", "runs verify 0123456789-r1", "runs rm 0123456789-r1 --yes", "run train_pentachora --check --from no-such-bundle"])
def test_what_is_not_on_this_machine_is_four(cli, args, monkeypatch, tmp_path, runs_root):
    monkeypatch.setenv("GEONB_OFFLINE", "1"); monkeypatch.setenv("GEONB_DATA", str(tmp_path)); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache")); monkeypatch.chdir(tmp_path)
    code, out, err = cli(*args.split())
    assert (code, out) == (4, "") and one_sentence(err), err
    assert everything(tmp_path) == everything(runs_root) == []
    code, out, err = cli(*args.split(), "--json")
    assert code == 4 and json.loads(out) == {"error": err.removeprefix("geonb: ").strip(), "exit_code": 4}


@pytest.mark.parametrize("name", ["..", "../..", "/", "/etc", "~", ".", "best", "a/../../b", "\0", "x"*5000, "é\n", "-r1"])
def test_nothing_outside_the_runs_root_is_removed(cli, shelf, runs_root, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path); before = everything(runs_root)
    code, out, err = cli("runs", "rm", "--yes", "--", name)
    assert code in (2, 4) and out == "" and one_sentence(err), err
    assert everything(runs_root) == before and tmp_path.is_dir()


# --- answers

def test_check_says_one_line_and_writes_nothing(cli, tmp_path, runs_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("run", "train_pentachora", "--check", "-p", "epochs", "2", "-p", "strict", "true", "-p", "lr", "null")
    assert (code, err) == (0, "") and out.startswith("ok train_pentachora") and out.count("\n") == 1
    code, out, _ = cli("run", "train_pentachora", "--check", "--json", "-y", "{epochs: 4, ema: false}", "-p", "epochs", "2")
    assert json.loads(out)["given"] == {"epochs": 2, "ema": False}
    assert everything(tmp_path) == everything(runs_root) == []


@pytest.mark.parametrize("args", ["runs list", "runs verify --all", "data list", "data check digits", "data get digits", "doctor", "run train_pentachora --check"])
def test_json_is_all_that_is_printed(cli, shelf, args):
    code, out, _ = cli(*args.split(), "--json")
    assert code in (0, 3) and json.loads(out) is not None and out.count("\n") == 1


def test_lists_are_tables(cli, shelf):
    code, out, _ = cli("runs", "list"); lines = out.splitlines()
    assert code == 0 and lines[0].split()[:2] == ["run", "status"] and lines[1].startswith(shelf[1].name) and "test accuracy 0." in lines[1]
    code, out, _ = cli("data", "list"); assert code == 0 and any(l.split()[:2] == ["digits", "yes"] for l in out.splitlines())
    code, out, _ = cli("data", "check", "digits"); assert code == 0 and "10 classes" in out and "per class" in out


def test_an_empty_list_says_how_to_begin(cli):
    assert "geonb run" in cli("runs", "list")[1] and cli("runs", "list", "--json")[1] == "[]\n"


def test_doctor_finds_what_is_wrong(cli, monkeypatch, tmp_path):
    code, out, _ = cli("doctor", "--json"); lines = {l["name"]: l for l in json.loads(out)}
    assert {"python", "requirements", "torch", "torchvision", "train_pentachora", "kernel", "gpu", "threads", "runs root", "data root", "quarto", "chromium"} <= set(lines)
    assert {l["status"] for l in lines.values()} <= {"ok", "warn", "fail"} and all(l["hint"] for l in lines.values() if l["status"] != "ok")
    (tmp_path/"file").write_text(""); monkeypatch.setenv("GEONB_RUNS", str(tmp_path/"file"/"runs")); monkeypatch.setenv("GEONB_DTA", "x")
    code, out, err = cli("doctor"); assert code == 3 and err == "geonb: runs root: see above\n" and "did you mean 'GEONB_DATA'?" in out


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(f"{GEONB} data list | head -1; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("set")


def complete(line):
    "What bash would offer."
    done = subprocess.run([GEONB], env={**os.environ, "_GEONB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}, capture_output=True, text=True)
    return done.stdout.split()


def test_completion(shelf):
    assert complete("geonb run train_p") == ["train_pentachora"]
    assert complete("geonb run train_pentachora -p epo") == ["epochs"] and sorted(complete("geonb run train_ternary_v5_5 -p iso")) == ["isolated_weight", "isolation_end"]
    assert complete("geonb runs show " + shelf[1].name[:4]) == [shelf[1].name]
    assert complete("geonb data get bloo") == ["bloodmnist"]
    assert set(complete("geonb runs ")) == {"list", "show", "compare", "verify", "rm"}
    script = subprocess.run([GEONB], env={**os.environ, "_GEONB_COMPLETE": "source_bash"}, capture_output=True, text=True)
    assert script.returncode == 0 and "complete " in script.stdout and "_GEONB_COMPLETE" in script.stdout


# --- runs

def test_run_leaves_a_bundle_and_its_notebook(line):
    path, root, said, done = line; bundle, executed = Path(said["path"]), Path(said["notebook"])
    assert (said["problems"], said["trained"], said["run_id"]) == ([], True, bundle.name) and 0 < said["headline"]["test accuracy"] < 1
    assert sorted(p.name for p in bundle.parent.iterdir() if not p.name.startswith(".")) == sorted([bundle.name, executed.name, f"{executed.name}.sha256", "best"])
    assert done.stderr.count("epoch ") >= 2 and "epoch 2/2" in done.stderr                       # progress is streamed, away from the JSON
    nb = nbformat.read(executed, 4); assert nb.cells[1].source.startswith("# Parameters\nepochs = 2") and str(root) not in json.dumps(nb.metadata)
    assert (root.parent/"copy.ipynb").read_bytes() == executed.read_bytes() and [p.name for p in root.glob(".*")] == []
    assert runs.verify_run(bundle) == []


def test_the_same_command_trains_nothing(cli, shelf):
    before = everything(shelf[1]); notebook_before = (shelf[1].parent/f"{shelf[1].name}.ipynb").read_bytes()
    code, out, err = cli("run", shelf[0], "-p", "epochs", 2)
    assert code == 0, err
    assert "is finished already" in out and f"bundle: {shelf[1]}" in out and out.endswith("verify: ok\n") and "epoch 1" not in out
    assert everything(shelf[1]) == before and (shelf[1].parent/f"{shelf[1].name}.ipynb").read_bytes() == notebook_before


def test_show_verify_and_remove(cli, shelf, runs_root):
    name = shelf[1].name
    code, out, _ = cli("runs", "show", name[:6]); assert code == 0 and f"run {name} (finished)" in out and "epochs: 2" in out and "test accuracy" in out
    assert json.loads(cli("runs", "show", name, "--json")[1])["parameters"]["epochs"] == 2
    assert cli("runs", "verify", name)[0] == 0
    executed = shelf[1].parent/f"{name}.ipynb"; executed.write_text(executed.read_text() + "\n")
    code, out, err = cli("runs", "verify", "--all"); assert code == 3 and one_sentence(err) and f"{name}.ipynb does not match its SHA-256" in err
    weights = shelf[1]/"weights"/"line.safetensors"; raw = bytearray(weights.read_bytes()); raw[-1] ^= 1; weights.write_bytes(raw)
    code, out, err = cli("runs", "verify", name, "--json"); assert code == 3 and json.loads(out)[str(shelf[1])] == ["weights/line.safetensors does not match its SHA-256", f"{name}.ipynb does not match its SHA-256"]
    assert cli("run", "train_pentachora", "--check", "--from", name)[0] == 3
    code, out, err = cli("runs", "rm", name); assert code == 2 and "pass --yes" in err and shelf[1].is_dir()
    assert cli("runs", "rm", name, "--yes")[0] == 0
    assert sorted(p.name for p in shelf[1].parent.iterdir() if not p.name.startswith(".")) == ["best"]


def test_parameters_of_a_bundle(cli, shelf):
    code, out, _ = cli("run", "train_pentachora", "--check", "--json", "--from", shelf[1], "-p", "seed", 9)
    given = json.loads(out)["given"]; assert code == 0 and (given["epochs"], given["seed"], given["dataset"]) == (2, 9, "digits")


# --- what can go wrong in a kernel

@pytest.mark.parametrize("cell, code, sentence", [
    ("from geonb.core.errors import CheckFailed\nraise CheckFailed('the moon\\nis wrong')", 3, "geonb: the moon is wrong\n"),
    ("from geonb.core.errors import DataMissing\nraise DataMissing('no moon')", 4, "geonb: no moon\n"),
    ("1/0", 1, "the notebook failed with ZeroDivisionError"), ("import os; os.kill(os.getpid(), 9)", 1, "the kernel died"), ("1", 1, "ended without opening a run")])
def test_a_failing_notebook_is_one_sentence(cli, tmp_path, runs_root, monkeypatch, cell, code, sentence):
    monkeypatch.setenv("TMPDIR", str(tmp_path)); monkeypatch.setattr("tempfile.tempdir", None)
    got, out, err = cli("run", notebook(tmp_path/"nbs", cell))
    assert (got, out) == (code, "") and sentence in err and one_sentence(err), err
    assert everything(runs_root) == []
    if code == 1: assert cell in [c.source for c in nbformat.read(err.strip().rsplit(" ", 1)[1], 4).cells]


def start(args, **env):
    return subprocess.Popen([GEONB, *map(str, args)], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

def until(p, text):
    for said in p.stdout:
        if text in said: return
    raise AssertionError(p.stderr.read())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_a_stopped_run_is_saved_and_continues(cli, tmp_path, runs_root, number, code):
    args = ["run", notebook(tmp_path/"nbs", OPEN, TRAIN, FINISH), "-p", "epochs", "3", "-p", "seed", number]
    p = start(args, SLOW="0.1"); until(p, "epoch 1/3"); p.send_signal(number)
    out, err = p.communicate(timeout=60)
    assert (p.returncode, one_sentence(err)) == (code, True) and "the same command continues" in err, err
    row = json.loads(cli("runs", "list", "--json")[1])[0]; assert row["status"] == "interrupted"
    shown = json.loads(cli("runs", "show", row["run_id"], "--json")[1]); assert shown["epochs_done"] == 1 and shown["epochs_wanted"] == 3
    if number == signal.SIGTERM:
        done = geonb(*args); assert done.returncode == 0 and "continues in epoch 2" in done.stdout and done.stdout.endswith("verify: ok\n"), done.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_stop_before_training(tmp_path, runs_root, number, code):
    p = start(["run", notebook(tmp_path/"nbs", "print('asleep', flush=True)\nimport time\ntime.sleep(60)")]); until(p, "asleep"); p.send_signal(number)
    out, err = p.communicate(timeout=60)
    assert p.returncode == code and one_sentence(err) and "before there was anything to save" in err
    assert everything(runs_root) == []


@pytest.mark.slow
def test_a_second_stop_ends_a_deaf_notebook(tmp_path, runs_root):
    p = start(["run", notebook(tmp_path/"nbs", "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('asleep', flush=True)\nwhile True: time.sleep(1)")])
    until(p, "asleep"); p.send_signal(signal.SIGINT); time.sleep(1); assert p.poll() is None
    p.send_signal(signal.SIGINT); out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and one_sentence(err) and everything(runs_root) == []


def test_what_a_killed_geonb_leaves_is_swept(runs_root):
    dead, alive = runs_root/f".executing-{2**22 + 1}-x.ipynb", runs_root/f".executing-{os.getpid()}-x.ipynb"
    dead.write_text("{"); alive.write_text("{"); execute.sweep(runs_root)
    assert [p.name for p in runs_root.iterdir()] == [alive.name]


@pytest.mark.slow
def test_a_run_comes_out_the_same_again(shelf):
    assert runs.rerun(shelf[1].name, notebook=shelf[0]) == []
    other = notebook(Path(shelf[0]).parent.parent/"other", OPEN, TRAIN.replace("1e-2", "2e-2"), FINISH)
    found = runs.rerun(shelf[1].name, notebook=other)
    assert [f.split(":")[0] for f in found] == ["weights/line.safetensors", "predictions_test.npz", "history.json"]


def test_a_run_of_another_torch_is_not_repeated(cli, shelf):
    from geonb.core.atomic import read_json, write_json, write_sums
    m = read_json(shelf[1]/"manifest.json"); m["environment"]["torch"] = "1.0.0"; write_json(shelf[1]/"manifest.json", m); write_sums(shelf[1])
    code, _, err = cli("runs", "verify", shelf[1].name, "--rerun")
    assert code == 1 and one_sentence(err) and "was made with torch 1.0.0" in err
