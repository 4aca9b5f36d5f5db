"""Install geonb into the environment of the Python that runs this file, with a torch/torchvision pair that matches.

    python .ci/install.py [--torch auto|cpu|cu126|...] [--extra dev]

`auto` keeps a pair that is already installed. Otherwise, on Linux without an NVIDIA driver, it looks for PyTorch's CPU build:
first where pip looks anyway (a local wheel, a mirror), then on PyTorch's own CPU index; if neither has one, and on every other
machine, it takes what pip's default index gives. An unconstrained torchvision would replace a CPU torch by several gigabytes
of CUDA, so everything else is installed with the pair pinned."""
import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX = "https://download.pytorch.org/whl/"
TESTED = ["-c", str(ROOT/"constraints-cpu.txt")]


def pip(*args, capture=False):
    "Run pip in this environment; its exit status, or its output when captured (None on failure)."
    done = subprocess.run([sys.executable, "-m", "pip", *args], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE if capture else None, stderr=subprocess.DEVNULL if capture else None)
    return (done.stdout if done.returncode == 0 else None) if capture else done.returncode


def installed_pair():
    "{'torch': version, 'torchvision': version} if both are installed and belong together, else {}."
    try: pair = {p: metadata.version(p).split("+")[0] for p in ("torch", "torchvision")}
    except metadata.PackageNotFoundError: return {}
    wanted = [r for r in metadata.requires("torchvision") or [] if re.match(r"torch\s*\(?==", r)]
    return pair if all(re.search(rf"=={re.escape(pair['torch'])}\)?(\s|;|$)", r) for r in wanted) else {}


def has_nvidia():
    "Is an NVIDIA driver there?"
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def is_cpu_build(report):
    "Does pip's report on torch describe a build that brings no CUDA libraries?"
    wheel = next(i for i in json.loads(report)["install"] if i["metadata"]["name"] == "torch")["metadata"]
    needs = [r for r in wheel.get("requires_dist", []) if re.match(r"(nvidia|cuda)-", r)]
    return wheel["version"].endswith("+cpu") or not needs


def default_is_cpu():
    "Would pip, left alone, pick a CPU build of the tested torch?"
    report = pip("install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report", "-", *TESTED, "torch", capture=True)
    return report is not None and is_cpu_build(report)


def reachable(url, seconds=5):
    "Can the index be read from here?"
    try: return urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).status == 200
    except (OSError, ValueError): return False


def attempts(choice, system, nvidia, default_cpu, cpu_index):
    "The ways to install the pair, best first, each a list of pip arguments; the last three arguments are called only when needed."
    newest, tested = ["torch", "torchvision"], [*TESTED, "torch", "torchvision"]
    if choice not in ("auto", "cpu"): return [["--index-url", INDEX+choice, *newest]]
    if system != "Linux" or (choice == "auto" and nvidia()) or default_cpu(): return [tested, newest]
    cpu = [["--index-url", INDEX+"cpu", *way] for way in (tested, newest)] if cpu_index() else []
    return cpu + ([tested, newest] if choice == "auto" else [])


def install_pair(choice):
    "Bring torch and torchvision in; their versions."
    build = metadata.version("torch").partition("+")[2] if (pair := installed_pair()) else None
    if pair and choice in ("auto", build): return pair
    ways = attempts(choice, platform.system(), has_nvidia, default_is_cpu, lambda: reachable(INDEX+"cpu/torch/"))
    if not ways: sys.exit(f"TORCH=cpu: pip's own sources hold no CPU build of torch and {INDEX}cpu cannot be reached; TORCH=auto takes what there is")
    if choice != "auto": pip("uninstall", "--yes", "--quiet", "torch", "torchvision")   # pip takes any build of a version for the version
    if all(pip("install", *way) for way in ways): sys.exit("torch and torchvision could not be installed; pip's last message above says why")
    return installed_pair() or sys.exit("the installed torch and torchvision do not belong together; remove .venv and call make again")


def main():
    "Install the pair, then everything else with the pair pinned."
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--torch", default="auto", help="auto, cpu, or the name of a CUDA build on PyTorch's index (cu126, ...)")
    ap.add_argument("--extra", default="", help="extras of geonb, comma separated (dev, dask, onnx, vq)")
    a = ap.parse_args()
    if not re.fullmatch(r"auto|cpu|cu\d{2,3}|rocm[\d.]+|xpu", a.torch):
        sys.exit(f"TORCH={a.torch!r} is not a build of PyTorch; use auto, cpu or a CUDA build such as cu126")
    pair = install_pair(a.torch)
    print(f"torch {pair['torch']} and torchvision {pair['torchvision']}; now everything else (a minute or two the first time)", flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        pins = Path(tmp)/"pair.txt"
        pins.write_text("".join(f"{p}=={v}\n" for p, v in pair.items()))
        target = f"{ROOT}[{a.extra}]" if a.extra else str(ROOT)
        sys.exit(pip("install", "--quiet", "-c", str(pins), "-e", target))


if __name__ == "__main__": main()
