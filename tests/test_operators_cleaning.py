"""Cleaning and categories: what a cell cannot show, another process and hostile columns."""
import subprocess
import sys

import numpy as np
import pytest

from geonb.core.errors import CheckFailed
from geonb.core.seeds import stream
from geonb.operators.categories import Grouping, agreement, correlations, discover
from geonb.operators.cleaning import FeatureTable, Preprocessor


def hostile(seed, n=60, D=40):
    "Columns of every kind that went wrong once: huge, tiny, spiked, empty, infinite, constant but for one row, copies."
    rng = stream(seed, "hostile")
    x = rng.normal(size=(n, D)) * 10.0 ** rng.integers(-30, 30, D)
    kinds = rng.integers(0, 9, D)
    for j, kind in enumerate(kinds):
        if kind == 0: x[:, j] = np.nan
        if kind == 1: x[rng.random(n) < .5, j] = np.nan
        if kind == 2: x[rng.integers(n), j] = rng.choice([np.inf, -np.inf])
        if kind == 3: x[:, j] = rng.normal()
        if kind == 4: x[:, j] = 0; x[rng.integers(n), j] = 1e20
        if kind == 5: x[:, j] = np.exp(20 * rng.normal(size=n))
        if kind == 6 and j: x[:, j] = -3 * x[:, j - 1]
        if kind == 7: x[:, j] = rng.integers(0, 2, n)
    x[:, 0] = rng.normal(size=n)   # one good column at least
    with np.errstate(over="ignore"): return FeatureTable(x.astype(np.float32), [f"x{j}" for j in range(D)], ["initial" if j < 6 else "summary" for j in range(D)])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_in_clean_columns_come_out(seed):
    table = hostile(seed); rows = np.arange(40); p = Preprocessor.fit(table, rows); x = p.transform(table)
    assert x.shape == (60, len(p.names)) and np.isfinite(x).all() and np.isfinite(p.inverse(x)).all()
    assert (np.ptp(x[rows], 0) > .1).all() and np.allclose(x[rows].std(0), 1, atol=1e-3)      # no constant column is left, of no family
    other = table.values.copy(); other[40:] = stream(seed, "other").normal(size=other[40:].shape) * 1e10
    q = Preprocessor.fit(FeatureTable(other, table.names, table.family), rows)
    assert all(np.array_equal(p.numbers[k], q.numbers[k]) for k in p.numbers) and p.report == q.report
    kept = set(p.names); assert all(v in kept for v in p.report["kept_for"].values()) and set(p.report["kept_for"]) == set(p.report["names"]["duplicate"])


def test_a_saved_preprocessor_gives_the_same_bits_in_another_process(tmp_path):
    table = hostile(3); p = Preprocessor.fit(table, np.arange(40)); p.save(tmp_path / "p.npz"); np.savez(tmp_path / "in.npz", x=table.values, names=table.names, family=table.family)
    code = ("import sys, numpy as np; from geonb.operators.cleaning import *; d = sys.argv[1]; z = np.load(d + '/in.npz'); t = FeatureTable(z['x'], z['names'].tolist(), z['family'].tolist()); "
            "p = Preprocessor.load(d + '/p.npz'); np.savez(d + '/out.npz', x=p.transform(t), back=p.inverse(p.transform(t)))")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    with np.load(tmp_path / "out.npz") as z: assert np.array_equal(z["x"], p.transform(table)) and np.array_equal(z["back"], p.inverse(p.transform(table)))


@pytest.mark.parametrize("cut", [0, 10, 1000, 5000])
def test_a_torn_file_is_named(tmp_path, cut):
    path = Preprocessor.fit(hostile(1), np.arange(40)).save(tmp_path / "p.npz"); path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckFailed, match="p.npz"): Preprocessor.load(path)


def test_a_file_without_one_number_is_refused(tmp_path):
    path = Preprocessor.fit(hostile(1), np.arange(40)).save(tmp_path / "p.npz")
    with np.load(path) as z: arrays = dict(z)
    for key in arrays:
        np.savez(path, **{k: v for k, v in arrays.items() if k != key})
        with pytest.raises(CheckFailed): Preprocessor.load(path)


def test_categories_do_not_depend_on_signs_units_or_order():
    rng = stream(0, "columns"); X = rng.normal(size=(150, 5))[:, rng.integers(0, 5, 50)] + .7 * rng.normal(size=(150, 50)); words = [["x"] * 50, ["f"] * 50]
    one = discover(X, *words, bootstraps=2); order = rng.permutation(50)
    two = discover((X * rng.choice([-1, 1], 50) * 10.0 ** rng.integers(-5, 5, 50) + 7)[:, order], *words, bootstraps=2)
    assert len(one) == 5 and agreement(one.assignment[order], two.assignment) == 1 and sorted(one.sizes) == sorted(two.sizes)


@pytest.mark.parametrize("linkage", ["average", "ward", "complete"])
@pytest.mark.parametrize("refine", [False, True])
def test_every_partition_is_whole(linkage, refine):
    for seed in range(6):
        rng = stream(seed, "any"); X = np.c_[rng.normal(size=(30, 25)) @ rng.normal(size=(25, 25)), np.ones((30, 2))]; parts = np.r_[np.zeros(15, int), np.ones(12, int)]
        for p in (None, parts):
            for K, labels in Grouping(linkage, refine=refine, parts=p)(correlations(X))[2].items():
                assert sorted(set(labels.tolist())) == list(range(K)) and np.bincount(labels).min() >= 3
                assert p is None or all(len(set(p[labels == k].tolist())) == 1 for k in range(K))
