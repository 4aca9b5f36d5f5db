"Whatever is passed as a parameter, the answer is an exit code and a sentence, and nothing is written."
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from geonb.app.execute import check, parse_value
from geonb.core.config import RUNS, run_config

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(RUNS)
TEXTS = ["", " ", "\n", "\0", "a\0b", "\ud800", "\x1b[31m", "é" * 3, "数字", "🦆", "digits", "DIGITS", "digitz", "mnist", "bloodmnist", "bloodmnits", "chestmnist", "organmnist3d", "no/such.npz", "~/no.npz", "~nobody/x.npz",
         "../../etc/passwd", "/etc/passwd", "/etc", "/", ".", "..", "/proc/self/mem", "/dev/null", "/dev/zero", "C:\\data", "x" * 300, "x" * 5000, "a/" * 2000 + "b.npz", "http://example.org/a.npz", "${HOME}", "$(touch pwned)", "; touch pwned",
         "__import__('os').system('touch pwned')", "true", "null", "nan", "1e999", "auto", "cuda", "cpu", "none"]
NUMBERS = [0, 1, -1, 2, 3, 7, 255, 256, 10**6, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, -2**63, 10**40, 10**5000, .0, -.0, .5, 1., 1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf]
NAMED = {"dataset": ["digits", "mnist", "bloodmnist", "Digits", "no/such.npz"], "start": [None, None, "null", "0123456789-r1", "no/such", "a run that is not here"],
         "vertex_edit": [None, "null", "dispatchers:2:4:0.10,-0.05,0,0", "specialists:0:0:1,0,0,nan", "dispatchers:0:9:1,0,0,0", ":::,,,", ";;;", "dispatchers:0:0:" + "9"*400 + ",0,0,0", "dispatchers:٣:0:1,0,0,0"]}
SAID = {"train_pentachora": [("dataset", "digitz", "did you mean 'digits'"), ("dataset", "bloodmnist", "bloodmnist is not on this machine"), ("start", "nothing-r1", "no run or bundle 'nothing-r1'"), ("size", "XL", "one of 'nano', 'S', 'M', 'L'"), ("resolution", "96", "one of 28, 64, 128"),
                             ("ood", "fashionmnits", "did you mean 'fashionmnist'"), ("vertex_edit", "dispatcher:0:0:1,0,0,0", "did you mean 'dispatchers'"), ("vertex_edit", "dispatchers:0:0:1,0,0,0", "pass start too")],
        "train_ternary_v5_5": [("subset", "comutative", "did you mean 'commutative'"), ("start", "nothing-r1", "no run or bundle 'nothing-r1'")],
        "train_ternary_v5_11": [("recipe", "structural", "geonb run train_ternary_v5_5"), ("start", "nothing-r1", "no run or bundle 'nothing-r1'")],
        "generate_operators": [("profile", "fulll", "one of 'ci', 'cpu30', 'mid', 'reduced', 'full'"), ("precision", "fp16", "one of 'fp32', 'bf16'")],
        "train_operator_vqvae": [("quantizer", "vqq", "one of 'vq', 'rvq', 'fsq', 'lfq', 'simvq'"), ("dataset", "nothing-r1", "no run or bundle 'nothing-r1'")],
        "chromatic_descent": [("dataset", "digitz", "did you mean 'digits'"), ("against", "nothing-r1", "no run or bundle 'nothing-r1'"), ("vary", "al", "one of 'all', 'init', 'order', 'augment', 'recipe'")]}
OTHERS = [None, True, False, [], {}, (), [1, 2], [[[[1]]]], {"a": {"b": 1}}, {1: 2}, {"seed": 1}, b"bytes", {1, 2}, complex(1, 2), object, range(3), ..., [math.nan], "x" * 100_000]


def deep(n):
    "A list in a list in a list …"
    x = []
    for _ in range(n): x = [x]
    return x


def misspelt(name, r):
    "A name with one letter lost, doubled, swapped or changed; sometimes no name at all."
    i = r.randrange(len(name)); kind = r.randrange(7)
    return [name[:i] + name[i+1:], name[:i] + name[i] + name[i:], name.upper(), name + "_", r.choice(TEXTS), name[::-1], r.choice(["cls", "self", "given", "model_config", "__class__", "laboratory", "transparent", "build", "PAPERMILL_INPUT_PATH"])][kind]


def draw(r, model, extra=()):
    "One set of parameters: mostly real names, all kinds of values."
    fields, out = list(model.model_fields), {}
    place = "dataset" if "dataset" in fields else "start"   # the parameter that names something outside
    if r.random() < .3: return {k: model.model_fields[k].default for k in r.sample(fields, 3)} | {place: r.choice([*NAMED[place], *extra])}   # well formed
    for _ in range(r.choice([1, 1, 1, 2, 3, 8])):
        name = misspelt(r.choice(fields), r) if r.random() < .15 else place if r.random() < .25 else r.choice(fields)
        kind = r.randrange(6)
        out[name] = (r.choice(TEXTS), r.choice(NUMBERS), r.choice(OTHERS), deep(r.choice([3, 500, 20_000])), r.choice([*extra, "digits", *(NAMED["vertex_edit"] if name == "vertex_edit" else [])]), r.choice([model.model_fields[name].default if name in fields else 1]))[kind]
    return out


@pytest.fixture
def place(tmp_path, monkeypatch, runs_root):
    "A working directory with things that could be mistaken for datasets, and no data anywhere."
    here, data = tmp_path/"here", tmp_path/"data"; here.mkdir(); data.mkdir()
    (here/"empty").mkdir(); (here/"folder"/"train"/"a").mkdir(parents=True); (here/"folder"/"train"/"a"/"not.png").write_text("no picture")
    (here/"text.npz").write_text("no archive"); (here/"empty.npz").write_bytes(b""); (here/"file.txt").write_text("x"); (here/"link").symlink_to("/"); (here/"digits").mkdir(); (here/"loop").symlink_to("loop")
    (here/"locked").mkdir(mode=0); (here/"空 🦆.npz").write_bytes(b"PK\3\4")
    monkeypatch.chdir(here); monkeypatch.setenv("GEONB_DATA", str(data)); monkeypatch.setenv("GEONB_OFFLINE", "1"); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache")); monkeypatch.setenv("HOME", str(tmp_path/"home"))
    files = ["empty", "folder", "text.npz", "empty.npz", "file.txt", "link", "link/etc", "loop", "locked", "./digits", str(here/"folder"), "空 🦆.npz", "empty/../folder", "folder/train/a/not.png"]
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    yield files
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before and list(runs_root.iterdir()) == []
    (here/"locked").chmod(0o700)


ANSWERS = {"train_pentachora": (0, 2, 3, 4), "train_operator_vqvae": (0, 2, 3, 4), "chromatic_descent": (0, 2, 3, 4)}   # a data set, another run, may be there, and be none or damaged: 3


def sane(code, sentence, allowed=(0, 2, 4)):
    assert code in allowed and sentence and "Traceback" not in sentence and "\n" not in sentence.strip(), (code, sentence)


@pytest.mark.parametrize("sets", [100, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_sets_in_process(name, sets, place, capsys):
    r, model, codes = random.Random(20240), run_config(name), []
    for i in range(sets):
        params = draw(r, model, place)
        code, sentence = check(name, params)
        sane(code, sentence, ANSWERS.get(name, (0, 2, 4))); codes.append(code)
        assert len(sentence) < 3000 and sentence.encode("utf-8", "replace"), i
    reads = {"dataset", "start"} & {*model.model_fields}   # a run that makes its data misses none
    assert codes.count(0) > sets / 30 and codes.count(2) > sets / 3 and (codes.count(4) > sets / 30 or not reads), "the draw does not reach every answer"
    assert capsys.readouterr().out == ""


TOGETHER = [   # parameters of train_pentachora that are allowed one by one, and what is said of them together
    (dict(factored=True), "factored=True routes by the bits of a cube's vertices"), (dict(vertex_map="gray"), "vertex_map='gray' walks along the edges of a cube"), (dict(geometry="cross:5", model="cnn"), "model='cnn' has no constellation"),
    (dict(labels_per_class=5, label_share=.5), "both say how many labels are kept"), (dict(unlabelled="rose"), "needs pictures without labels"), (dict(unlabelled="rose", labels_per_class=3, model="cnn"), "pass unlabelled='msp'"),
    (dict(unlabelled="msp", labels_per_class=3, rose_quantile=.5), "rose_quantile=0.5 is not read with unlabelled='msp'"), (dict(pseudo_threshold=.5), "pseudo_threshold=0.5 is not read with unlabelled='none'"),
    (dict(unlabelled="msp", labels_per_class=3, w_unlabelled=0, w_distil=0), "teaches nothing"), (dict(prior="classes", model="cnn"), "prior='classes' is not read with model='cnn'"), (dict(w_route=.1, model="linear"), "w_route=0.1 is not read with model='linear'"),
    (dict(tau_schedule="cosine", model="cnn"), "tau_schedule='cosine' is not read with model='cnn'"), (dict(geometry="cube:30"), "more than 1,024 vertices"), (dict(geometry="simplex:7", dim=5), "dim=5 is not a multiple of heads=2")]


@pytest.mark.parametrize("given,says", TOGETHER, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_what_does_not_fit_together_is_refused(given, says):
    code, sentence = check("train_pentachora", given); sane(code, sentence, (2,)); assert says in sentence


@pytest.mark.parametrize("name", NAMES)
def test_every_field_refuses_what_it_cannot_mean(name, place):
    for field in run_config(name).model_fields:
        for value in (object(), b"x", [1], {"a": 1}, math.nan, 10**5000, "\0", "\ud800"):
            code, sentence = check(name, {field: value})
            assert code == 2 and field in sentence, (field, value, sentence)
        assert "did you mean" in check(name, {field + "s": 1})[1] or field + "s" in run_config(name).model_fields


def words(r, model, files):
    "The arguments of a command line that can exist: no NUL, no lone surrogate, not too long."
    out = []
    for k, v in draw(r, model, files).items():
        try: text = str(v)
        except (RecursionError, ValueError): text = "1" + "0"*5000   # too deep to be written, too long a number
        if "\0" in k + text or any(0xD800 <= ord(c) < 0xE000 for c in k + text) or len(text) > 100_000: continue
        out += ["-p", k, text]
    return out


@pytest.mark.parametrize("lines", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_command_lines(name, lines, place):
    r, model = random.Random(7), run_config(name)
    jobs = [words(r, model, place) for _ in range(lines)]
    for args in jobs:
        done = subprocess.run([BIN/"geonb", "run", name, "--check", *args], capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=120)
        sane(done.returncode, done.stderr or done.stdout, ANSWERS.get(name, (0, 2, 4)))
        assert (done.stdout == "") == (done.returncode != 0), args
        given = dict(zip(args[1::3], map(parse_value, args[2::3])))
        assert done.returncode == check(name, given)[0], args


@pytest.mark.parametrize("name", [n if n == "train_pentachora" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])   # all sentences are asked for in process above; here they go the whole way
def test_5_through_papermill(name, place, runs_root, tmp_path_factory):
    notebook = ROOT/"nbs"/f"{name}.ipynb"
    if not notebook.is_file(): pytest.skip(f"{name} is not here")
    size = "epochs" if "epochs" in run_config(name).model_fields else "total_samples"; slip = size[:-1] + "z"
    wrong = [(slip, "3", f"unknown parameter '{slip}' (did you mean '{size}'?)"), (size, "many", f"{size}='many' (str) is not allowed"), ("seed", "-1", "seed=-1 (int) is not allowed"),
             *SAID[name]]
    env = {**os.environ, "GEONB_RUNS": str(runs_root), "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))}
    out = tmp_path_factory.mktemp("out")
    def begun(i):
        parameter, value, _ = wrong[i]
        return subprocess.Popen([BIN/"papermill", notebook, out/f"{i}.ipynb", "-p", parameter, value, "--no-progress-bar"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=env)
    jobs = [begun(i) for i in range(len(wrong))]
    for i, (job, (*_, sentence)) in enumerate(zip(jobs, wrong)):
        said = job.communicate(timeout=180)[1]
        if "Kernel died before replying to kernel_info" in said: job = begun(i); said = job.communicate(timeout=180)[1]   # two kernels of papermill began at once and chose one port: not geonb's answer; alone it has to give it
        last = said.strip().splitlines()[-1]
        assert job.returncode == 1 and sentence in last and last.split(":")[0] in ("UsageError", "DataMissing"), said[-800:]
