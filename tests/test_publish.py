"`geonb publish`, `geonb.load(\"user/name\")` and `from_pretrained` against a hub of their own on localhost; and `best/`, here and there, which changes only for the better."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from geonb.chromatic import bundle as chromatic
from geonb.core.assets import EXAMPLES, example
from geonb.core.atomic import check_sums, read_json, sha256, tree_files, write_json, write_sums
from geonb.core.bundles import verify_bundle
from geonb.core.folder_hub import FolderHub, commit_of
from geonb.core.publishing import hub_card, listed, publish
from geonb.core.run import crown
from geonb.operators import generation_bundle, tokenizer_bundle
from geonb.pentachora.bundle import usage_section
from geonb.pentachora.model import ModelSpec
from geonb.ternary import bundle as ternary

TOKEN, WRONG = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "hf_WrOnGwRoNgWrOnGwRoNg99"
ANSWER = """
import contextlib, io, json, sys, traceback
asked = [0]
sys.addaudithook(lambda event, args: asked.__setitem__(0, asked[0] + 1) if event in ("socket.connect", "socket.getaddrinfo") else None)
from geonb.app.cli import command
from geonb.core.errors import GeonbError
for line in sys.stdin:
    job, out, err, before = json.loads(line), io.StringIO(), io.StringIO(), asked[0]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if isinstance(job, list): code = command(job)
        else:
            try: code = 0; exec(job["run"], {})
            except GeonbError as e: code = e.exit_code; print(f"geonb: {e}", file=sys.stderr)
            except Exception: code = 99; traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue(), asked[0] - before]), flush=True)
"""


class Client:
    "One process with an HF_HOME of its own that runs one command after the other; `said` is all it ever printed."
    def __init__(self, url, home, **env):
        home.mkdir(parents=True, exist_ok=True); self.home, self.said, self.errors = home, [], open(home.with_suffix(".err"), "w+")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "GEONB_OFFLINE"}
        env = kept | dict(HF_ENDPOINT=url, HF_HOME=str(home), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", GEONB_RUNS=str(home/"runs"), PYTHONWARNINGS="default") | env
        self.process = subprocess.Popen([sys.executable, "-c", ANSWER], cwd=home, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n"); self.process.stdin.flush()
        code, out, err, self.connections = json.loads(self.process.stdout.readline()); self.said.append([out, err]); return code, out, err
    def __call__(self, bundle, repo, *more): return self.ask(["publish", str(bundle), "--repo", repo, *more])
    def run(self, code): return self.ask(dict(run=code))
    def everything(self): self.errors.flush(); self.errors.seek(0); return json.dumps(self.said) + self.errors.read()
    def close(self): self.process.stdin.close(); self.process.wait(20); self.errors.close()


class Place:
    "A hub, the folder it serves, and a client that is logged in there."
    def __init__(self, tmp): self.tmp = tmp; self.hub = FolderHub(tmp/"hub", token=TOKEN).__enter__(); self.client = Client(self.hub.url, tmp/"home", HF_TOKEN=TOKEN)
    def repo(self, name): return self.hub.folder/name
    def another(self, name, **env): return Client(env.pop("url", self.hub.url), self.tmp/name, **env)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    p = Place(tmp_path_factory.mktemp("place")); yield p
    p.client.close(); p.hub.__exit__()


@pytest.fixture
def repo(request): return "someone/r-" + sha256(request.node.name.encode())[:12]   # a repository of this test's own


def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err


def variant(to, name="pentachora", value=None, **manifest):
    "A sound copy of an example under other words of its manifest."
    shutil.copytree(example(name), to); m = read_json(to/"manifest.json")
    if value is not None: m["champion"] = [m["champion"][0], value, m["champion"][2]]
    write_json(to/"manifest.json", m | manifest); write_sums(to); assert verify_bundle(to) == []; return to


def files_of(folder): return {f: (folder/f).read_bytes() for f in tree_files(folder)}


# ---- a dry run ----

def test_dry_run_asks_nobody_and_lists_exactly_the_bundle(tmp_path):
    "No network, no login: the client's hub is a closed port."
    c = Client("http://127.0.0.1:9", tmp_path/"home"); path = example("pentachora")
    try:
        code, text, err = c(path, "someone/digits", "--dry-run", "--json"); r = json.loads(text); assert (code, err, c.connections) == (0, "", 0)
        names = [o["path"] for o in r["operations"]]; assert len(set(names)) == len(names) and {o["operation"] for o in r["operations"]} == {"add"} and not r["sent"] and r["commit"] is None
        assert {n for n in names if not n.startswith("best/")} == set(tree_files(path)) and {n for n in names if n.startswith("best/")} == {f"best/{f}" for f in (*tree_files(path), "best.json")}
        for o in r["operations"]:
            if o["path"].rpartition("/")[2] not in ("README.md", "SHA256SUMS", "best.json"): f = path/o["path"].removeprefix("best/"); assert (o["bytes"], o["sha256"]) == (f.stat().st_size, sha256(f)), o["path"]
        assert r["bytes"] == sum(o["bytes"] for o in r["operations"])
        code, text, err = c(path, "someone/digits", "--dry-run"); assert code == 0 and c.connections == 0 and "nothing was sent" in text and text.rstrip().endswith(r["card"].rstrip()) and all(f" {n} " in text for n in names)
        code, _, err = c(path, "someone/digits"); assert code == 1 and "hf auth login" in err and one_sentence(err) and c.connections == 0, "without a login there is nothing to begin"
    finally: c.close()


def test_the_card_is_filled(tmp_path):
    import yaml
    card = publish(example("pentachora"), "someone/digits", dry_run=True)["card"]; head = yaml.safe_load(card.split("---\n")[1]); m = read_json(example("pentachora")/"manifest.json")
    assert head["pipeline_tag"] == "image-classification" and head["library_name"] == "geonb" and head["license"]
    (result,) = head["model-index"][0]["results"]; measured = {x["type"]: x["value"] for x in result["metrics"]}
    assert abs(measured["accuracy"] - m["test"]["accuracy"]) < 1e-6 and abs(measured["f1"] - m["test"]["macro_f1"]) < 1e-6 and abs(measured["roc_auc"] - m["test"]["auc"]) < 1e-6
    assert 'geonb.load("someone/digits")' in card and '(".")' not in card and "licence: CC BY 4.0" in card and m["run_id"] in card
    for name in EXAMPLES: r = publish(example(name), "a/b", dry_run=True); assert 'geonb.load("a/b")' in r["card"] and "In this folder" not in r["card"] and {"library_name": "geonb", "license": "apache-2.0"}.items() <= yaml.safe_load(r["card"].split("---\n")[1]).items(), name   # cards of older runs, too, say a licence
    for front in (chromatic.FRONT, generation_bundle.FRONT, tokenizer_bundle.FRONT, ternary.FRONT): assert yaml.safe_load(front.split("---\n")[1])["license"] == head["license"], front


@pytest.mark.parametrize("spec, classes", [({}, ["PentaFreqEncoderV2", "BatchedPentachoronConstellation", "RoseDiagnosticHead"]), (dict(front_end="pyramid"), ["PyramidEncoder", "BatchedPentachoronConstellation", "RoseDiagnosticHead"]), (dict(kind="linear"), ["PentaFreqEncoderV2"]), (dict(kind="cnn"), ["PlainCNN"])])
def test_the_card_says_how_to_take_a_part_here_and_from_the_hub(spec, classes):
    "What the folder's card calls `.` is the repository's name there."
    path = example("pentachora"); spec = ModelSpec.read(read_json(path/"config.json")["model"]).model_copy(update=spec); text = usage_section(spec, "digits")
    there = hub_card(text, "a/b", read_json(path/"manifest.json"))
    for c in classes: assert f'= {c}.from_pretrained(".")' in text and f'= {c}.from_pretrained("a/b")' in there
    assert text.count("from_pretrained") == len(classes) and f"import {', '.join(classes)}\n" in text and '(".")' not in there


# ---- there and back ----

@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "chromatic" else n for n in EXAMPLES])   # that one is of 150 files
def test_every_laboratory_goes_there_and_comes_back(place, repo, name):
    path = example(name); n = len(place.hub.requests); code, text, err = place.client(path, repo, "--json"); r = json.loads(text); assert (code, err) == (0, "") and r["sent"]
    assert [q[1] for q in place.hub.requests[n:] if q[0] == "POST" and "/commit/" in q[1]] == [f"api/models/{repo}/commit/main"], "one commit"
    there, own = place.repo(repo), files_of(path); held = files_of(there); assert held.pop(".gitattributes") and commit_of(there) == r["commit"] and set(held) == {o["path"] for o in r["operations"]}
    assert {f: held[f] for f in own if f not in ("README.md", "SHA256SUMS")} == {f: data for f, data in own.items() if f not in ("README.md", "SHA256SUMS")} and held["README.md"].decode() == r["card"]
    assert all(sha256(held[f]) == digest for f, digest in listed(held["SHA256SUMS"], repo).items()) and verify_bundle(there/"best") == []
    code, text, err = place.client.run(f"""
import geonb; from geonb.core.publishing import bundle_folder; from geonb.core.bundles import verify_bundle
print(type(geonb.load({repo!r})).__name__); print(verify_bundle(bundle_folder({repo!r})))""")
    assert code == 0 and text.splitlines()[1] == "[]", err
    assert place.client.run(f"import geonb; print(type(geonb.load({str(path)!r})).__name__)")[1].split() == text.split()[:1]


def test_what_comes_back_says_what_went_there(place, repo):
    path = example("pentachora"); assert place.client(path, repo)[0] == 0
    code, text, err = place.client.run(f"""
import json, numpy as np, torch, geonb
from geonb.core.artifacts import read_npz; from geonb.data.batches import as_batch
from geonb.pentachora import BatchedPentachoronConstellation, Classifier, PentaFreqEncoderV2, PlainCNN, RoseDiagnosticHead
images = read_npz({str(path/'heldout.npz')!r})["thumbnails"][:40]; here, there = geonb.load({str(path)!r}), geonb.load({repo!r})
encoder, constellation, head = (c.from_pretrained({repo!r}) for c in (PentaFreqEncoderV2, BatchedPentachoronConstellation, RoseDiagnosticHead))
with torch.no_grad(): z = encoder(as_batch(images, there.spec)); logits, _ = constellation(z); rose = head(z)[:, 0]
d = here.diagnose(images)
print(json.dumps([(d["logits"] == there.logits(images)).all().item(), (d["z"] == z.numpy()).all().item(), (d["logits"] == logits.numpy()).all().item(), (d["probe_rose"] == rose.numpy()).all().item(), (Classifier.from_pretrained({repo!r}).predict(images) == here.predict(images)).all().item()]))
PlainCNN.from_pretrained({repo!r})""")
    assert json.loads(text) == [True]*5 and code == 2 and "holds no PlainCNN" in err and one_sentence(err)


def test_again_changes_nothing_and_sends_nothing(place, repo):
    code, text, _ = place.client(example("ternary_v5_5"), repo, "--json"); first = json.loads(text); n = len(place.hub.requests)
    code, text, err = place.client(example("ternary_v5_5"), repo, "--json"); r = json.loads(text)
    assert code == 0 and r["commit"] == first["commit"] == commit_of(place.repo(repo)) and not [q for q in place.hub.requests[n:] if q[0] == "PUT" or "/commit/" in q[1]]


def test_a_revision_is_what_was_there_then(place, repo, tmp_path):
    path, other = example("pentachora"), variant(tmp_path/"other", run_id="0123456789-r1"); commits = [json.loads(place.client(b, repo, "--json")[1])["commit"] for b in (path, other)]; assert commits[0] != commits[1]
    ids = place.client.run(f"from geonb.core.publishing import bundle_folder; from geonb.core.atomic import read_json\nfor r in ({commits[0]!r}, None, 'main', {commits[1]!r}): print(read_json(bundle_folder({repo!r}, revision=r)/'manifest.json')['run_id'])")[1].split()
    mine = read_json(path/"manifest.json")["run_id"]; assert ids == [mine, *["0123456789-r1"]*3]
    for bad, exit_code in (("v9", 4), ("../main", 2)): code, _, err = place.client.run(f"import geonb; geonb.load({repo!r}, revision={bad!r})"); assert code == exit_code and one_sentence(err)


def test_a_folder_here_is_no_repository(place, repo):
    n = len(place.hub.requests); shutil.copytree(example("pentachora"), place.client.home/"someone"/"here"); assert place.client.run("import geonb; geonb.load('someone/here')")[0] == 0 and len(place.hub.requests) == n
    code, _, err = place.client.run("import geonb; geonb.load('someone/here', revision='main')"); assert code == 2 and one_sentence(err)
    code, _, err = place.client.run("import geonb; geonb.load('someone/nowhere')"); assert code == 4 and one_sentence(err) and "no run or bundle" in err and "at the hub" in err


# ---- what lies there already ----

def test_best_at_the_hub_changes_only_for_the_better(place, repo, tmp_path):
    "A worse run is published beside the better one; the card says whose best/ is."
    mine = read_json(example("pentachora")/"manifest.json"); value = mine["champion"][1]; bundles = {k: variant(tmp_path/k, value=v, run_id=f"{i}123456789-r1") for i, (k, v) in enumerate(dict(worse=value - .1, same=value, better=value + .001).items())}
    best = lambda: read_json(place.repo(repo)/"best"/"best.json")["run_id"]; root = lambda: read_json(place.repo(repo)/"manifest.json")["run_id"]
    assert place.client(example("pentachora"), repo)[0] == 0 and best() == mine["run_id"]; held = files_of(place.repo(repo)/"best")
    for k in ("worse", "same"):
        code, text, _ = place.client(bundles[k], repo, "--json"); r = json.loads(text); assert code == 0 and root() == r["run_id"] != mine["run_id"] and files_of(place.repo(repo)/"best") == held
        assert r["best"]["run_id"] == mine["run_id"] and f"run `{mine['run_id']}`" in r["card"] and not any(o["path"].startswith("best/") for o in r["operations"])
    assert place.client(bundles["better"], repo)[0] == 0 and best() == root() == "2123456789-r1" and verify_bundle(place.repo(repo)/"best") == [] and "this very run" in (place.repo(repo)/"README.md").read_text()
    other = example("ternary_v5_5"); assert place.client(other, repo)[0] == 0 and best() == read_json(other/"manifest.json")["run_id"], "runs of another kind do not compete"


def test_the_champion_of_here_goes_along(place, repo, tmp_path):
    shelf = tmp_path/"pentachora"/"digits"; value = read_json(example("pentachora")/"manifest.json")["champion"][1]; good, poor = (variant(shelf/f"{n}23456789a-r1", value=v, run_id=f"{n}23456789a-r1") for n, v in ((1, value), (2, value - .2)))
    for b in (good, poor): crown(b, *read_json(b/"manifest.json")["champion"])
    code, text, _ = place.client(poor, repo, "--json"); assert code == 0 and json.loads(text)["best"]["run_id"] == good.name and read_json(place.repo(repo)/"manifest.json")["run_id"] == poor.name and files_of(place.repo(repo)/"best") == files_of(shelf/"best")
    code, text, _ = place.client(shelf/"best", repo + "-b", "--json"); assert code == 0 and json.loads(text)["run_id"] == good.name and not (place.repo(repo + "-b")/"best.json").exists() and (place.repo(repo + "-b")/"best"/"best.json").exists()
    (shelf/"best"/"config.json").write_text("{}"); n = len(place.hub.requests); code, _, err = place.client(good, repo); assert code == 0, "a best/ that is not of this kind is not this run's"
    shutil.rmtree(shelf/"best"); crown(good, *read_json(good/"manifest.json")["champion"]); (shelf/"best"/"history.csv").write_text("x"); n = len(place.hub.requests)
    code, _, err = place.client(good, repo); assert code == 3 and one_sentence(err) and "history.csv" in err and len(place.hub.requests) == n


def test_runs_that_do_not_compete_have_no_best(place, repo, tmp_path):
    code, text, _ = place.client(variant(tmp_path/"data", champion=None), repo, "--json"); r = json.loads(text)
    assert code == 0 and r["best"] is None and not (place.repo(repo)/"best").exists() and "best/" not in r["card"] and place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0


def test_what_an_earlier_run_left_goes_and_what_others_put_there_stays(place, repo, tmp_path):
    assert place.client(example("ternary_v5_5"), repo)[0] == 0; there = place.repo(repo); (there/"LICENSE").write_text("mine"); (there/"docs").mkdir(); (there/"docs"/"a.md").write_text("mine")
    code, text, _ = place.client(example("pentachora"), repo, "--json"); gone = {o["path"] for o in json.loads(text)["operations"] if o["operation"] == "delete"}
    own = set(tree_files(example("pentachora"))); assert code == 0 and set(tree_files(there)) == {*own, *(f"best/{f}" for f in own), "best/best.json", ".gitattributes", "LICENSE", "docs/a.md"}
    assert gone == {p + f for p in ("", "best/") for f in set(tree_files(example("ternary_v5_5"))) - own} and gone and place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0


def test_two_who_publish_at_once_do_not_mix(place, repo):
    assert place.client(example("pentachora"), repo)[0] == 0; there = place.repo(repo); (there/"note.txt").write_text("before"); before = files_of(there)
    code, _, err = place.client.run(f"""
from pathlib import Path; import huggingface_hub; from geonb.core.publishing import publish; from geonb.core.assets import example
plain = huggingface_hub.HfApi.preupload_lfs_files
def meanwhile(self, *a, **k): Path({str(there/'note.txt')!r}).write_text("meanwhile"); return plain(self, *a, **k)
huggingface_hub.HfApi.preupload_lfs_files = meanwhile
try: publish(example("ternary_v5_5"), {repo!r})
finally: huggingface_hub.HfApi.preupload_lfs_files = plain""")
    assert code == 1 and one_sentence(err) and "somebody else" in err and files_of(there) == before | {"note.txt": b"meanwhile"}
    assert place.client(example("ternary_v5_5"), repo)[0] == 0 and read_json(there/"config.json")["laboratory"] == "ternary"


def test_what_does_not_arrive_as_sent_is_said(place, repo):
    code, _, err = place.client.run(f"""
from pathlib import Path; import huggingface_hub; from geonb.core.publishing import publish; from geonb.core.assets import example
plain = huggingface_hub.HfApi.create_commit
def ignored(self, repo_id, operations, **k): return plain(self, repo_id, [o for o in operations if o.path_in_repo != "trajectory.npz"], **k)
huggingface_hub.HfApi.create_commit = ignored
try: publish(example("ternary_v5_5"), {repo!r})
finally: huggingface_hub.HfApi.create_commit = plain""")
    assert code == 3 and one_sentence(err) and "trajectory.npz" in err


# ---- what is refused ----

def test_only_what_verifies_is_published(place, repo, tmp_path):
    n = len(place.hub.requests); whole = variant(tmp_path/"b"); r = random.Random(7)
    for f in sorted(tree_files(whole)):
        broken = tmp_path/"broken"; shutil.copytree(whole, broken); data = bytearray((broken/f).read_bytes()); data[r.randrange(len(data))] ^= 1 << r.randrange(8); (broken/f).write_bytes(data)
        for more in ((), ("--dry-run",)): code, text, err = place.client(broken, repo, *more); assert (code, text) == (3, "") and one_sentence(err), f
        shutil.rmtree(broken)
    (whole/"more.txt").write_text("x"); assert place.client(whole, repo)[0] == 3; (whole/"more.txt").unlink(); (whole/"weights"/"link").symlink_to("/etc/passwd"); assert place.client(whole, repo)[0] == 3
    (whole/"weights"/"link").unlink(); whole.rename(tmp_path/"b.partial"); code, _, err = place.client(tmp_path/"b.partial", repo); assert code == 3 and "not finished" in err
    assert place.client("no-such-run", repo)[0] == 4 and place.client("", repo)[0] == 2 and len(place.hub.requests) == n and not place.repo(repo).exists()


@pytest.mark.parametrize("name", ["digits", "a/b/c", "../x", "a b/c", "someone/", "/x", "someone/..", "some\none/x", "", "-x/y", "someone/\u0435", "a" * 97 + "/b"])
def test_names_of_repositories(place, name):
    n = len(place.hub.requests)
    for more in ((), ("--dry-run",)): code, text, err = place.client(example("pentachora"), name, *more); assert (code, text) == (2, "") and one_sentence(err)
    assert len(place.hub.requests) == n


def test_private_is_private(place, repo):
    stranger = place.another("stranger")
    try:
        assert place.client(example("ternary_v5_5"), repo, "--private")[0] == 0 and repo in place.hub.private and place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0
        code, _, err = stranger.run(f"import geonb; geonb.load({repo!r})"); assert code == 4 and one_sentence(err) and "private" in err
        assert place.client(example("pentachora"), repo + "-p")[0] == 0 and repo + "-p" not in place.hub.private; held = files_of(place.repo(repo + "-p"))
        code, _, err = place.client(example("ternary_v5_5"), repo + "-p", "--private"); assert code == 2 and one_sentence(err) and "public" in err and files_of(place.repo(repo + "-p")) == held
    finally: stranger.close()


def test_nobody_may_begin(place, repo):
    nobody = place.another("nobody")
    try: n = len(place.hub.requests); code, _, err = nobody(example("pentachora"), repo); assert code == 1 and one_sentence(err) and "hf auth login" in err and len(place.hub.requests) == n
    finally: nobody.close()


def test_a_token_the_hub_does_not_know_is_not_repeated(place, repo):
    "The hub of the folder repeats it in its refusal."
    stranger = place.another("unknown", HF_TOKEN=WRONG)
    try:
        code, text, err = stranger(example("pentachora"), repo, "--json"); assert code == 1 and one_sentence(err) and "401" in err and json.loads(text)["exit_code"] == 1 and not place.repo(repo).exists()
        assert "wrong" not in stranger.everything().lower() and TOKEN not in place.client.everything()
    finally: stranger.close()


def test_a_guest_writes_only_where_it_may(place, tmp_path):
    guests = FolderHub(tmp_path/"hub", token=TOKEN, owners=["me"]).__enter__(); guest = place.another("guest", url=guests.url, HF_TOKEN=TOKEN)
    try:
        code, _, err = guest(example("pentachora"), "you/x"); assert code == 1 and one_sentence(err) and "403" in err and not (tmp_path/"hub"/"you").exists()
        shutil.copytree(example("ternary_v5_5"), tmp_path/"hub"/"you"/"y"); before = files_of(tmp_path/"hub"/"you"/"y"); code, _, err = guest(example("pentachora"), "you/y"); assert code == 1 and one_sentence(err) and "403" in err and files_of(tmp_path/"hub"/"you"/"y") == before
        assert guest(example("pentachora"), "me/x")[0] == 0 and TOKEN not in guest.everything()
    finally: guest.close(); guests.__exit__()


def test_the_hub_is_gone_and_the_copy_is_not(tmp_path):
    hub = FolderHub(tmp_path/"hub", token=TOKEN).__enter__(); c, quiet = Client(hub.url, tmp_path/"home", HF_TOKEN=TOKEN), None
    fetched = lambda c, name, *more: c.run(f"from geonb.core.publishing import bundle_folder; from geonb.core.atomic import check_sums; assert check_sums(bundle_folder({name!r}, None, *{more!r})) == []")
    try:
        assert c(example("ternary_v5_5"), "a/b")[0] == 0 and fetched(c, "a/b")[0] == 0; hub.__exit__()
        assert fetched(c, "a/b")[0] == 0, "what was fetched is here"
        for code, _, err in (c(example("ternary_v5_5"), "a/b"), fetched(c, "a/c"), fetched(c, "a/b", "v2")): assert code == 4 and one_sentence(err)
        shutil.rmtree(tmp_path/"home"/"assets"); assert fetched(c, "a/b")[0] == 0, "the library's cache is enough"
        quiet = Client(hub.url, tmp_path/"home", HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1"); assert fetched(quiet, "a/b")[0] == 0 and quiet.connections == 0
        code, _, err = quiet(example("ternary_v5_5"), "a/b"); assert code == 4 and one_sentence(err) and "OFFLINE" in err and quiet.connections == 0
    finally: [x.close() for x in (c, quiet) if x]


def test_an_upload_that_breaks_off_changes_nothing(tmp_path):
    "The connection goes away during a large file, for good: one sentence, the repository as before; the same command later succeeds."
    hub = FolderHub(tmp_path/"hub", token=TOKEN, drop=10**6).__enter__(); c = Client(hub.url, tmp_path/"home", HF_TOKEN=TOKEN)
    try:
        c.run("import time; time.sleep = lambda s: None")   # the library waits longer and longer between its attempts
        code, _, err = c(example("ternary_v5_5"), "a/b"); assert code == 4 and err.splitlines()[-1].startswith("geonb: ") and "broke off" in err and "Traceback" not in err and set(tree_files(tmp_path/"hub"/"a"/"b")) == {".gitattributes"}
        hub.drop = 1; assert c(example("ternary_v5_5"), "a/b")[0] == 0 and verify_bundle(tmp_path/"hub"/"a"/"b"/"best") == [], "one lost connection is only tried again"
    finally: c.close(); hub.__exit__()


# ---- what comes from elsewhere ----

def test_a_file_that_was_changed_there_is_named_and_nothing_is_kept(place, repo):
    assert place.client(example("ternary_v5_5"), repo)[0] == 0; there = place.repo(repo); kept = place.client.home/"assets"/"geonb"/repo.replace("/", "--")
    for f in ("weights/model_v5_5.safetensors", "config.json", "history.csv"):
        data = (there/f).read_bytes(); (there/f).write_bytes(data[:-1] + bytes([data[-1] ^ 1])); code, _, err = place.client.run(f"import geonb; geonb.load({repo!r})")
        assert code == 3 and one_sentence(err) and f in err and not [p for p in kept.glob("*") if p.is_dir()], f
        (there/f).write_bytes(data)
    (there/"README.md").write_text("# another card\n"); assert place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0, "a card may be edited there"
    (there/"trajectory.npz").unlink(); assert place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 4


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "hub.lock.json", "a\\b", ".hidden/x", "NUL"])
def test_a_list_of_checksums_cannot_lead_elsewhere(place, repo, name):
    (there := place.repo(repo)).mkdir(parents=True); (there/"SHA256SUMS").write_text(f"{'0'*64}  {name}\n"); n, before = len(place.hub.requests), sorted(place.tmp.rglob("*x"))
    code, _, err = place.client.run(f"import geonb; geonb.load({repo!r})"); assert code == 3 and one_sentence(err) and sorted(place.tmp.rglob("*x")) == before and {q[1].rpartition("/")[2] for q in place.hub.requests[n:]} == {"SHA256SUMS"}


def test_a_repository_of_something_else(place, repo):
    (there := place.repo(repo)).mkdir(parents=True); (there/"config.json").write_text("{}"); code, _, err = place.client.run(f"import geonb; geonb.load({repo!r})"); assert code == 4 and one_sentence(err) and "SHA256SUMS" in err
    write_sums(there); code, _, err = place.client.run(f"import geonb; geonb.load({repo!r})"); assert code == 3 and one_sentence(err), "checksums alone make no bundle"
    write_json(there/"config.json", {"laboratory": "os"}); write_json(there/"manifest.json", {"config_sha256": sha256(there/"config.json")}); write_json(there/"history.json", []); (there/"history.csv").write_text("\n"); (there/"SHA256SUMS").unlink(); write_sums(there)
    code, _, err = place.client.run(f"import geonb; geonb.load({repo!r})"); assert code == 3 and "unknown laboratory 'os'" in err


def test_a_copy_that_somebody_wrote_in_is_made_anew(place, repo):
    assert place.client(example("ternary_v5_5"), repo)[0] == 0 and place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0
    (kept,) = [p for p in (place.client.home/"assets"/"geonb"/repo.replace("/", "--")).glob("*") if p.is_dir()]; before = files_of(kept)
    for harm in (lambda: (kept/"config.json").write_text("{}"), lambda: (kept/"more").write_text("x"), lambda: (kept/"link").symlink_to("/etc/passwd"), lambda: (kept/"SHA256SUMS").unlink()): harm(); assert place.client.run(f"import geonb; geonb.load({repo!r})")[0] == 0 and files_of(kept) == before


# ---- best/ on this machine ----

def test_best_changes_only_for_a_better_one(tmp_path):
    bundle = variant(tmp_path/"lab"/"set"/"a-r1"); other = variant(tmp_path/"lab"/"set"/"b-r1", run_id="b-r1"); best = bundle.parent/"best"
    assert crown(bundle, "val/accuracy", .5); before = files_of(best)
    for value, mode in ((.5, "max"), (.4, "max"), (float("nan"), "max"), (.6, "min"), (.5, "min")): assert not crown(other, "val/accuracy", value, mode) and files_of(best) == before
    assert crown(other, "val/accuracy", .51) and read_json(best/"best.json")["run_id"] == "b-r1" and verify_bundle(best) == [] and crown(bundle, "val/accuracy", .1, "min")


def dies(at, bundle, value):
    "Crown in a fork that kills itself at its at-th file operation; how many there were otherwise."
    read, write = os.pipe()
    with warnings.catch_warnings(): warnings.simplefilter("ignore", DeprecationWarning); pid = os.fork()   # numpy's and torch's threads do nothing here
    if not pid:
        seen = [0]
        def hook(event, args):
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.copyfile", "shutil.copytree", "shutil.rmtree"):
                seen[0] += 1
                if seen[0] == at: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        try: crown(bundle, "val/accuracy", value); os.write(write, str(seen[0]).encode())
        finally: os._exit(0)
    os.close(write); status = os.waitpid(pid, 0)[1]; text = os.read(read, 20); os.close(read)
    return int(text) if text else (-1 if os.WIFSIGNALED(status) else 0)


def test_a_kill_while_best_is_written_leaves_the_old_one_whole(tmp_path):
    a, b = (variant(tmp_path/"old"/"set"/n, run_id=n) for n in ("a-r1", "b-r1")); assert crown(a, "val/accuracy", .5); old = files_of(a.parent/"best")
    shutil.copytree(tmp_path/"old", tmp_path/"whole"); count = dies(-1, tmp_path/"whole"/"set"/"b-r1", .6); assert count > 60 and read_json(tmp_path/"whole"/"set"/"best"/"best.json")["run_id"] == "b-r1"
    seen = []
    for n in sorted({*random.Random(0).sample(range(1, count + 1), 20), count - 1, count}):
        shutil.copytree(tmp_path/"old", here := tmp_path/f"k{n}"); assert dies(n, here/"set"/"b-r1", .6) == -1, n
        best = here/"set"/"best"; who = read_json(best/"best.json")["run_id"]; seen.append(who); assert check_sums(best) == [] and verify_bundle(best) == [] and (who == "b-r1" or files_of(best) == old)
        assert not crown(here/"set"/"a-r1", "val/accuracy", .4) and crown(here/"set"/"b-r1", "val/accuracy", .6) == (who == "a-r1") and read_json(best/"best.json")["run_id"] == "b-r1" and verify_bundle(best) == []
        shutil.rmtree(here)
    assert seen == sorted(seen) and set(seen) == {"a-r1", "b-r1"}, "the old one up to one moment, then the new one"
