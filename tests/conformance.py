"""What every run notebook has to stand: a table of notebooks, one way to run their cells, one way to compare what they leave.

A later laboratory adds a `Row`. The tests are in test_conformance.py. Run as a script, this is the warm process that forks one
child per run of a notebook's cells (see warm.py); the real way, papermill and a kernel, is `papermill` below.
"""
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import warm
from geonb.core.environment import code_hash

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    "One run notebook and what the suite has to know about it."
    notebook: str     # nbs/<notebook>.ipynb
    laboratory: str
    dataset: str      # folder below <root>/<laboratory>/ of the default run
    quick: dict       # the smallest run that still has everything in it
    steps: int        # steps and epochs of that run
    epochs: int
    wrong: dict       # what is wrong -> (parameter, value as typed, words of the sentence); the first word is the kind of error
    other: dict       # parameter -> another value: each is another run
    files: tuple      # glob patterns of what its bundle holds besides EVERY
    predictions: str  # npz with what the model said about held-out data
    reproduce: str    # Python: stored predictions by a freshly loaded model; argv[1] is the bundle; prints the largest difference and their number
    timings: tuple = field(default=())   # paths in diagnostics.json that are seconds
    trains: bool = True   # False: it makes a data set; its steps are shards that were written, its epochs rows of the history, and it has no weights, no champion and no TensorBoard
    underway: str = "checkpoints/00000000[5-9]"   # glob pattern of what its partial folder holds when some of it is done
    trainings: int = 1    # a population trains so many members, one after another, with equal numbers of steps
    says: str = "epoch 1/"   # beginning of a line that tells how far it is

    @property
    def path(self): return ROOT/"nbs"/f"{self.notebook}.ipynb"
    @property
    def shelf(self): return f"{self.dataset.rsplit('-', 1)[0]}-{self.quick['total_samples']}" if "total_samples" in self.quick else self.dataset   # of the quick run
    def folder(self, root): return Path(root)/self.laboratory/self.shelf
    def bundles(self, root): return sorted(p for p in Path(root).glob(f"{self.laboratory}/*/*-r*") if not p.name.startswith(".") and p.parent.name in (self.shelf, self.dataset))


EVERY = ("config.json", "manifest.json", "history.json", "history.csv", "README.md", "SHA256SUMS", "plots/*.png")
TRAINED = ("tensorboard.zip", "tensorboard/events.out.tfevents.*", "**/*.safetensors")

PENTACHORA = Row(
    notebook="train_pentachora", laboratory="pentachora", dataset="digits", steps=42, epochs=2,
    quick=dict(epochs=2, dim=10, channels=5, limit=230, device="cpu"),
    wrong={"misspelt": ("epocs", "3", ("UsageError: ", "'epocs'", "did you mean 'epochs'?")), "ill-typed": ("epochs", "many", ("UsageError: ", "epochs='many'", "str", "a whole number from 1 to 100000")),
           "out of range": ("lr", "7.5", ("UsageError: ", "lr=7.5", "a number above 0 to 1 or null")), "data not here": ("dataset", "bloodmnist", ("DataMissing: ", "bloodmnist.npz", "looked for in", "geonb data get bloodmnist"))},
    other=dict(seed=1, epochs=3, lr=.01, strict=True, model="linear"),
    files=("calibration.json", "predictions_test.npz", "trajectory.npz", "heldout.npz", "diagnostics.json", *(f"weights/{m}_digits.safetensors" for m in ("encoder", "constellation", "diagnostic_head"))),
    predictions="predictions_test.npz", timings=("latency_ms",),
    reproduce="""
import sys, json, pathlib, numpy as np, geonb
from geonb.data.images import load_images
bundle = pathlib.Path(sys.argv[1]); kept = np.load(bundle/"predictions_test.npz"); model = geonb.load(bundle); test = load_images("digits", size=28).test
assert (kept["labels"] == test.labels).all()
print(json.dumps([float(np.abs(model.logits(test.images) - kept["logits"]).max()), len(kept["labels"])]))
""")

TERNARY = Row(
    notebook="train_ternary_v5_5", laboratory="ternary", dataset="v5_5", steps=28, epochs=2,
    quick=dict(epochs=2, isolation_end=0, consolidation_end=1, ultra_start=1, holdout=.9, batch=150, eval_every=1, eval_draws=1000, device="cpu"),
    wrong={"misspelt": ("epocs", "3", ("UsageError: ", "'epocs'", "did you mean 'epochs'?")), "ill-typed": ("epochs", "many", ("UsageError: ", "epochs='many'", "str", "a whole number from 1 to 100000 or null")),
           "out of range": ("lr", "7.5", ("UsageError: ", "lr=7.5", "a number above 0 to 1 or null")), "data not here": ("start", "nothing-r1", ("DataMissing: ", "nothing-r1", "geonb runs list"))},
    other=dict(seed=1, epochs=3, lr=.002, strict=True, statenet="off"),
    files=("reconstruction.npz", "trajectory.npz", "plane.npz", "diagnostics.json", "weights/model_v5_5.safetensors"),
    predictions="reconstruction.npz",
    reproduce="""
import sys, json, pathlib, numpy as np, geonb
bundle = pathlib.Path(sys.argv[1]); kept = np.load(bundle/"reconstruction.npz"); model = geonb.load(bundle)
print(json.dumps([max(int((model.predict(path=p) != kept[f"predicted_{p}"]).sum()) for p in "AB"), len(kept["index"])]))
""")

HYPERBOLIC = Row(
    notebook="train_ternary_v5_11", laboratory="ternary", dataset="v5_11", steps=28, epochs=2,
    quick=dict(ae_epochs=1, epochs=1, holdout=.9, batch=150, eval_every=1, measure_tree=False, device="cpu"),
    wrong={"misspelt": ("epocs", "3", ("UsageError: ", "'epocs'", "did you mean 'epochs'?")), "ill-typed": ("epochs", "many", ("UsageError: ", "epochs='many'", "str", "a whole number from 1 to 100000 or null")),
           "out of range": ("lr", "7.5", ("UsageError: ", "lr=7.5", "a number above 0 to 1 or null")), "data not here": ("start", "nothing-r1", ("DataMissing: ", "nothing-r1", "geonb runs list"))},
    other=dict(seed=1, epochs=3, lr=.002, strict=True, band_gap=.05),
    files=("reconstruction.npz", "trajectory.npz", "plane.npz", "diagnostics.json", "weights/model_v5_11.safetensors"),
    predictions="reconstruction.npz",
    reproduce="""
import sys, json, pathlib, numpy as np, geonb
bundle = pathlib.Path(sys.argv[1]); kept = np.load(bundle/"reconstruction.npz"); model = geonb.load(bundle)
print(json.dumps([max(float((model.predict() != kept["predicted_B"]).sum()), float(np.abs(model.radius() - kept["radius_B"]).max())), len(kept["index"])]))
""")

OPERATORS = Row(
    notebook="generate_operators", laboratory="operators", dataset="ci-64", steps=26, epochs=12, trains=False, underway="shards/shard-*",
    quick=dict(total_samples=24, timesteps=8, realizations=2, executor="serial", shard_seconds=1e-6, device="cpu"),
    wrong={"misspelt": ("total_sample", "3", ("UsageError: ", "'total_sample'", "did you mean 'total_samples'?")), "ill-typed": ("total_samples", "many", ("UsageError: ", "total_samples='many'", "str", "a whole number from 1 to 10000000")),
           "out of range": ("alpha", "7.5", ("UsageError: ", "alpha=7.5", "a number from 0 to 1 or null")), "not read": ("scheduler", "tcp://127.0.0.1:1", ("UsageError: ", "scheduler is not read with executor='processes'"))},
    other=dict(seed=1, twins=3, dt=.1, baseline=True, families="summary"),
    files=("dataset.h5", "strip.npz", "diagnostics.json"), predictions="strip.npz", timings=("cost",),
    reproduce="""
import sys, json, pathlib, numpy as np, geonb
from geonb.operators.store import replay
bundle = pathlib.Path(sys.argv[1]); kept = np.load(bundle/"strip.npz"); store = geonb.load(bundle)
print(json.dumps([max(float(np.abs(replay(store, int(i)).frames[0, kept["times"]].numpy() - f).max()) for i, f in zip(kept["ids"], kept["frames"])), len(kept["ids"])]))
""")

DATA = Path(tempfile.gettempdir())/f"geonb-conformance-{os.getuid()}"/code_hash("operators")[:12]/"ci-64.h5"   # what the tokenizer's quick run reads; `operators_data` puts it there


def operators_data():
    "Make that data set, once for all processes."
    import shutil
    from geonb.core.errors import GeonbError
    while not DATA.exists():
        from geonb.operators.generation_bundle import make_dataset
        from geonb.operators.generation_config import GenerateOperators
        try: made = make_dataset(GenerateOperators.build(total_samples=64, timesteps=8, realizations=2, executor="serial", progress="none", device="cpu", runs_root=str(DATA.parent/"runs")), report=lambda *_: None)
        except GeonbError: time.sleep(1); continue   # another process makes it
        shutil.copyfile(made/"dataset.h5", new := DATA.with_suffix(f".{os.getpid()}")); os.replace(new, DATA)


TOKENIZER = Row(
    notebook="train_operator_vqvae", laboratory="operators", dataset="vqvae-ci-64", steps=26, epochs=2,
    quick=dict(dataset=str(DATA), epochs=2, val_every=1, batch=4, codes=8, bootstraps=0, device="cpu"),
    wrong={"misspelt": ("epocs", "3", ("UsageError: ", "'epocs'", "did you mean 'epochs'?")), "ill-typed": ("epochs", "many", ("UsageError: ", "epochs='many'", "str", "a whole number from 1 to 100000 or null")),
           "out of range": ("lr", "7.5", ("UsageError: ", "lr=7.5", "a number above 0 to 1 or null")), "not read": ("entropy", "0.3", ("UsageError: ", "entropy=0.3 would do nothing with quantizer='vq'")),
           "data not here": ("dataset", "nothing-r1", ("DataMissing: ", "nothing-r1", "geonb runs list"))},
    other=dict(seed=1, epochs=3, lr=.002, strict=True, quantizer="fsq"),
    files=("report.json", "categories.json", "normalization_stats.npz", "inputs.npz", "splits.npz", "tokens.npz", "latents.npz", "weights/model.safetensors"), predictions="tokens.npz",
    reproduce="""
import sys, json, pathlib, numpy as np, torch, geonb
bundle = pathlib.Path(sys.argv[1]); model = geonb.load(bundle); store = geonb.load(next(bundle.parent.parent.glob("ci-64/*-r*"))); kept, held = np.load(bundle/"tokens.npz"), np.load(bundle/"latents.npz")
assert (model.tokens(store) == kept["tokens"]).all() and (model.tokens(store, twins=True) == kept["twin_tokens"]).all()
again = model.net.decode(torch.from_numpy(kept["tokens"][held["rows"]])).numpy(); print(json.dumps([float(np.abs(again - held["reconstruction"]).max()), len(kept["tokens"])]))
""")

CHROMATIC = Row(
    notebook="chromatic_descent", laboratory="chromatic", dataset="digits", steps=108, epochs=3, trainings=3, says="member 1 of 3", underway="members/*/checkpoints/00000000[5-9]",
    quick=dict(seeds=3, epochs=3, engine="loop", reps=99, bootstraps=50, device="cpu"),
    wrong={"misspelt": ("sedes", "3", ("UsageError: ", "'sedes'", "did you mean 'seeds'?")), "ill-typed": ("seeds", "many", ("UsageError: ", "seeds='many'", "str", "a whole number from 2 to 10000 or null")),
           "out of range": ("lr", "70", ("UsageError: ", "lr=70", "a number above 0 to 10")), "not read": ("repel_lambda", "0.3", ("UsageError: ", "repel_lambda=0.3 would do nothing with repel=False")),
           "data not here": ("dataset", "bloodmnist", ("DataMissing: ", "bloodmnist.npz", "looked for in", "geonb data get bloodmnist"))},
    other=dict(seed=1, first_seed=14, epochs=4, lr=.01, strict=True, vary="order", reps=100),
    files=("predictions_test.npz", "trace.npz", "diagnostics.json", "runs/SEED_0013/done.json", "artifacts/split.json", "artifacts/probes/probe_index.json", "artifacts/embeddings/distance_*.npy", "artifacts/reports/REPORT.md", "artifacts/manifest.json"),
    predictions="predictions_test.npz", timings=("members", "engine", "summary"),
    reproduce="""
import sys, json, pathlib, numpy as np, geonb
from geonb.data.images import load_images
bundle = pathlib.Path(sys.argv[1]); kept = np.load(bundle/"predictions_test.npz"); model = geonb.load(bundle); test = load_images("digits", size=8).test
assert (kept["labels"] == test.labels).all() and kept["seeds"].tolist() == list(model.seeds)
print(json.dumps([float(np.abs(model.logits(test.images) - kept["logits"]).max()), len(kept["logits"])]))
""")

ROWS = {r.notebook: r for r in (PENTACHORA, TERNARY, HYPERBOLIC, OPERATORS, TOKENIZER, CHROMATIC)}


# ---- the real way ----

def papermill(row, cwd, *parameters, root, env={}):
    "Start plain papermill on the notebook from the folder `cwd`."
    if str(DATA) in map(str, parameters): operators_data()
    given = [str(x) for p in zip(parameters[::2], parameters[1::2]) for x in ("-p", *p)]
    return subprocess.Popen([sys.executable, "-m", "papermill", str(row.path), "out.ipynb", *given], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"GEONB_RUNS": str(root), "OMP_NUM_THREADS": "1"} | env)


def parameters(row, **more):
    "The quick run's parameters as papermill's command line has them."
    return [x for k, v in (row.quick | more).items() for x in (k, v)]


# ---- what is compared ----

def arrays(file):
    import numpy as np
    with np.load(file, allow_pickle=False) as z: return {k: z[k] if z[k].dtype.kind not in "SU" else z[k].tolist() for k in z.files}


def weights(bundle):
    "Every tensor of every weights file; the dataset in the files' names is left out."
    from safetensors.torch import load_file
    return {f.relative_to(bundle).as_posix().split("_" + bundle.parent.name)[0]: load_file(f) for f in sorted(bundle.rglob("*.safetensors"))}


def stored(file):
    "What an HDF5 file of operators vouches for, seconds left out."
    from geonb.operators.store import TIMING, Store
    store = Store(file); return {"sha256": store.sha256, "plan": store.config} | {p: d for p, d in store.digests.items() if p != TIMING}


def digest(row, bundle):
    "All of a bundle that must be equal to the last bit."
    read = lambda f: json.loads((bundle/f).read_text())
    measured = {k: v for k, v in read("diagnostics.json").items() if k not in row.timings} if (bundle/"diagnostics.json").exists() else {}
    return warm.flat({"weights": weights(bundle), "arrays": {f.name: arrays(f) for f in sorted(bundle.glob("*.npz"))}, "stored": {f.name: stored(f) for f in sorted(bundle.glob("*.h5"))}, "history": warm.timeless(read("history.json")), "config": (bundle/"config.json").read_text(),
                      "diagnostics": measured, "report": read("report.json") if (bundle/"report.json").exists() else {}, "manifest": {k: v for k, v in read("manifest.json").items() if k in ("chosen", "test", "parameters", "headline", "seed", "code")}})


# ---- the cells in a forked process ----

def cells(row):
    "Sources of the code cells, with a mark at the parameters."
    nb = json.loads(row.path.read_text())
    return [("".join(c["source"]), "parameters" in c["metadata"].get("tags", ())) for c in nb["cells"] if c["cell_type"] == "code"]


def execute(row, given):
    "Run the notebook's cells in order; -> their namespace."
    if given.get("dataset") == str(DATA): operators_data()
    space = {"__name__": "__main__"}
    for i, (source, first) in enumerate(cells(row)):
        exec(compile(source, f"<{row.notebook}, code cell {i}>", "exec"), space)
        if first: space.update(given)
    return space


def hold(order):
    "Say that we are here, and wait until we may go on."
    Path(order["answer"] + ".held").touch()
    while not Path(order["answer"] + ".go").exists(): time.sleep(.01)


class Spoil(warm.Callback):
    "Puts a NaN into the input, the gradient, the first loss term, a parameter or an optimiser's state of the steps `at`."
    order = 5
    def __init__(self, kind, at): self.kind, self.at = kind, at
    def first(self, t): return next(iter(t.task.optimisers.values())).param_groups[0]["params"][0]
    def before_fit(self, t):
        if self.kind == "gradient":   # of everything, since a later stage may train what an earlier one leaves alone
            for p in (p for m in t.task.modules.values() for p in m.parameters() if p.requires_grad): p.register_hook(lambda g: g*float("nan") if t.step in self.at else None)
        if self.kind == "loss":
            loss = t.task.loss
            def bad(batches): out = loss(batches); k = next(iter(out)); return out | {k: out[k]*(float("nan") if t.step in self.at else 1)}
            t.task.loss = bad
        if self.kind == "input":
            s = next(iter(t.task.streams.values())); batch = s.batch
            def spoilt(epoch, i):
                b = batch(epoch, i)
                if t.step in self.at: b["x"] = b["x"].clone(); b["x"].view(-1)[0] = float("nan")
                return b
            s.batch = spoilt
    def after_step(self, t):
        if self.kind == "parameter" and t.step in self.at: self.first(t).data.view(-1)[0] = float("nan")
    def after_batch(self, t):
        if self.kind == "optimiser" and t.step - 1 in self.at: next(iter(t.task.optimisers.values())).state[self.first(t)]["exp_avg"].view(-1)[0] = float("nan")


def interfere(order, calls):
    "Callbacks and patches an order asks for; -> what is learnt while the run is on."
    import geonb.core.callbacks as callbacks, geonb.core.run as run
    kind, number = order.get("kill") or (None, 0); extra, seen = [], {"steps": 0}
    if kind in ("after_batch", "after_epoch"): extra.append(warm.Count(kind, number, warm.die, order.get("order", 95)))
    if order.get("hold"): extra.append(warm.Count("after_batch", order["hold"], lambda: hold(order)))
    if order.get("spoil"): extra.append(Spoil(order["spoil"][0], set(order["spoil"][1])))
    usual = callbacks.usual_callbacks
    class Steps(warm.Callback):
        def after_batch(self, t): seen["steps"] += 1
    if not ROWS[order["row"]].trains:
        import geonb.operators.generation as generation
        write = generation.write_shard
        def counted(*a):
            out = write(*a); seen["steps"] += 1
            if kind in ("after_batch", "after_epoch") and seen["steps"] == number: warm.die()
            if seen["steps"] == order.get("hold"): hold(order)
            return out
        generation.write_shard = counted
    def noted(what, f):
        def wrapped(*a, **k):
            seen.setdefault(what, calls())
            if kind == what: warm.die()
            return f(*a, **k)
        return wrapped
    callbacks.usual_callbacks = lambda *a, **k: [*usual(*a, **k), *extra, Steps()]
    run.Run.finish, run.write_sums, run.crown = noted("finish", run.Run.finish), noted("sums", run.write_sums), noted("crown", run.crown)
    if not order.get("figures"):   # drawn and kept, but not rendered: most of a quick run's time
        from matplotlib.figure import Figure
        Figure.savefig = lambda self, file, **k: file.write(b"not rendered")
    if order.get("eval_batch"):
        from geonb.data.splits import Held
        whole = Held.eval_batches; Held.eval_batches = lambda self, n=0: whole(self, order["eval_batch"])
    return seen


def child(order):
    "One run of a notebook's cells, perhaps with an end to it."
    from geonb.core.errors import GeonbError
    os.environ.update({"GEONB_RUNS": order["root"]} | order.get("env", {})); os.chdir(order.get("cwd", order["root"]))
    kind, number = order.get("kill") or (None, 0); calls = warm.die_at_call(number if kind == "call" else -1)
    said, begun, seen = io.StringIO(), time.process_time(), {}
    try:
        with contextlib.redirect_stdout(said):
            if "crown" in order: from geonb.core.run import crown; crown(*order["crown"]); out = {}
            else:
                seen = interfere(order, calls); row = ROWS[order["row"]]
                run = execute(row, (row.quick if order.get("quick", True) else {}) | {"progress": "none"} | order.get("given", {}))["run"]
                out = {"path": str(run.path)}
    except GeonbError as e: out = {"error": type(e).__name__, "message": str(e), "code": e.exit_code}
    except OSError as e: out = {"error": type(e).__name__, "message": str(e)}
    warm.answer(order, out | seen | {"calls": calls(), "said": said.getvalue(), "cpu": time.process_time() - begun})


def snippets(card):
    "The Python blocks of a model card, as one program."
    return "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.S))


def rehearse(folder):
    "One run of every notebook in this process: whatever is imported, read or compiled on first use is there for the forks."
    os.environ["GEONB_RUNS"] = folder
    with contextlib.redirect_stdout(io.StringIO()):
        for row in ROWS.values(): execute(row, row.quick | {"progress": "none"})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as d: rehearse(d)
    warm.serve(child)
