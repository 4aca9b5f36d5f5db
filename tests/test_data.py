"Image sets: formats as strangers write them, the store, downloads from a local server, batches against slow loops."
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from geonb.core.errors import CheckFailed, DataMissing, GeonbError, UsageError
from geonb.data import catalogue, check, download, formats, get, list_sets, load_images, remove, store, vision

PUBLISHED = vision.literals
SPLITS = ("train", "val", "test")
md5 = lambda raw: hashlib.md5(raw).hexdigest()
files_below = lambda folder: sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*")) if Path(folder).exists() else []


# --- tiny files in the official formats

def idx(array):
    "An array as IDX bytes, written from the format's description."
    code = {"u1": 8, "i4": 12}[array.dtype.str[1:]]
    return struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def pictures(n, side=28, channels=0, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side) + ((channels,) if channels else ()), dtype=np.uint8)


def mnist_like(n_train=60, n_test=20, first=0, classes=10):
    "Bytes of train images, train labels, test images, test labels, and the arrays."
    x, y = pictures(n_train), (np.arange(n_train) % classes + first).astype(np.uint8)
    xt, yt = pictures(n_test, seed=1), (np.arange(n_test) % classes + first).astype(np.uint8)
    return [idx(a) for a in (x, y, xt, yt)], (x, y, xt, yt)


MNIST_FILES = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
medmnist = lambda n=24, side=28, channels=3, classes=8: {f"{s}_{k}": v for i, s in enumerate(SPLITS) for k, v in
    dict(images=pictures(n, side, channels, seed=i), labels=(np.arange(n) % classes).astype(np.uint8)[:, None]).items()}


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    "No network, no data root but the test's own."
    for name in ("GEONB_MIRROR", "GEONB_DATA"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEONB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))


@pytest.fixture
def tables(monkeypatch):
    "The libraries' tables of addresses and checksums, to be changed by a test; no address leads anywhere."
    changed = {}
    def literals(package, file):
        if (package, file) not in changed:
            table = changed[package, file] = deepcopy(PUBLISHED(package, file))
            for cls in table.values():
                if "mirrors" in cls: cls["mirrors"] = ["http://mirror.invalid/"]
                if "url" in cls: cls["url"] = "http://mirror.invalid/" + cls["url"].rsplit("/", 1)[-1]
            for info in table[""].get("INFO", {}).values():
                for k in [k for k in info if k.startswith("url")]: info[k] = "http://mirror.invalid/file.npz"
        return changed[package, file]
    monkeypatch.setattr(catalogue, "literals", literals)
    monkeypatch.setattr(vision, "literals", literals)
    return literals


@pytest.fixture
def tiny_mnist(tables):
    "Bytes by file name of a tiny MNIST that the table declares official."
    raw, arrays = mnist_like()
    packed = {name: gzip.compress(r, mtime=0) for name, r in zip(MNIST_FILES, raw)}
    tables("torchvision", "datasets/mnist.py")["MNIST"]["resources"] = [(n, md5(b)) for n, b in packed.items()]
    return packed, arrays


# --- IDX

@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist/raw", "MNIST", "mnist", ""])
def test_official_mnist_is_read_where_it_lies_and_nothing_is_unpacked(tmp_path, tiny_mnist, folder):
    packed, (x, y, xt, yt) = tiny_mnist
    (tmp_path/"d"/folder).mkdir(parents=True, exist_ok=True)
    for name, raw in packed.items(): (tmp_path/"d"/folder/name).write_bytes(raw)
    before = files_below(tmp_path/"d")
    m = load_images("mnist", root=tmp_path/"d", strict=True)
    assert (m.name, m.official, m.class_names) == ("mnist", True, list("0123456789"))
    assert files_below(tmp_path/"d") == before
    np.testing.assert_array_equal(m.test.images[..., 0], xt)
    both = np.concatenate([m.train.ids, m.val.ids])
    np.testing.assert_array_equal(np.sort(both), np.arange(60))
    np.testing.assert_array_equal(m.val.images[..., 0], x[m.val.ids])
    np.testing.assert_array_equal(m.train.labels, y[m.train.ids])
    assert len(m.val) == 6                                                    # a tenth of 60


def test_official_gz_is_preferred_to_its_unpacked_copy(tmp_path, tiny_mnist):
    (tmp_path/"MNIST"/"raw").mkdir(parents=True)
    for name, raw in tiny_mnist[0].items():
        (tmp_path/"MNIST"/"raw"/name).write_bytes(raw)
        (tmp_path/"MNIST"/"raw"/name.removesuffix(".gz")).write_bytes(gzip.decompress(raw))
    assert load_images("mnist", root=tmp_path).official
    for name in tiny_mnist[0]: (tmp_path/"MNIST"/"raw"/name).unlink()
    unpacked = load_images("mnist", root=tmp_path)
    assert not unpacked.official and unpacked.name.startswith("mnist-unofficial-")
    np.testing.assert_array_equal(unpacked.test.images[..., 0], tiny_mnist[1][2])


def test_relatives_with_the_same_file_names_are_not_mixed_up(tmp_path, tiny_mnist):
    for name, raw in tiny_mnist[0].items(): (tmp_path/name).write_bytes(raw)
    assert load_images("mnist", root=tmp_path).official
    for other in ("fashionmnist", "kmnist"):
        with pytest.raises(DataMissing, match=f"{other} is not on this machine"): load_images(other, root=tmp_path)


def test_a_set_is_never_put_together_from_two_folders(tmp_path, tiny_mnist):
    for i, (name, raw) in enumerate(tiny_mnist[0].items()):
        folder = tmp_path/("MNIST/raw" if i < 2 else "mnist")
        folder.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(raw)
    with pytest.raises(DataMissing): load_images("mnist", root=tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_emnist_is_transposed_and_letters_start_at_zero(tmp_path, tables, packed, capsys):
    raw, (x, y, xt, yt) = mnist_like(104, 52, first=1, classes=26)
    names = [f"emnist-letters-{p}-{t}" for p in ("train", "test") for t in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    (tmp_path/"EMNIST"/"raw").mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(tmp_path/"EMNIST"/"raw"/"gzip.zip", "w") as z:
            for n, r in zip(names, raw): z.writestr(f"gzip/{n}.gz", gzip.compress(r))
        tables("torchvision", "datasets/mnist.py")["EMNIST"]["md5"] = md5((tmp_path/"EMNIST"/"raw"/"gzip.zip").read_bytes())
    else:
        for n, r in zip(names, raw): (tmp_path/"EMNIST"/"raw"/n).write_bytes(r)
    e = load_images("emnist_letters", root=tmp_path)
    assert e.official is packed and e.class_names[0] == "a" and e.classes == 26
    np.testing.assert_array_equal(e.test.images[..., 0], xt.transpose(0, 2, 1))
    np.testing.assert_array_equal(e.test.labels, yt - 1)
    assert capsys.readouterr().err.count("warning:") == (not packed)


def test_qmnist_takes_the_class_column(tmp_path, tables):
    (x, y, xt, yt) = mnist_like()[1]
    wide = lambda y: np.concatenate([y[:, None], np.full((len(y), 7), 99)], 1).astype(np.int32)
    (tmp_path/"QMNIST"/"raw").mkdir(parents=True)
    for n, a in (("train-images-idx3-ubyte", x), ("train-labels-idx2-int", wide(y)), ("test-images-idx3-ubyte", xt), ("test-labels-idx2-int", wide(yt))):
        (tmp_path/"QMNIST"/"raw"/f"qmnist-{n}.gz").write_bytes(gzip.compress(idx(a)))
    np.testing.assert_array_equal(load_images("qmnist", root=tmp_path).test.labels, yt)


def test_idx_reader_agrees_with_torchvision(tmp_path):
    reader = vision.ensure_torchvision().datasets.mnist.read_sn3_pascalvincent_tensor
    for name, a in (("bytes", pictures(5, 7)), ("ints", np.array([[1, -2, 3], [70000, 5, -6]], np.int32)), ("flat", np.arange(9, dtype=np.uint8))):
        (tmp_path/name).write_bytes(idx(a))
        np.testing.assert_array_equal(formats.read_idx(tmp_path/name), reader(str(tmp_path/name)).numpy())


@pytest.mark.parametrize("i, change, says", [
    (0, lambda r: r[:-1], "promises"), (0, lambda r: r + b"x", "promises"), (0, lambda r: b"\x89PNG" + r[4:], "not an IDX file"), (0, lambda r: b"", "not an IDX file"),
    (0, lambda r: r[:4] + b"\xff" * 12 + r[16:], "promises"), (1, lambda r: r[:8] + b"\x0a" + r[9:], "0 to 9 is allowed"), (0, lambda r: gzip.compress(r)[:-20], "damaged gzip"),
    (1, lambda r: idx(np.zeros(59, np.uint8)), "60 images but its label file 59 labels")])
def test_damaged_idx_is_one_sentence_naming_the_file(tmp_path, tables, i, change, says):
    raw, _ = mnist_like()
    raw[i] = change(raw[i])
    (tmp_path/"MNIST"/"raw").mkdir(parents=True)
    for n, r in zip(MNIST_FILES, raw): (tmp_path/"MNIST"/"raw"/n).write_bytes(r)
    with pytest.raises(CheckFailed, match=says) as error: load_images("mnist", root=tmp_path)
    assert "train-" in str(error.value) and "\n" not in str(error.value)


# --- npz

def test_medmnist_file_with_the_official_checksum(tmp_path, tables):
    np.savez_compressed(tmp_path/"bloodmnist.npz", **(a := medmnist()))
    tables("medmnist", "info.py")[""]["INFO"]["bloodmnist"]["MD5"] = md5((tmp_path/"bloodmnist.npz").read_bytes())
    b = load_images("bloodmnist", root=tmp_path, strict=True)
    assert (b.name, b.official, b.family, b.licence) == ("bloodmnist", True, "cells", "CC BY 4.0")
    for s in SPLITS:
        np.testing.assert_array_equal(b.splits[s].images, a[f"{s}_images"])
        np.testing.assert_array_equal(b.splits[s].labels, a[f"{s}_labels"][:, 0])


def test_medmnist_sizes_have_files_of_their_own_and_others_are_resized(tmp_path, tables):
    np.savez(tmp_path/"bloodmnist.npz", **medmnist(side=28)); np.savez(tmp_path/"bloodmnist_64.npz", **medmnist(side=64))
    assert [(load_images("bloodmnist", size=s, root=tmp_path).size, load_images("bloodmnist", size=s, root=tmp_path).notes["side_in_file"]) for s in (28, 64, 32)] \
        == [(28, [28, 28]), (64, [64, 64]), (32, [28, 28])]
    with pytest.raises(DataMissing, match=r"bloodmnist_128.npz .*--size 128"): load_images("bloodmnist", size=128, root=tmp_path)
    assert [r["size"] for r in list_sets(tmp_path) if r["name"] == "bloodmnist"] == [28, 64]


class Canary:
    "Writes a file if anyone unpickles it."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


def raw_npz(path, members, **how):
    with zipfile.ZipFile(path, "w", **how) as z:
        for k, v in members.items():
            if not isinstance(v, bytes): buffer = io.BytesIO(); np.save(buffer, v, allow_pickle=True); v = buffer.getvalue()
            z.writestr(f"{k}.npy", v)


def header(shape, descr="|u1", payload=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, dict(descr=descr, fortran_order=False, shape=shape))
    return buffer.getvalue() + payload


def truncated(path, keep): path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])


MALFORMED = {
    "missing key": (lambda a, c: a.pop("val_labels"), "no array 'val_labels'"),
    "float images": (lambda a, c: a.update(train_images=a["train_images"] / 255), "type float64: images must be uint8"),
    "16-bit images": (lambda a, c: a.update(test_images=a["test_images"].astype(np.uint16)), "type uint16"),
    "float labels": (lambda a, c: a.update(train_labels=a["train_labels"].astype(float)), "labels must be integers"),
    "NaN label": (lambda a, c: a.update(val_labels=np.where(np.arange(24) == 3, np.nan, 0.)), "with NaN among them"),
    "string labels": (lambda a, c: a.update(val_labels=np.array(["a"] * 24)), "labels must be integers"),
    "negative label": (lambda a, c: a.update(val_labels=np.full(24, -1)), "labels from -1"),
    "label past the classes": (lambda a, c: a.update(val_labels=np.full(24, 8)), "class 8 has no training image"),
    "huge label": (lambda a, c: a.update(train_labels=np.full(24, 2**63, np.uint64)), "9223372036854775808"),
    "gap in the classes": (lambda a, c: a.update(train_labels=np.where(a["train_labels"] == 2, 1, a["train_labels"])), "class 2 has no training image"),
    "one class": (lambda a, c: a.update({f"{s}_labels": np.zeros(24, int) for s in SPLITS}), "needs two classes"),
    "lengths differ": (lambda a, c: a.update(test_labels=a["test_labels"][:-1]), "test has 24 images but 23 labels"),
    "several labels": (lambda a, c: a.update(train_labels=np.zeros((24, 14), int)), r"shape \(24, 14\)"),
    "four channels": (lambda a, c: a.update(train_images=pictures(24, 28, 4)), r"shape \(24, 28, 28, 4\)"),
    "flat images": (lambda a, c: a.update(train_images=np.zeros((24, 784), np.uint8)), r"shape \(24, 784\)"),
    "no images": (lambda a, c: a.update(val_images=np.zeros((0, 28, 28, 3), np.uint8), val_labels=np.zeros((0, 1), int)), "at least one image"),
    "sides differ": (lambda a, c: a.update(test_images=pictures(24, 32, 3)), "training images"),
    "object labels": (lambda a, c: a.update(train_labels=np.array([Canary(c)] * 24, object)), "pickled objects"),
    "object images": (lambda a, c: a.update(test_images=np.array([Canary(c)], object)), "pickled objects"),
    "bare pickle": (lambda a, c: a.update(train_images=pickle.dumps(Canary(c))), "not a readable npz"),
    "absurd shape": (lambda a, c: a.update(train_images=header((10**9, 10**9, 3))), "declares shape"),
    "overflowing shape": (lambda a, c: a.update(train_images=header((2**32, 2**32, 2**8))), "declares shape"),
    "negative shape": (lambda a, c: a.update(train_images=header((-24, 28, 28))), "train_images"),
    "short array": (lambda a, c: a.update(train_images=header((24, 28, 28), payload=bytes(100))), "declares shape"),
    "header is code": (lambda a, c: a.update(train_images=b"\x93NUMPY\x01\x00\x50\x00" + b"__import__('os').system('true')".ljust(80)), "not a readable npz"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_npz_is_one_sentence_naming_the_file(tmp_path, case):
    change, says = MALFORMED[case]
    canary, arrays = tmp_path/"canary", medmnist()
    change(arrays, canary)
    raw_npz(tmp_path/"mine.npz", arrays)
    with pytest.raises(CheckFailed, match=says) as error: load_images(str(tmp_path/"mine.npz"))
    assert "mine.npz" in str(error.value) and "\n" not in str(error.value)
    assert not canary.exists()


def test_the_canary_sings_when_it_is_unpickled(tmp_path):
    "Otherwise the tests above would prove nothing."
    pickle.loads(pickle.dumps(Canary(tmp_path/"canary"))).close()
    assert (tmp_path/"canary").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip at all" * 100], ids=["empty", "only a magic", "text"])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path/"mine.npz").write_bytes(content)
    with pytest.raises(CheckFailed, match="mine.npz is not a readable npz"): load_images(str(tmp_path/"mine.npz"))


def test_zip_bomb_is_refused_from_its_directory(tmp_path):
    with zipfile.ZipFile(tmp_path/"bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open("train_images.npy", "w") as f:
            f.write(header((400, 1000, 1000)))
            for _ in range(400): f.write(bytes(10**6))
        for k, v in medmnist().items():
            if k != "train_images": z.writestr(f"{k}.npy", header((1,), payload=b"\0"))
    started = time.monotonic()
    with pytest.raises(CheckFailed, match="bomb.npz would unpack"): load_images(str(tmp_path/"bomb.npz"))
    assert time.monotonic() - started < 1


def test_lying_zip_directory_is_refused(tmp_path):
    "The directory declares more memory than any machine has."
    np.savez(tmp_path/"lie.npz", **medmnist())
    raw = bytearray((tmp_path/"lie.npz").read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24:at + 28] = struct.pack("<I", 2**32 - 2)
    (tmp_path/"lie.npz").write_bytes(raw)
    with pytest.raises(CheckFailed, match="lie.npz"): load_images(str(tmp_path/"lie.npz"))


def test_mutated_npz_loads_or_is_refused_but_never_crashes(tmp_path):
    np.savez_compressed(tmp_path/"good.npz", **medmnist(n=8))
    good, rng, refused = (tmp_path/"good.npz").read_bytes(), np.random.default_rng(0), 0
    for k in range(150):
        bad = bytearray(good)
        if k % 3 == 0: bad = bad[:rng.integers(1, len(bad))]
        for at in rng.integers(0, len(bad), 1 + k % 4): bad[at] ^= 1 << rng.integers(8)
        (tmp_path/"bad.npz").write_bytes(bad)
        try: formats.read_npz(tmp_path/"bad.npz")
        except CheckFailed as error: refused += 1; assert "bad.npz" in str(error)
    assert refused > 100                                                      # the checksums of a zip file notice most flips


def test_own_npz_grey_with_names(tmp_path):
    a = medmnist(channels=0, classes=3) | dict(class_names=np.array(["cat", "dog", "eel"]))
    np.savez(tmp_path/"pets & co.npz", **a)
    p = load_images(str(tmp_path/"pets & co.npz"))
    assert p.name == f"pets_co-{hashlib.sha256((tmp_path/'pets & co.npz').read_bytes()).hexdigest()[:6]}"
    assert (p.class_names, p.channels, p.official, p.size) == (["cat", "dog", "eel"], 1, False, 28)


def test_relative_path_from_the_working_directory_then_the_project(tmp_path, monkeypatch):
    (tmp_path/"settings.ini").write_text("[DEFAULT]\n"); (tmp_path/"sub"/"x").mkdir(parents=True)
    np.savez(tmp_path/"mine.npz", **medmnist(classes=3))
    monkeypatch.chdir(tmp_path/"sub"/"x")
    assert load_images("mine.npz").classes == 3
    np.savez("mine.npz", **medmnist(classes=4))
    assert load_images("mine.npz").classes == 4


# --- CIFAR-10

def cifar(folder, canary=None):
    "Six tiny batches as Python pickles and in binary form; arrays of all."
    out, arrays = {}, {}
    for i, name in enumerate(formats.CIFAR_BATCHES):
        x, y = pictures(30, 32, 3, seed=i), (np.arange(30) % 10).tolist()
        flat = x.transpose(0, 3, 1, 2).reshape(30, -1)
        extra = {"canary": Canary(canary)} if canary else {}
        out[name] = pickle.dumps(dict(data=flat, labels=y, **extra))
        out[name + ".bin"] = b"".join(bytes([l]) + f.tobytes() for l, f in zip(y, flat))
        arrays[name] = x
    return out, arrays


def tarball(members, folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}"); info.size = len(raw); tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def declare_cifar(tables, batches, tgz=b""):
    cls = tables("torchvision", "datasets/cifar.py")["CIFAR10"]
    cls.update(tgz_md5=md5(tgz), train_list=[[n, md5(batches[n])] for n in formats.CIFAR_BATCHES[:5]], test_list=[["test_batch", md5(batches["test_batch"])]])


@pytest.mark.parametrize("form", ["archive", "folder", "binary folder"])
def test_cifar_is_read_packed_unpacked_and_binary(tmp_path, tables, form):
    batches, arrays = cifar(tmp_path)
    python, binary = {n: batches[n] for n in formats.CIFAR_BATCHES}, {n + ".bin": batches[n + ".bin"] for n in formats.CIFAR_BATCHES}
    declare_cifar(tables, batches, tgz := tarball(python, "cifar-10-batches-py"))
    root, members = tmp_path/"root", binary if form == "binary folder" else python
    folder = root/("cifar-10-batches-bin" if form == "binary folder" else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    if form == "archive": (root/"cifar-10-python.tar.gz").write_bytes(tgz)
    else: [(folder/n).write_bytes(r) for n, r in members.items()]
    c = load_images("cifar10", size=32, root=root)
    assert (c.official, len(c.train), len(c.val), len(c.test), c.class_names[3]) == (form != "binary folder", 135, 15, 30, "cat")
    np.testing.assert_array_equal(c.test.images, arrays["test_batch"])
    np.testing.assert_array_equal(c.val.images, np.concatenate([arrays[n] for n in formats.CIFAR_BATCHES[:5]])[c.val.ids])


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_cifar_pickle_without_the_official_checksum_is_never_opened(tmp_path, form):
    canary, root = tmp_path/"canary", tmp_path/"root"
    python = {n: r for n, r in cifar(tmp_path, canary)[0].items() if not n.endswith(".bin")}
    (root/"cifar-10-batches-py").mkdir(parents=True)
    if form == "archive": (root/"cifar-10-python.tar.gz").write_bytes(tarball(python, "cifar-10-batches-py"))
    else: [(root/"cifar-10-batches-py"/n).write_bytes(r) for n, r in python.items()]
    with pytest.raises(CheckFailed, match="pickle without the official checksum"): load_images("cifar10", root=root)
    assert not canary.exists()


# --- folders of pictures

def picture_folder(top, layout, mode="L"):
    from PIL import Image
    for s in layout:
        for c, level in (("ant", 20), ("bee", 120), ("cat", 220)):
            (top/s/c).mkdir(parents=True)
            for i in range(10): Image.new(mode, (12 + i, 12 + i), (level,) * 3 if mode == "RGB" else level).save(top/s/c/f"{i}.png")


@pytest.mark.parametrize("layout, sizes", [([""], (21, 3, 6)), (["train", "test"], (27, 3, 30)), (SPLITS, (30, 30, 30))])
def test_image_folders(tmp_path, layout, sizes):
    picture_folder(tmp_path/"zoo", layout)
    z = load_images(str(tmp_path/"zoo"), size=16)
    assert tuple(len(s) for s in z.splits.values()) == sizes and z.class_names == ["ant", "bee", "cat"] and z.channels == 1
    for s in z.splits.values(): np.testing.assert_array_equal(s.images[:, 8, 8, 0], np.array([20, 120, 220])[s.labels])
    assert len(set(z.train.ids.tolist())) == len(z.train)
    assert z.name.startswith("zoo-") and load_images(str(tmp_path/"zoo"), size=16).name == z.name
    (tmp_path/"zoo"/layout[0]/"ant"/"0.png").unlink()
    assert load_images(str(tmp_path/"zoo"), size=16).name != z.name


def test_one_coloured_picture_makes_the_set_coloured(tmp_path):
    from PIL import Image
    picture_folder(tmp_path/"zoo", [""])
    Image.new("RGBA", (9, 9), (255, 0, 0, 255)).save(tmp_path/"zoo"/"ant"/"red.png")
    z = load_images(str(tmp_path/"zoo"))
    everything = np.concatenate([s.images for s in z.splits.values()])
    assert z.channels == 3 and ([255, 0, 0] == everything[:, 5, 5]).all(1).sum() == 1


@pytest.mark.parametrize("change, says", [
    (lambda z: (z/"bee"/"3.png").write_bytes(b"\x89PNG\r\n\x1a\nno"), "zoo/bee/3.png is not a readable picture"),
    (lambda z: truncated(z/"bee"/"9.png", .6), "zoo/bee/9.png is not a readable picture"),
    (lambda z: [p.unlink() for p in (z/"cat").iterdir()], "class 'cat' has no training picture"),
    (lambda z: [shutil.rmtree(z/c) for c in ("cat", "bee")], "has 1 class folders"),
    (lambda z: (z/"test"/"ant").mkdir(parents=True), "none named train")])
def test_folder_mistakes_are_named(tmp_path, change, says):
    picture_folder(tmp_path/"zoo", [""])
    change(tmp_path/"zoo")
    with pytest.raises(CheckFailed, match=says): load_images(str(tmp_path/"zoo"))


# --- names, official and not

@pytest.mark.parametrize("name", ["../bloodmnist", "mnist/../../x", "/etc/passwd", "..", ".", "", "mnist\0", "bloodmnist.npz", "MNIST/raw"])
@pytest.mark.parametrize("call", [get, remove, catalogue.entry])
def test_a_name_with_path_parts_is_no_name(tmp_path, name, call):
    with pytest.raises(UsageError, match="is not known"): call(name) if call is catalogue.entry else call(name, tmp_path)


@pytest.mark.parametrize("name, error, says", [
    ("mnits", UsageError, "did you mean 'mnist'"), ("chestmnist", UsageError, "14 labels per image"), ("organmnist3d", UsageError, "volumes"),
    ("nowhere/x.npz", DataMissing, "no file or folder nowhere/x.npz"), ("", UsageError, "is not known")])
def test_unusable_names(tmp_path, monkeypatch, name, error, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says) as e: load_images(name, root=tmp_path)
    assert "\n" not in str(e.value)


def test_unofficial_file_is_used_under_another_name_or_refused(tmp_path, capsys):
    np.savez(tmp_path/"bloodmnist.npz", **medmnist())
    sha = hashlib.sha256((tmp_path/"bloodmnist.npz").read_bytes()).hexdigest()
    b = load_images("bloodmnist", root=tmp_path)
    err = capsys.readouterr().err
    assert b.name == f"bloodmnist-unofficial-{sha[:6]}" and err.count("\n") == 1 and b.name in err
    assert b.checksums == {"bloodmnist.npz": sha} and b.provenance["official"] is False
    with pytest.raises(CheckFailed, match="strict"): load_images("bloodmnist", root=tmp_path, strict=True)


def test_provenance_is_json_without_paths_of_this_machine(tmp_path):
    np.savez(tmp_path/"mine.npz", **medmnist()); picture_folder(tmp_path/"zoo", [""])
    for name in ("digits", str(tmp_path/"mine.npz"), str(tmp_path/"zoo")):
        text = json.dumps(load_images(name).provenance)
        assert str(tmp_path) not in text and str(Path.home()) not in text and load_images(name).provenance == json.loads(text)


def test_digits_split_does_not_depend_on_anything_but_its_seed():
    a, b, c = load_images("digits"), load_images("digits", size=16), load_images("digits", split_seed=1)
    np.testing.assert_array_equal(a.val.ids, b.val.ids)
    assert a.val.ids.tolist() != c.val.ids.tolist()
    for s in SPLITS:                                                          # every class in proportion, to one picture
        share = np.array(a.splits[s].counts(10)) / len(a.splits[s])
        np.testing.assert_allclose(share, np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) / 1797, atol=1.5 / len(a.splits[s]))


def test_roots_in_order(tmp_path, monkeypatch, tiny_mnist):
    one, two = tmp_path/"one", tmp_path/"two"
    monkeypatch.setenv("GEONB_DATA", f"{one}{os.pathsep}{two}")
    assert store.data_roots()[:2] == [one, two] and store.data_roots(tmp_path) == [tmp_path]
    with pytest.raises(DataMissing) as e: load_images("mnist")
    assert str(one) in str(e.value) and str(two) in str(e.value) and "geonb data get mnist" in str(e.value)
    (two/"mnist").mkdir(parents=True)
    for name, raw in tiny_mnist[0].items(): (two/"mnist"/name).write_bytes(raw)
    assert load_images("mnist").official and not one.exists()


def test_listing_imports_nothing_heavy(tmp_path):
    code = "import sys, geonb.data as d; d.list_sets(sys.argv[1]); print([m for m in ('torch', 'torchvision', 'medmnist', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- downloads, from a server on this machine

class Server(http.server.BaseHTTPRequestHandler):
    "Serves `content`; `mishap` names paths whose connection is cut midway, always or once."
    content, mishap, asked = {}, {}, []
    def log_message(self, *a): pass
    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        raw = self.content.get(self.path)
        if raw is None: return self.send_error(404, "Not Found")
        start = int(r.removeprefix("bytes=").rstrip("-")) if (r := self.headers.get("Range")) and self.ranges else 0
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.send_header("Content-Length", str(len(raw) - start)); self.end_headers()
        cut = self.mishap.get(self.path)
        if cut == "once": self.mishap[self.path] = None
        self.wfile.write(raw[start:len(raw) // 2] if cut else raw[start:])
        if cut: self.wfile.flush(); self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(monkeypatch):
    handler = type("H", (Server,), dict(content={}, mishap={}, asked=[], ranges=True))
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    monkeypatch.setenv("GEONB_MIRROR", f"http://127.0.0.1:{s.server_port}"); monkeypatch.setenv("GEONB_OFFLINE", "0")
    yield handler
    s.shutdown(); s.server_close()


@pytest.fixture
def blood(tables, server):
    "A tiny blood-cell file on the server, declared official."
    buffer = io.BytesIO()
    np.savez(buffer, **medmnist(n=80))
    tables("medmnist", "info.py")[""]["INFO"]["bloodmnist"]["MD5"] = md5(buffer.getvalue())
    server.content["/bloodmnist.npz"] = buffer.getvalue()
    return buffer.getvalue()


def test_get_brings_the_official_files_and_load_images_calls_it(tmp_path, tiny_mnist, server, capsys):
    server.content.update({f"/MNIST/raw/{n}": r for n, r in tiny_mnist[0].items()})
    m = load_images("mnist", root=tmp_path)
    assert m.official and [p for p in files_below(tmp_path) if p.endswith("gz")] == sorted(f"MNIST/raw/{n}" for n in MNIST_FILES)
    assert files_below(tmp_path) == ["MNIST", "MNIST/raw", *sorted(f"MNIST/raw/{n}" for n in MNIST_FILES)]
    asked = len(server.asked)
    assert [p.name for p in get("mnist", tmp_path)] == MNIST_FILES and len(server.asked) == asked      # nothing is fetched twice
    assert "mnist:" in capsys.readouterr().err                                # the bar
    assert check("mnist", tmp_path)["official"] and remove("mnist", tmp_path) == [f"MNIST/raw/{n}" for n in MNIST_FILES]
    assert files_below(tmp_path) == []


def test_a_flat_mirror_works_too(tmp_path, blood): assert get("bloodmnist", tmp_path)[0].read_bytes() == blood


@pytest.mark.parametrize("trouble, error, says", [
    ("wrong checksum", CheckFailed, "nothing was kept"), ("404", DataMissing, "404 Not Found"), ("dropped", DataMissing, "the connection ended after"), ("offline", DataMissing, "no server can be reached")])
def test_a_failed_download_leaves_nothing(tmp_path, blood, server, monkeypatch, trouble, error, says):
    if trouble == "wrong checksum": server.content["/bloodmnist.npz"] = blood[:-1] + b"x"
    if trouble == "404": server.content.clear()
    if trouble == "dropped": server.ranges = False; server.mishap["/bloodmnist.npz"] = "always"
    if trouble == "offline": monkeypatch.delenv("GEONB_MIRROR")
    started = time.monotonic()
    with pytest.raises(error, match=says) as e: load_images("bloodmnist", root=tmp_path/"root")
    assert time.monotonic() - started < 5 and "\n" not in str(e.value)
    assert files_below(tmp_path/"root") == []


def test_a_dropped_connection_is_resumed_where_the_server_can(tmp_path, blood, server):
    server.mishap["/bloodmnist.npz"] = "once"
    assert get("bloodmnist", tmp_path)[0].read_bytes() == blood
    assert [r for p, r in server.asked if p == "/bloodmnist.npz"] == [None, f"bytes={len(blood) // 2}-"]


def test_a_dropped_connection_is_restarted_where_it_cannot(tmp_path, blood, server):
    server.ranges, server.mishap["/bloodmnist.npz"] = False, "once"
    assert get("bloodmnist", tmp_path)[0].read_bytes() == blood


def test_a_mute_name_server_does_not_hold_the_user(tmp_path, tables, monkeypatch):
    def mute(*a, **k): over.wait(30); raise OSError("no answer")   # the thread that asked ends with the test
    over = threading.Event(); monkeypatch.setenv("GEONB_OFFLINE", "0"); monkeypatch.setattr(socket, "create_connection", mute)
    started = time.monotonic()
    try:
        with pytest.raises(DataMissing, match="no server can be reached"): get("mnist", tmp_path/"root")
    finally: over.set()
    assert time.monotonic() - started < 5 and files_below(tmp_path/"root") == []


def test_offline_switch_touches_no_socket(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    with pytest.raises(DataMissing, match="GEONB_OFFLINE is set"): load_images("mnist", root=tmp_path)


def test_killed_download_is_swept_up_by_the_next(tmp_path, blood):
    dead = subprocess.Popen([sys.executable, "-c", ""]); dead.wait()
    (tmp_path/f".bloodmnist.npz.{dead.pid}.1.part").write_bytes(b"half")
    get("bloodmnist", tmp_path)
    assert files_below(tmp_path) == ["bloodmnist.npz"]


def test_two_downloads_at_once_do_not_disturb_each_other(tmp_path, blood):
    out = []
    threads = [threading.Thread(target=lambda: out.append(get("bloodmnist", tmp_path, progress=False)[0].read_bytes())) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert out == [blood] * 4 and files_below(tmp_path) == ["bloodmnist.npz"]


def test_a_file_of_the_user_is_neither_overwritten_nor_removed(tmp_path, blood):
    (tmp_path/"bloodmnist.npz").write_bytes(b"years of work")
    with pytest.raises(CheckFailed, match="move it away"): get("bloodmnist", tmp_path)
    with pytest.raises(CheckFailed, match="delete it yourself"): remove("bloodmnist", tmp_path)
    assert (tmp_path/"bloodmnist.npz").read_bytes() == b"years of work"


def test_remove_does_not_follow_a_link_out_of_the_root(tmp_path, blood):
    get("bloodmnist", tmp_path/"elsewhere"); (tmp_path/"root").mkdir()
    (tmp_path/"root"/"bloodmnist.npz").symlink_to(tmp_path/"elsewhere"/"bloodmnist.npz")
    with pytest.raises(CheckFailed, match="leads out of the data root"): remove("bloodmnist", tmp_path/"root")
    assert (tmp_path/"elsewhere"/"bloodmnist.npz").exists()


def test_download_goes_to_the_first_root_that_can_be_written(tmp_path, blood, monkeypatch):
    (tmp_path/"file").write_text("not a folder")
    monkeypatch.setenv("GEONB_DATA", str(tmp_path/"file"/"below"))
    assert get("bloodmnist")[0].is_relative_to(tmp_path/"cache")


# --- batches against slow loops

def test_exact_augmentation_against_a_slow_loop():
    import torch
    from geonb.core.seeds import stream
    from geonb.data import Resident, Split, augment_for
    split = Split(pictures(41, 12, 3), np.arange(41) % 4)
    mean, std = np.array([.5, .4, .3]), np.array([.2, .3, .25])
    spec, seed, epoch = augment_for("cells"), 11, 2
    r = Resident(split, mean, std, batch_size=8, seed=seed, augment=spec)
    assert r.steps == 5                                                       # 41 = 5 * 8 + 1, and one sample is no batch
    order, table = stream(seed, "order", epoch).permutation(41), stream(seed, "augment", epoch).random((41, 10), dtype=np.float32)
    for i in (4, 0):
        b = r.batch(epoch, i)
        np.testing.assert_array_equal(b["index"], order[i * 8:(i + 1) * 8])
        for x, y, n in zip(b["x"], b["y"], b["index"].tolist()):
            _, dy, dx, hf, vf, q = table[n, :6]
            p = split.images[n]
            p = p[::-1] if vf >= .5 else p
            p = p[:, ::-1] if hf >= .5 else p
            p = np.rot90(p, int(q * 4))
            dy, dx = int(dy * 5) - 2, int(dx * 5) - 2
            p = np.pad(p, ((2, 2), (2, 2), (0, 0)), mode="edge")[2 - dy:14 - dy, 2 - dx:14 - dx]
            np.testing.assert_allclose(x.numpy().transpose(1, 2, 0), (p / 255 - mean) / std, atol=1e-5)
            assert y == n % 4


def test_warp_against_scipy():
    import torch
    from geonb.data.augment import warp
    from scipy.ndimage import affine_transform
    x = pictures(3, 16).astype(np.float32)
    angle, dy, dx = np.array([.17, -.1, 0.]), np.array([1.5, -2, .25]), np.array([-.75, 0, 2])
    out = warp(torch.from_numpy(x)[:, None], *(torch.tensor(v, dtype=torch.float32) for v in (angle, dy, dx)), "black")[:, 0].numpy()
    for k in range(3):
        c, s = np.cos(angle[k]), np.sin(angle[k])
        back = np.array([[c, s], [-s, c]])                                    # output (row, column) to source; counter-clockwise on the screen
        centre = np.array([7.5, 7.5])
        expected = affine_transform(x[k], back, centre - back @ (centre + [dy[k], dx[k]]), order=1, mode="grid-constant", cval=0)
        np.testing.assert_allclose(out[k], expected, atol=.05)                # of 255


def test_batches_do_not_depend_on_what_was_asked_before():
    from geonb.data import Resident, Split, augment_for
    split = Split(pictures(50), np.arange(50) % 10)
    make = lambda: Resident(split, [.5], [.3], batch_size=16, seed=3, augment=augment_for("digits", erase=.3))
    first, second = make(), make()
    wanted = {(e, i): first.batch(e, i)["x"].clone() for e in range(3) for i in range(first.steps)}
    for e, i in np.random.default_rng(0).permutation(sorted(wanted)):
        list(second.eval_batches(7))
        assert second.batch(int(e), int(i))["x"].equal(wanted[e, i])


@pytest.mark.parametrize("kind", ["none", "shift", "flip", "exact", "affine"])
def test_everything_of_a_batch_lies_on_the_device(kind):
    "On torch's device without memory, an operation that mixes devices raises."
    from geonb.data import Resident, Split, augment_for
    r = Resident(Split(pictures(50, 28, 3), np.arange(50) % 10), [.5] * 3, [.3] * 3, batch_size=16, augment=augment_for("unknown", kind, erase=.3), device="meta")
    for b in (r.batch(1, 2), next(r.eval_batches())): assert {v.device.type for v in b.values()} == {"meta"}


# --- real images

REAL = dict(mnist=dict(train=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], test=[980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
            blood=dict(train=[852, 2181, 1085, 2026, 849, 993, 2330, 1643], val=[122, 312, 155, 290, 122, 143, 333, 235], test=[244, 624, 311, 579, 243, 284, 666, 470]))
state = lambda folder: {p.relative_to(folder): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def real(geonb_data): return geonb_data                                       # read before the autouse fixture hides the variable


def test_official_mnist(real):
    before = state(real)
    m = load_images("mnist", root=real, strict=True, download=False)
    assert (m.name, m.official, len(m.train), len(m.val)) == ("mnist", True, 55_000, 5_000)
    assert (np.array(m.train.counts(10)) + m.val.counts(10)).tolist() == REAL["mnist"]["train"] and m.test.counts(10) == REAL["mnist"]["test"]
    whole = np.empty(60_000, int)
    whole[m.train.ids], whole[m.val.ids] = m.train.labels, m.val.labels
    assert whole[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert state(real) == before


def test_real_blood_cells_never_pass_for_the_official_file(real, tmp_path, capsys):
    shutil.copy(real/"bloodmnist_rebuilt_28.npz", tmp_path/"bloodmnist.npz")
    b = load_images("bloodmnist", root=tmp_path, download=False)
    assert (b.name, b.official) == ("bloodmnist-unofficial-5387eb", False) and "not the official checksum" in capsys.readouterr().err
    assert {s: b.splits[s].counts(8) for s in SPLITS} == REAL["blood"]
    np.testing.assert_allclose(b.mean, [.7943, .6597, .6960], atol=5e-5)
    np.testing.assert_allclose(b.std, [.2156, .2415, .1180], atol=5e-5)
    with pytest.raises(CheckFailed): load_images("bloodmnist", root=tmp_path, download=False, strict=True)
    mine = load_images(str(real/"bloodmnist_rebuilt_28.npz"))
    assert mine.name == "bloodmnist_rebuilt_28-5387eb" and mine.train.labels.tolist() == b.train.labels.tolist()


@pytest.mark.slow
def test_the_whole_of_cifar10_from_the_command_line(real, tmp_path, capsys):
    "Every picture: the SHA-256 the data's own description gives for the decoded arrays, and a balanced validation part."
    from geonb.app.cli import command
    assert command(["data", "convert", "cifar10-jpeg", str(real/"cifar10_jpeg.npz"), str(tmp_path/"cifar.npz"), "--json"]) == 0
    c = load_images(json.loads(capsys.readouterr().out)["file"], size=32)
    assert {s: set(p.counts(10)) for s, p in c.splits.items()} == dict(train={4500}, val={500}, test={1000})
    assert hashlib.sha256(c.test.images.tobytes()).hexdigest() == "b7018a062865e9348a704e72416eb53c816b43cc8ac42ab43276a2b967508ab6"


def test_jpegs_are_converted_from_the_command_line(tmp_path, capsys, monkeypatch):
    "A file of the same format, made here: six colours per class; then the same file with a picture cut short."
    from PIL import Image
    from geonb.app.cli import command
    monkeypatch.setenv("GEONB_DATA", str(tmp_path)); labels, files = np.arange(60, dtype=np.uint8) % 10, []
    for i in range(60): b = io.BytesIO(); Image.new("RGB", (32, 32), (4 * i, 255 - 4 * i, 20 * (i % 10))).save(b, "JPEG", quality=90); files.append(b.getvalue())
    head = os.path.commonprefix(files); cut = np.cumsum([0] + [len(f) - len(head) for f in files]).astype(np.uint32)
    body = dict(data=np.frombuffer(b"".join(f[len(head):] for f in files), np.uint8), offsets=cut, labels=labels)
    a = dict(jpeg_header=np.frombuffer(head, np.uint8), label_names=np.array(list("abcdefghij"))) | {f"{s}_{k}": v for s in ("train", "test") for k, v in body.items()}
    np.savez(tmp_path/"cifar10_jpeg.npz", **a)
    def call(*args): code = command(["data", "convert", "cifar10-jpeg", *map(str, args)]); return code, *capsys.readouterr()
    code, out, err = call(tmp_path/"out.npz", "--val", 15, "--json"); assert (code, err) == (0, "") and json.loads(out)["val"] == 15
    c = load_images(str(tmp_path/"out.npz"), size=32)
    assert (len(c.train), c.val.counts(10), c.class_names) == (45, [1] * 5 + [2] * 5, list("abcdefghij")) and c.val.labels.tolist() == [*range(5, 10), *range(10)]
    whole = np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in files]); np.testing.assert_array_equal(c.test.images, whole); np.testing.assert_array_equal(c.val.images, whole[45:])
    assert call(tmp_path/"cifar10_jpeg.npz", tmp_path/"small.npz", "--val=15", "--size=8")[0] == 0 and load_images(str(tmp_path/"small.npz"), size=None).size == 8
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = call(tmp_path/"out.npz"); assert (code, out) == (2, "") and "a new file" in err
    code, out, err = call(tmp_path/"new.npz"); assert (code, out) == (2, "") and "val=5000 is not allowed: 1 to 59" in err
    np.savez(tmp_path/"cut.npz", **a | dict(test_data=a["test_data"][:-20], test_offsets=np.r_[cut[:-1], cut[-1] - 20]))
    np.savez(tmp_path/"few.npz", **a | dict(test_labels=labels[:-1])); np.savez(tmp_path/"eleven.npz", **a | dict(train_labels=labels + 1)); (tmp_path/"text.npz").write_text("x")
    for name, said in {"cut": "cut.npz: picture 59 cannot be read", "few": "few.npz: test has 60 pictures but 59 labels", "eleven": "train_labels has labels from 0 to 10", "text": "not a readable npz", "out": "no array 'jpeg_header'"}.items():
        code, out, err = call(tmp_path/f"{name}.npz", tmp_path/"new.npz", "--val", 15); assert (code, out) == (3, "") and said in err and err.count("\n") == 1, err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "cut.npz", "few.npz", "eleven.npz", "text.npz"])


def test_cifar10_from_jpegs(real, tmp_path):
    "Pixels as the data's own description gives them: channel means of the training pictures at 32 px, classes in the official order."
    from geonb.data import convert_cifar10_jpeg
    from geonb.data.convert import jpeg_pictures
    a = formats.npz_arrays(real/"cifar10_jpeg.npz", ["jpeg_header", "test_data", "test_offsets", "test_labels", "train_labels"])
    x = jpeg_pictures(a["jpeg_header"], a["test_data"], a["test_offsets"][:1001], 32, "cifar10_jpeg.npz")
    assert x.shape == (1000, 32, 32, 3) and a["test_labels"][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1] and a["train_labels"][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    np.testing.assert_allclose(x.mean((0, 1, 2)) / 255, [.4913, .4821, .4465], atol=.02)      # of other pictures, hence loosely: standard error of 1,000 picture means
    small = {k: a[k] for k in ("jpeg_header",)} | {f"{s}_{k}": v for s in ("train", "test") for k, v in dict(data=a["test_data"], offsets=a["test_offsets"][:201], labels=a["test_labels"][:200]).items()}
    np.savez(tmp_path/"some.npz", **small)
    c = load_images(str(convert_cifar10_jpeg(tmp_path/"some.npz", tmp_path/"cifar.npz", size=32, val=50)), size=32)
    np.testing.assert_array_equal(c.test.images, x[:200])
    assert not c.official and not c.name.startswith("cifar10")


# --- synth: drawn, not read

@pytest.mark.parametrize("seed", [13, pytest.param(14, marks=pytest.mark.slow)])
def test_textures_can_be_learnt_but_not_at_once(seed):
    "Two epochs of the smallest network know most of the test pictures and not all."
    import torch
    from geonb.chromatic.networks import make_net
    from geonb.core.seeds import torch_stream
    c = load_images("synth", size=None); mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (c.mean, c.std))
    x, tx = (((torch.from_numpy(s.images).permute(0, 3, 1, 2) / 255 - mean) / std).contiguous(memory_format=torch.channels_last) for s in (c.train, c.test))
    y, ty = (torch.from_numpy(s.labels) for s in (c.train, c.test))
    net = make_net("tiny8", seed=seed).to(memory_format=torch.channels_last); sgd = torch.optim.SGD(net.parameters(), .1, .9, weight_decay=5e-4)
    for epoch in range(2):
        sgd.param_groups[0]["lr"] = .1 / (1 + epoch)
        for i in torch.randperm(len(x), generator=torch_stream(seed, "order", epoch)).split(128): sgd.zero_grad(); torch.nn.functional.cross_entropy(net(x[i]), y[i]).backward(); sgd.step()
    with torch.no_grad(): accuracy = (net.eval()(tx).argmax(1) == ty).float().mean().item()
    assert .6 <= accuracy <= .95, accuracy
