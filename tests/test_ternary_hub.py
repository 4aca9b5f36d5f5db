"`geonb checkpoints` against a hub of its own on localhost: what is fetched, locked, sent, refused, and what is never said."
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from geonb.core.atomic import sha256
from geonb.core.folder_hub import FolderHub
from geonb.ternary.hyperbolic import TernaryVAEV5_11_PartialFreeze

REPO, TOKEN = "someone/things", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
ANSWER = """
import contextlib, io, json, sys
from geonb.app.cli import command
from geonb.core.errors import GeonbError
import geonb.ternary
for line in sys.stdin:
    job, out, err = json.loads(line), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if isinstance(job, list): code = command(["checkpoints", *job])
        else:
            try: code = 0; print(getattr(geonb.ternary, job["call"])(*job["args"], **job["more"]))
            except GeonbError as e: code = e.exit_code; print(f"geonb: {e}", file=sys.stderr)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def network(seed=0, **kwargs):
    torch.manual_seed(seed); return TernaryVAEV5_11_PartialFreeze(**{"use_dual_projection": True, "use_controller": False, **kwargs})


def checkpoint(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True); torch.save({"model_state_dict": network(seed).state_dict(), "epoch": seed}, path); return path


class Client:
    "One process with an HF_HOME of its own that runs one command after the other; `said` is all it ever printed."
    def __init__(self, hub, home, cwd, **env):
        cwd.mkdir(exist_ok=True); self.cwd, self.said, self.errors = cwd, [], open(home.with_suffix(".err"), "w+")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "GEONB_OFFLINE"}
        env = kept | dict(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_REPO_ID=REPO, PYTHONWARNINGS="default") | env
        self.process = subprocess.Popen([sys.executable, "-c", ANSWER], cwd=cwd, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n"); self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline()); self.said.append(answer); return answer
    def __call__(self, *args): return self.ask([str(a) for a in args])
    def call(self, name, *args, **more): return self.ask(dict(call=name, args=args, more=more))
    def everything(self): self.errors.flush(); self.errors.seek(0); return json.dumps(self.said) + self.errors.read()
    def close(self): self.process.stdin.close(); self.process.wait(20); self.errors.close()


class Place:
    "A hub, the folder it serves, and a client."
    def __init__(self, tmp):
        self.tmp = tmp; self.repo = tmp/"hub"/REPO
        for name, seed in {"homeostatic_rich/best.pt": 1, "max_hierarchy/best.pt": 2, "v5_11_overnight/best.pt": 3, "mine/a.pt": 4}.items(): checkpoint(self.repo/name, seed)
        (self.repo/"README.md").write_text("# things\n"); (self.repo/"mine"/"c:x.pt").write_text("a drive"); (self.repo/"mine"/"a\x1b[31m.pt").write_text("a colour")
        self.hub = FolderHub(tmp/"hub", token=TOKEN).__enter__(); self.client = Client(self.hub, tmp/"home", tmp/"cwd", HF_TOKEN=TOKEN)
    def files(self): return sorted(p.relative_to(self.client.cwd).as_posix() for p in self.client.cwd.rglob("*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    p = Place(tmp_path_factory.mktemp("hub")); p.client("verify"); yield p   # the first command imports torch
    p.client.close(); p.hub.__exit__()


@pytest.fixture
def out(request): return "out-" + sha256(request.node.name.encode())[:12]   # a folder of this test's own, below the client's


def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err


def test_list_names_size_and_what_is_to_be_known(place):
    code, text, _ = place.client("list"); rows = json.loads(place.client("list", "--json")[1])
    assert code == 0 and [r["path"] for r in rows] == ["homeostatic_rich/best.pt", "max_hierarchy/best.pt", "mine/a.pt", "v5_11_overnight/best.pt"], "neither the README nor names that no one may download"
    assert [r["size"] for r in rows] == [(place.repo/r["path"]).stat().st_size for r in rows]
    assert [r["status"] for r in rows] == ["refuted", "experimental", "own", "refused"] and "DO NOT USE" in text and "encoder B" in text and "\x1b" not in text
    assert place.client.call("list_checkpoints")[1].strip() == str([r["path"] for r in rows])
    assert place.client("list", "--repo-id", "someone/nothing")[0] == 4 and place.client("list", "--revision", "v2")[0] == 4


def test_the_registry_needs_no_hub(place):
    n = len(place.hub.requests); code, text, _ = place.client("list", "--registry")
    assert code == 0 and "v5_11_progressive_50ep" in text and len(place.hub.requests) == n


def test_download_then_cached_then_forced(place, out):
    code, text, err = place.client("download", "homeostatic_rich", "-o", out, "--json"); r = json.loads(text)
    assert code == 0 and r["sha256"] == sha256(place.repo/"homeostatic_rich"/"best.pt") == sha256(place.client.cwd/out/"homeostatic_rich"/"best.pt") and r["entry"] == "homeostatic_rich"
    assert one_sentence(err) and "encoder B" in err
    lock = json.loads((place.client.cwd/out/"hub.lock.json").read_text())["homeostatic_rich/best.pt"]
    assert (lock["repo"], lock["revision"], lock["sha256"], lock["bytes"], len(lock["commit"])) == (REPO, "main", r["sha256"], r["bytes"], 40)
    n = len(place.hub.requests)
    assert place.client("download", "-c", "homeostatic_rich/best.pt", "-o", out)[0] == 0 and len(place.hub.requests) == n, "what is here and locked is not asked for"
    assert place.client("download", "homeostatic_rich", "-o", out, "--force")[0] == 0 and any(m == "GET" and "resolve" in p for m, p, _ in place.hub.requests[n:]), "force asks"
    assert place.client("verify", "-o", out)[0] == 0


def test_another_content_than_the_locked_one(place, out):
    source, here = checkpoint(place.repo/"mine"/"changing.pt", 5), place.client.cwd/out/"mine"/"changing.pt"
    assert place.client("download", "mine/changing.pt", "-o", out)[0] == 0
    first = here.read_bytes(); checkpoint(source, 6)
    assert place.client("download", "mine/changing.pt", "-o", out)[0] == 0 and here.read_bytes() == first, "the locked one stays"
    code, _, err = place.client("download", "mine/changing.pt", "-o", out, "--force")
    assert code == 3 and one_sentence(err) and "another content than the locked one" in err and here.read_bytes() == first
    here.unlink(); assert place.client("download", "mine/changing.pt", "-o", out)[0] == 3 and not here.exists(), "nor does it come back as another"
    assert place.client("download", "mine/changing.pt", "-o", out, "--relock")[0] == 0 and here.read_bytes() == source.read_bytes() != first
    here.write_bytes(first); code, _, err = place.client("download", "mine/changing.pt", "-o", out)
    assert code == 3 and "is not the file that was fetched" in err
    assert place.client("verify", here)[0] == 3 and place.client("verify", "-o", out)[0] == 3 and place.client("info", here)[0] == 3 and place.client("convert", here)[0] == 3


def test_ensure_fetches_once_and_warns_each_time(place, out):
    n = len(place.hub.requests)
    for asked in (True, False):
        code, text, err = place.client.call("ensure_checkpoint", "homeostatic_rich/best.pt", local_dir=out)
        assert code == 0 and text.strip() == f"{out}/homeostatic_rich/best.pt" and "encoder B" in err
        assert (len(place.hub.requests) > n) == asked; n = len(place.hub.requests)
    assert place.client.call("ensure_checkpoint", "mine/a.pt", local_dir=out)[2] == ""
    code, text, _ = place.client.call("load_checkpoint", f"{out}/homeostatic_rich/best.pt")
    assert code == 0 and "TernaryVAEV5_11_PartialFreeze" in text


@pytest.mark.parametrize("name", ["v5_11_overnight", "v5_11_overnight/best.pt", "V5_11_OVERNIGHT/best.pt", "v5_11_overnight/latest.pt"])
def test_do_not_use_means_it(place, out, name):
    n = len(place.hub.requests)
    assert place.client("download", name, "-o", out)[0] == 3 and place.client.call("ensure_checkpoint", name, local_dir=out)[0] == 3
    assert len(place.hub.requests) == n and not (place.client.cwd/out).exists()


def test_do_not_use_can_be_forced_for_each_step(place, out):
    file = f"{out}/v5_11_overnight/best.pt"
    assert place.client("download", "v5_11_overnight", "-o", out, "--allow-unsafe-entry")[0] == 0
    for c in ("verify", "convert"): assert place.client(c, file)[0] == 3
    assert place.client.call("load_checkpoint", file)[0] == 3 and place.client.call("load_checkpoint", file, allow_unsafe_entry=True)[0] == 0
    (place.client.cwd/out/"innocent.pt").symlink_to("v5_11_overnight/best.pt"); assert place.client.call("load_checkpoint", f"{out}/innocent.pt")[0] == 3, "a link does not make another file of it"
    assert place.client("verify", file, "--allow-unsafe-entry")[0] == 0


NAMES = ["../x.pt", "a/../../x.pt", "..", "/etc/passwd", "~/x.pt", "a//b.pt", "./a.pt", "a/./b.pt", "a\\b.pt", "..\\x.pt", "C:/x.pt", "C:x.pt", "\\\\host\\share\\x.pt", "a\0.pt", "a\nb.pt", "a\x1b[31m.pt", "NUL", "con.pt", "mine/aux", "mine/COM1.pt", "lpt9/a.pt",
         "x" * 121 + ".pt", "a/" * 125 + "b.pt", "b\u0435st.pt", "\uff0e\uff0e/x.pt", "\u202etp.tseb", "caf\u00e9.pt", "a\u200b.pt", ".git/config", ".netrc", "mine/a.pt.", "mine/a.pt ", "-rf/a.pt", "hub.lock.json", "mine/HUB.LOCK.JSON", "%2e%2e/x.pt", "a?b.pt", "a*.pt", "a|b.pt", ""]


def test_names_that_could_lead_elsewhere(place, out):
    n, before = len(place.hub.requests), place.files()
    for name in NAMES:
        code, text, err = place.client("download", "-o", out, "--", name)
        assert (code, text) == (2, "") and one_sentence(err), name
        assert place.client.call("ensure_checkpoint", name, local_dir=out)[0] == 2, name
        code, _, err = place.client("upload", place.repo/"mine"/"a.pt", "--path-in-repo", name, "--send")
        assert code == 2 and one_sentence(err), name
    assert len(place.hub.requests) == n and place.files() == before


@pytest.mark.parametrize("more", [("--repo-id", "../x"), ("--repo-id", "a/b/c"), ("--repo-id", "a b/c"), ("--revision", "../main"), ("--revision", "-x"), ("--revision", "a?b")])
def test_repositories_and_revisions_are_checked(place, out, more):
    n = len(place.hub.requests); code, _, err = place.client("download", "mine/a.pt", "-o", out, *more)
    assert code == 2 and one_sentence(err) and len(place.hub.requests) == n and not (place.client.cwd/out).exists()


def test_what_is_not_there(place, out):
    for args in (("mine/b.pt",), ("mine/a.pt", "--repo-id", "someone/nothing"), ("mine/a.pt", "--revision", "v2")):
        code, text, err = place.client("download", *args, "-o", out); assert (code, text) == (4, "") and one_sentence(err) and not (place.client.cwd/out).exists()
    code, text, err = place.client("download", "mine/b.pt", "-o", out, "--json"); assert code == 4 and json.loads(text)["exit_code"] == 4


def test_nothing_is_written_through_a_link(place, out):
    elsewhere, here = place.tmp/"elsewhere", place.client.cwd/out; elsewhere.mkdir(); here.mkdir()
    (here/"mine").symlink_to(elsewhere); assert place.client("download", "mine/a.pt", "-o", out)[0] == 2 and not any(elsewhere.iterdir())
    (here/"mine").unlink(); (here/"mine").mkdir(); (here/"mine"/"a.pt").symlink_to(elsewhere/"a.pt"); assert place.client("download", "mine/a.pt", "-o", out)[0] == 2 and not any(elsewhere.iterdir())
    (here/"mine"/"a.pt").unlink(); (elsewhere/"lock").write_text("{}"); (here/"hub.lock.json").symlink_to(elsewhere/"lock"); assert place.client("download", "mine/a.pt", "-o", out)[0] == 3 and (elsewhere/"lock").read_text() == "{}"


@pytest.mark.parametrize("lock", ["{", "[]", '{"mine/a.pt": 3}', '{"mine/a.pt": {"repo": "a/b", "revision": "main", "sha256": "xyz"}}', '{"../x": {"repo": "a/b", "revision": "main", "sha256": "' + "0"*64 + '"}}', "[" * 100_000])
def test_a_damaged_lock_is_no_lock(place, out, lock):
    (here := place.client.cwd/out).mkdir(); (here/"hub.lock.json").write_text(lock)
    code, _, err = place.client("download", "mine/a.pt", "-o", out); assert code == 3 and one_sentence(err) and not (here/"mine").exists() and (here/"hub.lock.json").read_text() == lock


def test_upload_is_a_dry_run_unless_told(place, out):
    file = checkpoint(place.client.cwd/out/"outputs"/"models"/"a"/"best.pt", 7); n = len(place.hub.requests)
    code, text, err = place.client("upload", file); assert code == 0 and text.strip().endswith(f"/{REPO}/blob/main/a/best.pt") and "dry run" in err
    assert place.client.call("upload_checkpoint", str(file))[0] == 0 and len(place.hub.requests) == n and not (place.repo/"a").exists()
    code, text, err = place.client("upload", "-c", file, "--send", "--json")
    assert code == 0 and json.loads(text) == dict(sent=True, addresses=[f"{place.hub.url}/{REPO}/blob/main/a/best.pt"]) and err == "" and (place.repo/"a"/"best.pt").read_bytes() == file.read_bytes()
    assert place.client.call("upload_checkpoint", str(file), path_in_repo="b/other.pt", commit_message="another", dry_run=False)[0] == 0 and (place.repo/"b"/"other.pt").exists()
    assert ("POST", f"api/models/{REPO}/commit/main", True) in place.hub.requests, "the token went where it belongs"


def test_upload_of_a_directory(place, out):
    top = place.client.cwd/out/"checkpoints"
    for i, name in enumerate(("d1/best.pt", "d2/deep/best.pt")): checkpoint(top/name, 8 + i)
    (top/"d1"/"notes.txt").write_text("not a checkpoint")
    assert place.client("upload", "--directory", top)[0] == 0 and not (place.repo/"d1").exists()
    code, text, _ = place.client("upload", "-d", top, "--send"); assert code == 0 and [l.rpartition("/main/")[2] for l in text.split()] == ["d1/best.pt", "d2/deep/best.pt"]
    assert (place.repo/"d2"/"deep"/"best.pt").read_bytes() == (top/"d2"/"deep"/"best.pt").read_bytes() and not (place.repo/"d1"/"notes.txt").exists()
    assert place.client.call("upload_directory", str(top/"d1"), pattern="*.bin")[0] == 4


def test_upload_sends_only_what_can_be_read(place, out):
    (here := place.client.cwd/out).mkdir(); n = len(place.hub.requests); good = checkpoint(here/"good.pt", 9)
    (here/"cut.pt").write_bytes(good.read_bytes()[:-9]); (here/"link.pt").symlink_to(good); (here/"d").mkdir(); (here/"d"/"secret.pt").symlink_to("/etc/passwd")
    assert place.client("upload", here/"cut.pt", "--send")[0] == 3 and place.client("upload", here/"link.pt", "--send")[0] == 2 and place.client("upload", "-d", here/"d", "--send")[0] == 2
    assert place.client("upload", here/"none.pt", "--send")[0] == 4 and place.client("upload", good, "-d", here, "--send")[0] == 2 and place.client("upload")[0] == 2
    assert len(place.hub.requests) == n


@pytest.fixture(scope="module")
def stranger(place):
    "A client whose token the hub does not know. The hub of the folder answers with the token it was sent; so does many a proxy."
    c = Client(place.hub, place.tmp/"home-2", place.client.cwd, HF_TOKEN="hf_WrOnGwRoNgWrOnGwRoNg99"); yield c
    c.close()


def test_two_at_once_keep_both_locks(place, stranger, out):
    both = {"mine/a.pt": place.client, "max_hierarchy/best.pt": stranger}; stranger("verify")
    for name, c in both.items(): c.process.stdin.write(json.dumps(["download", name, "-o", out]) + "\n"); c.process.stdin.flush()
    assert [json.loads(c.process.stdout.readline())[0] for c in both.values()] == [0, 0]
    assert set(json.loads((place.client.cwd/out/"hub.lock.json").read_text())) == set(both) and place.client("verify", "-o", out)[0] == 0


def test_a_wrong_token_is_not_repeated(place, stranger, out):
    file = checkpoint(place.client.cwd/out/"x.pt", 3)
    code, _, err = stranger("upload", file, "--send"); assert code == 1 and one_sentence(err) and "hf auth login" in err
    assert stranger.call("upload_checkpoint", str(file), dry_run=False)[0] == 1
    assert "wrong" not in stranger.everything().lower()


def test_the_hub_is_gone_and_the_cache_is_not(place, out, tmp_path):
    hub = FolderHub(place.tmp/"hub").__enter__(); c = Client(hub, tmp_path/"home", tmp_path/"cwd")
    try:
        assert c("download", "mine/a.pt", "-o", "one")[0] == 0
        hub.__exit__(); start = time.perf_counter()
        assert c("download", "mine/a.pt", "-o", "two")[0] == 0 and (tmp_path/"cwd"/"two"/"mine"/"a.pt").read_bytes() == (place.repo/"mine"/"a.pt").read_bytes()
        for args in (("download", "max_hierarchy", "-o", "three"), ("download", "mine/a.pt", "-o", "one", "--force"), ("list",), ("upload", tmp_path/"cwd"/"one"/"mine"/"a.pt", "--send")):
            code, _, err = c(*args); assert code == 4 and err.splitlines()[-1].startswith("geonb: ") and "Traceback" not in err, args
        assert time.perf_counter() - start < 40 and not (tmp_path/"cwd"/"three").exists(), "five commands; the library alone would knock for more than 20 s at each"
        (blob,) = [p for p in (tmp_path/"home").rglob("blobs/*") if p.stat().st_size > 1000]; blob.write_bytes(blob.read_bytes()[:-1] + b"x")
        assert c("download", "mine/a.pt", "-o", "four")[0] == 3 and not (tmp_path/"cwd"/"four").exists(), "a cache that has changed is no copy"
    finally: c.close()


def test_offline_means_no_request(place, out, tmp_path):
    c = Client(place.hub, tmp_path/"home", tmp_path/"cwd", HF_HUB_OFFLINE="1"); n = len(place.hub.requests)
    assert c("download", "mine/a.pt")[0] == 4 and c("list")[0] == 4 and len(place.hub.requests) == n
    c.close(); assert not any((tmp_path/"cwd").iterdir())


def test_the_command_itself_ends_with_these_codes(place, tmp_path):
    env = os.environ | dict(HF_ENDPOINT=place.hub.url, HF_HOME=str(tmp_path/"home"), HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN)
    done = subprocess.run([sys.executable, "-c", "from geonb.app.cli import main; main()", "checkpoints", "download", "v5_11_overnight"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "") and one_sentence(done.stderr) and sorted(p.name for p in tmp_path.iterdir()) == []


def test_no_token_was_ever_said(place):
    "Last of this module: everything the client printed, everything it wrote."
    said = place.client.everything(); assert len(place.client.said) > 100 and any(token for *_, token in place.hub.requests)
    assert TOKEN not in said and TOKEN[4:20] not in said
    assert not [p for p in place.client.cwd.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
