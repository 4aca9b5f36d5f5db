"The fast counts of ternary.coverage against slow ones, over seeds; and that draws do not depend on how they are asked for."
import math

import numpy as np
import pytest
import torch

from geonb.core.seeds import torch_stream
from geonb.ternary.baselines import PlainVAE, QuantileCodec, untrained
from geonb.ternary.coverage import BLOCK, RULES, coverage_table, decoded_index, draws, effective_operations, first_seen, reconstruction, sampling_counts, union_coverage
from geonb.ternary.operations import OPERATIONS, tables


def slow_index(logits, rule, u=None):
    "One row and one entry at a time, in Python floats."
    out = []
    for n, row in enumerate(logits.tolist()):
        index = 0
        for k, l in enumerate(row):
            if rule == "argmax": digit = l.index(max(l))
            else:
                e = [math.exp(v - max(l)) for v in l]; p = [v / sum(e) for v in e]
                if rule == "expectation": digit = 1 + round(p[2] - p[0])                   # Python rounds halves to even, here to 0
                else: digit = sum(float(u[n, k]) >= c for c in (p[0], p[0] + p[1]))        # the inverse of the distribution function
            index += digit * 3**k
        out.append(index)
    return np.array(out)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [.1, 3., 40.])
def test_rules_against_single_entries(seed, scale):
    logits = scale * torch.randn(300, 9, 3, generator=torch.Generator().manual_seed(seed))
    u = torch.rand(300, 9, generator=torch.Generator().manual_seed(seed + 100))
    for rule in RULES:
        fast = decoded_index(logits, rule, torch.Generator().manual_seed(seed + 100))
        assert fast.dtype == np.int64 and (fast == slow_index(logits, rule, u)).mean() > (1 if rule == "argmax" else .99) - 1e-9   # float32 against float64 at a threshold


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("path", ["A", "B"])
def test_counts_against_a_set(seed, path):
    model, n = untrained(seed), 30_000
    z = torch.cat([torch.randn(BLOCK, 16, generator=torch_stream(seed, f"sampling/{path}", 2, block)) for block in range(2)])[:n]
    with torch.no_grad(): rows = model.decode(path, z).argmax(-1).tolist()
    counts = sampling_counts(model, path, n, seed=seed, trial=2)
    assert abs(len({tuple(row) for row in rows}) - (counts > 0).sum()) <= 1 and counts.sum() == n   # the batch differs, so a tie within rounding may turn


def test_effective_operations_against_pairs():
    index = np.random.default_rng(0).integers(40, size=300)
    same = sum(int(a == b) for i, a in enumerate(index) for j, b in enumerate(index) if i != j)
    assert effective_operations(np.bincount(index, minlength=OPERATIONS)) == pytest.approx(300 * 299 / same)


@pytest.mark.parametrize("model", [untrained(3), PlainVAE(5, (16, 16, 16, 16)), QuantileCodec()], ids=["dual", "odd width", "codec"])
def test_draws_do_not_depend_on_how_many_are_asked_for(model):
    long = draws(model, "A", 2 * BLOCK + 4321, RULES, seed=7)
    for n in (1, 3999, 4001, BLOCK, BLOCK + 1, 2 * BLOCK + 4320):
        for rule, index in draws(model, "A", n, RULES, seed=7).items(): assert len(index) == n and (index == long[rule][:n]).all()


def test_rules_do_not_disturb_each_other():
    model = untrained(1)
    together, backwards = draws(model, "B", 25_000, RULES), draws(model, "B", 25_000, RULES[::-1])
    for rule in RULES:
        assert (together[rule] == backwards[rule]).all() and (together[rule] == draws(model, "B", 25_000, (rule,))[rule]).all()


@pytest.mark.parametrize("chunk", [700, 7000, 20_000, 50_000])
def test_the_size_of_a_piece_only_changes_rounding(chunk):
    model = untrained(2)
    usual, other = draws(model, "A", 45_000, RULES), draws(model, "A", 45_000, RULES, chunk=chunk)
    for rule in RULES: assert (usual[rule] != other[rule]).mean() < 1e-3


def test_reconstruction_does_not_depend_on_the_piece():
    model, x = untrained(0), tables(np.arange(0, OPERATIONS, 7))
    whole, pieces = reconstruction(model, x), reconstruction(model, x, chunk=100)
    for path in model.paths:
        assert (whole[path]["predicted"] != pieces[path]["predicted"]).mean() < 1e-3 and whole[path]["nll"] == pytest.approx(pieces[path]["nll"], abs=1e-5)


def test_a_table_of_numbers_is_what_single_calls_give():
    model, ns = untrained(5), (100, 19_683, 40_001)
    for row in coverage_table(model, ns, RULES, trials=2, seed=9):
        assert row["values"] == [int((sampling_counts(model, row["path"], row["n"], row["rule"], seed=9, trial=t) > 0).sum()) for t in range(2)]


def test_pathways_draw_their_own_latents():
    model = untrained(0)
    model.decode = lambda path, z: model.decoder_A(z)                       # both pathways decode alike
    one, both = (sampling_counts(model, "A", 20_000) > 0).sum(), union_coverage(model, 20_000)["values"]
    assert both > one * 1.05


def test_evaluating_uses_up_nobody_elses_random_numbers():
    state = torch.get_rng_state()
    coverage_table(untrained(0), (1000,), RULES); reconstruction(untrained(0))
    assert torch.equal(state, torch.get_rng_state())


def test_first_seen_against_a_loop():
    index = np.random.default_rng(1).integers(OPERATIONS, size=5000)
    slow = {}
    for n, i in enumerate(index.tolist()): slow.setdefault(i, n)
    assert first_seen(index).tolist() == [slow.get(i, 5000) for i in range(OPERATIONS)]
