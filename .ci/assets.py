"""The examples that ship in geonb/assets/: trained by the run notebooks with the parameters below, verified, copied without pictures and logs.

    python .ci/assets.py               all of them, some minutes on one core
    python .ci/assets.py chromatic     only these

Equal versions of Python's packages on processors of one kind give equal weights; times and the commit in the manifests differ. Make them in a clean checkout, so that the commit in the manifests is the truth."""
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT/"geonb"/"assets"
ROOM = 5_000_000   # bytes, all together

# Run notebook, and what differs from its defaults: sizes are chosen for the room there is, and every run is a whole one.
RECIPES = {
    "pentachora": ("train_pentachora", dict(dim=20, channels=6, epochs=14)),
    "ternary_v5_5": ("train_ternary_v5_5", dict(epochs=15, isolation_end=1, consolidation_end=5, ultra_start=10, cycle_period=5, eval_every=5)),
    "ternary_v5_11": ("train_ternary_v5_11", dict(eval_every=7)),
    "operators": ("train_operator_vqvae", dict(families="initial,summary", duplicate_r=.8, side_ic_cnn=0, embedding=16, hidden=32, latent=4, k_min=5, k_max=6, levels=2, codes=12, lr=1e-3)),
    "chromatic": ("chromatic_descent", dict(arch="digits4", epochs=16, batch=32)),
}
OPERATORS = ("generate_operators", dict(total_samples=128, realizations=2, families="initial,summary"))   # what the tokenizer learns; its bundle says how to play each of them again
BESIDE = {"chromatic": ("trace.npz", "predictions_test.npz")}   # left out too: answers of every epoch; answers that stand in artifacts/probes as well


def make(name, notebook, parameters):
    "Train one and look at it. Gives its folder."
    from geonb.app.execute import run
    from geonb.core.errors import CheckFailed
    print(f"== {name}", flush=True); done = run(notebook, dict(device="cpu", threads=1, progress="lines", **parameters), stdout=sys.stdout)
    if done["problems"]: raise CheckFailed(f"{name}: {done['problems'][0]}")
    print(f"{name}: {done['headline']}", flush=True)
    return Path(done["path"])


def place(name, path):
    "Put one where the others are."
    from geonb.core.assets import lean
    from geonb.core.atomic import replace_folder
    ASSETS.mkdir(exist_ok=True); replace_folder(lean(path, ASSETS/f".{name}.new", BESIDE.get(name, ())), ASSETS/name)


def size(folder): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(names):
    from geonb.core.bundles import verify_bundle
    from geonb.core.errors import GeonbError
    wrong = [n for n in names if n not in RECIPES]
    if wrong: sys.exit(f"make assets: there is no example {wrong[0]!r}: {', '.join(RECIPES)}")
    names = [n for n in RECIPES if n in names or not names]
    with tempfile.TemporaryDirectory(prefix="geonb-assets-") as root:
        os.environ["GEONB_RUNS"] = root; os.chdir(ROOT)
        try:
            data = {"operators": dict(dataset=make("operators to learn", *OPERATORS).name)} if "operators" in names else {}
            made = {n: make(n, RECIPES[n][0], RECIPES[n][1] | data.get(n, {})) for n in names}
            for n in names: place(n, made[n])   # only now: a checkout that was changed by the first would be dirty for the second
        except GeonbError as e: sys.exit(f"make assets: {e}")
    bad = [f"{n}: {why}" for n in RECIPES if (ASSETS/n).is_dir() for why in verify_bundle(ASSETS/n)]
    sizes = {n: size(ASSETS/n) for n in RECIPES if (ASSETS/n).is_dir()}; total = sum(sizes.values())
    print(", ".join(f"{n} {b/1e6:.2f}" for n, b in sizes.items()) + f": {total/1e6:.2f} MB in geonb/assets/")
    if total > ROOM: bad.append(f"{total:,} bytes are more than the {ROOM:,} there is room for")
    if bad: sys.exit("make assets: " + "; ".join(bad))


if __name__ == "__main__": main(sys.argv[1:])
