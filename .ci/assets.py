"""The examples that ship in geonb/assets/: trained by the run notebooks with the parameters below, verified, copied without pictures and logs.

    python .ci/assets.py               all of them, some minutes on one core
    python .ci/assets.py chromatic     only these (operators needs operators_data of the same call, and takes it along)

Equal versions of Python's packages on processors of one kind give equal weights; times and the commit in the manifests differ. Make them in a clean checkout, so that the commit in the manifests is the truth."""
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT/"geonb"/"assets"
ROOM = 5_000_000   # bytes, all together

# Run notebook and what differs from its defaults. Sizes are chosen for the room there is; every run is a whole one.
RECIPES = {
    "pentachora": ("train_pentachora", dict(dim=32, channels=8, epochs=16)),
    "ternary_v5_5": ("train_ternary_v5_5", dict(eval_every=4)),
    "ternary_v5_11": ("train_ternary_v5_11", dict(eval_every=4)),
    "operators_data": ("generate_operators", dict(total_samples=96, realizations=2, families="initial,summary")),
    "operators": ("train_operator_vqvae", dict(families="initial,summary", embedding=24, hidden=48, k_max=8, levels=2, codes=12, epochs=60)),
    "chromatic": ("chromatic_descent", dict(arch="digits8")),
}


def make(name, parameters):
    "Train one and look at it. Gives its run id and folder."
    from geonb.app.execute import run
    from geonb.core.errors import CheckFailed
    notebook, chosen = RECIPES[name]; print(f"== {name}", flush=True)
    done = run(notebook, dict(device="cpu", threads=1, progress="lines", **chosen, **parameters), stdout=sys.stdout)
    if done["problems"]: raise CheckFailed(f"{name}: {done['problems'][0]}")
    print(f"{name}: {done['headline']}", flush=True)
    return done["run_id"], done["path"]


def place(name, path):
    "Put one where the others are."
    from geonb.core.assets import lean
    from geonb.core.atomic import replace_folder
    ASSETS.mkdir(exist_ok=True); replace_folder(lean(path, ASSETS/f".{name}.new"), ASSETS/name)


def size(folder): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(names):
    from geonb.core.bundles import verify_bundle
    from geonb.core.errors import GeonbError
    wrong = [n for n in names if n not in RECIPES]
    if wrong: sys.exit(f"make assets: there is no example {wrong[0]!r}: {', '.join(RECIPES)}")
    names = [n for n in RECIPES if not names or n in names or (n == "operators_data" and "operators" in names)]
    with tempfile.TemporaryDirectory(prefix="geonb-assets-") as root:
        os.environ["GEONB_RUNS"] = root; os.chdir(ROOT); made = {}
        try:
            for n in names: made[n] = make(n, dict(dataset=made["operators_data"][0]) if n == "operators" else {})
            for n in names: place(n, made[n][1])   # only now: a checkout that was changed by the first would be dirty for the second
        except GeonbError as e: sys.exit(f"make assets: {e}")
    bad = [f"{n}: {why}" for n in RECIPES if (ASSETS/n).is_dir() for why in verify_bundle(ASSETS/n)]
    sizes = {n: size(ASSETS/n) for n in RECIPES if (ASSETS/n).is_dir()}; total = sum(sizes.values())
    print(", ".join(f"{n} {b/1e6:.2f}" for n, b in sizes.items()) + f": {total/1e6:.2f} MB in geonb/assets/")
    if total > ROOM: bad.append(f"{total:,} bytes are more than the {ROOM:,} there is room for")
    if bad: sys.exit("make assets: " + "; ".join(bad))


if __name__ == "__main__": main(sys.argv[1:])
