"How the installer chooses a torch build; nothing is installed here."
import json
import os
import shutil
import subprocess

import install
import pytest

no, yes = lambda: False, lambda: True


def never(): raise AssertionError("asked without need")


def ways(choice="auto", system="Linux", nvidia=no, default_cpu=no, cpu_index=no):
    "The sources that would be tried, best first: an index, or 'pip' for pip's own; + where the tested pair is pinned."
    return [next((a.rsplit("/", 1)[1] for a in w if a.startswith("http")), "pip")+("+"*("-c" in w)) for w in install.attempts(choice, system, nvidia, default_cpu, cpu_index)]


def test_without_a_driver_the_cpu_build_comes_first():
    assert ways(cpu_index=yes) == ["cpu+", "cpu", "pip+", "pip"]

def test_a_local_cpu_wheel_is_enough_and_no_index_is_asked():
    assert ways(default_cpu=yes, cpu_index=never) == ["pip+", "pip"]

def test_without_any_cpu_build_the_default_is_taken():
    assert ways() == ["pip+", "pip"]

def test_with_a_driver_or_elsewhere_pip_decides():
    assert ways(nvidia=yes, default_cpu=never, cpu_index=never) == ["pip+", "pip"]
    assert ways(system="Darwin", nvidia=never, default_cpu=never, cpu_index=never) == ["pip+", "pip"]

def test_a_named_build_is_never_replaced_by_another():
    assert ways("cu126", nvidia=never, default_cpu=never, cpu_index=never) == ["cu126"]
    assert ways("cpu", nvidia=yes, cpu_index=yes) == ["cpu+", "cpu"]
    assert ways("cpu") == []


def test_torch_and_torchvision_are_always_asked_for_together():
    for way in install.attempts("auto", "Linux", no, no, yes) + install.attempts("cu126", "Linux", no, no, no): assert way[-2:] == ["torch", "torchvision"]


@pytest.mark.parametrize("version, needs, cpu", [
    ("2.13.0+cpu", ["sympy>=1.13"], True), ("2.13.0", ["sympy>=1.13"], True),
    ("2.13.0", ["nvidia-cublas-cu12==12.6; platform_system == 'Linux'"], False), ("2.13.0", ["cuda-bindings<14"], False)])
def test_cpu_build_is_told_from_what_it_requires(version, needs, cpu):
    report = {"install": [{"metadata": {"name": "torch", "version": version, "requires_dist": needs}}]}
    assert install.is_cpu_build(json.dumps(report)) is cpu


def distribution(monkeypatch, torch, torchvision, requires):
    versions = {"torch": torch, "torchvision": torchvision}
    def version(p):
        if versions[p] is None: raise install.metadata.PackageNotFoundError(p)
        return versions[p]
    monkeypatch.setattr(install.metadata, "version", version)
    monkeypatch.setattr(install.metadata, "requires", lambda p: requires)


def test_a_pair_belongs_together_when_torchvision_says_so(monkeypatch):
    distribution(monkeypatch, "2.13.0+cpu", "0.28.0", ["numpy", "torch==2.13.0"])
    assert install.installed_pair() == {"torch": "2.13.0", "torchvision": "0.28.0"}
    distribution(monkeypatch, "2.15.0", "0.28.0", ["numpy", "torch==2.13.0"])
    assert install.installed_pair() == {}
    distribution(monkeypatch, "2.13.01", "0.28.0", ["torch==2.13.0"])
    assert install.installed_pair() == {}
    distribution(monkeypatch, "2.13.0", None, [])
    assert install.installed_pair() == {}


def test_the_pair_in_this_environment_belongs_together():
    assert install.installed_pair()


def test_an_unreachable_index_is_found_out(monkeypatch):
    assert install.reachable("http://127.0.0.1:9/whl/cpu/torch/", seconds=1) is False


def test_an_unknown_build_is_refused_with_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.argv", ["install.py", "--torch", "gpu"])
    with pytest.raises(SystemExit, match="TORCH='gpu' is not a build of PyTorch; use auto, cpu or a CUDA build such as cu126"): install.main()


@pytest.mark.parametrize("user, present, installed, data", [("0", [], "chromium", "yes"), ("0", ["chromium"], "", "no"), ("1000", [], "", "no")])
def test_the_ci_script_installs_what_is_missing_then_makes_test(root, tmp_path, user, present, installed, data):
    bin, tree = tmp_path/"bin", tmp_path/"tree"; bin.mkdir(); (tree/".ci").mkdir(parents=True)
    shutil.copy(root/".ci"/"run", tree/".ci")
    for tool in ("bash", "env", "dirname", "tr"): (bin/tool).symlink_to(shutil.which(tool))
    def fake(name, body): (bin/name).write_text(f"#!{shutil.which('bash')}\n{body}\n"); (bin/name).chmod(0o755)
    for name in ["git", *present]: fake(name, ":")
    fake("python3", "exit 0"); fake("id", f"echo {user}"); fake("apt-get", 'echo "apt $*"'); fake("make", 'echo "make $* GEONB_DATA=${GEONB_DATA:-}"; cat_stdin=$(read -r line; echo $?); echo "stdin $cat_stdin"')
    folder = tmp_path/"shared"/"data"
    if data == "yes": folder.mkdir(parents=True)
    done = subprocess.run([str(tree/".ci"/"run")], env={"PATH": str(bin)}, capture_output=True, text=True, input="not for make\n")
    assert done.returncode == 0, done.stderr
    apt = f"apt update -qq\napt install -y -qq --no-install-recommends {installed}\n" if installed else ""
    assert done.stdout == f"{apt}make test GEONB_DATA={folder if data == 'yes' else ''}\nstdin 1\n"


@pytest.mark.skipif(not shutil.which("make"), reason="no make on PATH")
def test_make_installs_once_and_again_when_something_it_read_changed(root, tmp_path):
    for f in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints-cpu.txt", ".ci/install.py"):
        (tmp_path/f).parent.mkdir(exist_ok=True); shutil.copy(root/f, tmp_path/f)
        os.utime(tmp_path/f, (1e9, 1e9))
    for name in ("python", "geonb"):
        tool = tmp_path/".venv"/"bin"/name; tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> calls\n'); tool.chmod(0o755)
    def make(*args):
        (tmp_path/"calls").write_text("")
        subprocess.run(["make", *args], cwd=tmp_path, check=True, capture_output=True, env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")})
        return (tmp_path/"calls").read_text().splitlines()
    install_, run = "python .ci/install.py --torch ", "geonb run train_pentachora"
    assert make("run") == [install_+"auto", run]
    assert make("run", "ARGS=-p epochs 2") == [run+" -p epochs 2"]
    tests = make("test")
    assert tests[0] == install_+"auto --extra dev" and [t.split()[1] for t in tests[1:]] == [".ci/check.py", ".ci/check.py", "-m", ".ci/docs.py"]
    assert make("run") == [run] and make("test") == tests[1:]
    os.utime(tmp_path/"settings.ini")
    assert make("run") == [install_+"auto", run] and make("run") == [run]
    assert make("run", "TORCH=cu126") == [install_+"cu126", run] and make("run", "TORCH=cu126") == [run]
    assert make("run")[0] == install_+"auto", "another build may lie in .venv now"
