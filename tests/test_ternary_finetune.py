"What a run that starts from a bundle refuses, and what it is called."
import json
import os
import shutil

import pytest

from geonb.app.execute import check
from geonb.core.atomic import write_json
from geonb.core.config import identity
from geonb.core.errors import CheckFailed, UsageError
from geonb.core.run import Run
from geonb.core.training import fit
from geonb.ternary.bundle import save, started_from, task_name
from geonb.ternary.config import TrainTernaryV5_5
from geonb.ternary.report import report_of
from geonb.ternary.task import TernaryTask

NAME = "train_ternary_v5_5"
QUICK = dict(subset="random:200", epochs=1, isolation_end=0, consolidation_end=0, ultra_start=0, batch=100, eval_every=1, eval_draws=1000, statenet="off", progress="none")


def run(root, **given):
    "A tiny run, as the notebook makes it."
    config = TrainTernaryV5_5.build(**QUICK, **given, runs_root=str(root)); net, origin = started_from(config)
    made = Run.open(config, task_name(config), {}, report=lambda line: None, **origin); task = TernaryTask(config, made.device, net)
    t = fit(task, made)
    return save(made, task, report_of(made, task, t))


@pytest.fixture(scope="module")
def root(tmp_path_factory): return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def start(root): return run(root)


@pytest.fixture(scope="module")
def tuned(root, start): return run(root, start=str(start), seed=1)


def looked(start, root): return check(NAME, {**QUICK, "start": str(start), "runs_root": str(root)})


def test_a_sound_start_passes(start, root): assert looked(start.name, root)[0] == looked(start, root)[0] == 0


def broken(start, where, how):
    "A copy of a bundle with one thing wrong."
    copy = where/"copy"; shutil.copytree(start, copy); how(copy); return copy


def flip(copy):
    "One bit of the weights."
    file = next((copy/"weights").iterdir()); raw = bytearray(file.read_bytes()); raw[-5] ^= 1; file.write_bytes(raw)


def foreign(copy):
    "A bundle of another laboratory."
    config = json.loads((copy/"config.json").read_text()); write_json(copy/"config.json", {**config, "laboratory": "pentachora"})


@pytest.mark.parametrize("how, code, words", [
    (lambda copy: (copy/"manifest.json").unlink(), 2, "holds no finished bundle"),
    (foreign, 2, "laboratory 'pentachora', not of 'ternary'"),
    (flip, 3, "is refused"),
    (lambda copy: (copy/"config.json").unlink(), 3, "config.json")])
def test_check_names_what_is_wrong_with_a_start(start, root, tmp_path, how, code, words):
    given, said = looked(broken(start, tmp_path, how), root)
    assert given == code and words in said and "\n" not in said


@pytest.mark.parametrize("name, code", [("nothing-r1", 4), ("./no/such/folder", 4), ("  ", 2), ("a\0b", 2)])
def test_check_of_a_start_that_is_not_there(root, name, code):
    given, said = looked(name, root)
    assert given == code and "\n" not in said


def test_the_run_refuses_a_damaged_start(start, root, tmp_path):
    with pytest.raises(CheckFailed, match="is refused: ") as e: started_from(TrainTernaryV5_5.build(start=str(broken(start, tmp_path, flip))))
    assert e.value.exit_code == 3


def test_the_run_refuses_a_start_that_does_not_fit(start, root):
    for other in ({"latent_dim": 8}, {"model": "plain"}):
        with pytest.raises(UsageError, match="holds a dual model of width 16"): started_from(TrainTernaryV5_5.build(start=start.name, runs_root=str(root), **other))


def test_a_start_is_part_of_the_identity_however_it_is_spelt(start, tuned, root, monkeypatch):
    monkeypatch.chdir(root)
    def key(**given):
        config = TrainTernaryV5_5.build(**QUICK, seed=1, runs_root=str(root), **given)
        return identity(config, dataset=task_name(config), data={}, device="cpu", **started_from(config)[1])[:10]
    spellings = (start.name, start.name[:6], str(start), f"{start}{os.sep}", os.path.relpath(start))
    assert {key(start=s) for s in spellings} == {tuned.name.split("-")[0]}
    assert key() != key(start=start.name)
    assert run(root, start=start.name, seed=1) == tuned     # the same run, finished already


def test_a_start_leaves_no_path_of_this_machine(start, tuned, root):
    assert json.loads((tuned/"config.json").read_text())["parameters"]["start"] == start.name
    assert [f for f in tuned.rglob("*") if f.is_file() and os.fsencode(root) in f.read_bytes()] == []


def test_the_first_weights_are_those_of_the_start(start, root):
    import torch
    from safetensors.torch import load_file
    config = TrainTernaryV5_5.build(**QUICK, start=start.name, order="big", seed=5, runs_root=str(root))   # another order reads the same weights
    kept, mine = load_file(next((start/"weights").iterdir())), TernaryTask(config, start=started_from(config)[0]).net.state_dict()
    assert kept.keys() == mine.keys() and all(torch.equal(kept[k], mine[k]) for k in kept)
