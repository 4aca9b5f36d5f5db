"Populations made here, as arrays and as folders, for the tests of chromatic."
import json
from pathlib import Path

import numpy as np

from geonb.chromatic.folder import Probes, read_probes, write_distance, write_index, write_logits, write_manifest
from geonb.core.atomic import write_json
from geonb.core.seeds import stream

CONFIG, SPLIT = "c" * 64, "5" * 64


def synthetic_probes(members=5, examples=60, classes=4, seed=0) -> Probes:
    "Members that know most of the answers, each on its own noise; probe, calibration and test set of the same size."
    rng = stream(seed, "synthetic probes"); y = np.tile(np.arange(classes), -(-examples // classes))[:examples]
    z = [(1.6 * np.eye(classes)[y] + .8 * rng.normal(size=(examples, classes)) + rng.normal(size=(members, examples, classes))).astype(np.float32) for _ in range(3)]
    return Probes(tuple(range(13, 13 + members)), z[0], y, z[1], y, z[2], y, members=tuple(dict(seed=13 + s, config=CONFIG, host="ab"[s % 2]) for s in range(members)), class_names=tuple(f"class {c}" for c in range(classes)))


def plain_folder(path, p: Probes, ending=".npz", labels=True):
    "Logits of the probe, as somebody else might have left them."
    path = Path(path); path.mkdir(parents=True, exist_ok=True)
    for seed, z in zip(p.seeds, p.probe):
        f = path/f"probe_logits_seed{seed}{ending.removeprefix('nested')}"
        if ending == ".npz": np.savez(f, logits=z)
        elif ending == ".npy": np.save(f, z)
        else:
            import torch
            torch.save(torch.tensor(z) if ending == ".pt" else {"seed": seed, "probe": {"logits": torch.tensor(z), "bias": torch.zeros(3, 3)}}, f)
    if labels: np.save(path/"labels.npy", p.labels)
    return path


def artifacts(path, p: Probes, configs=None, distances=("prob_mse_T1",)):
    "What a run leaves, without its reports."
    a = Path(path)/"artifacts"; ids = np.arange(p.N)
    for s, seed in enumerate(p.seeds):
        for role in ("probe", "calib", "test"): write_logits(a/"probes"/f"{role}_logits_seed{seed}.npz", getattr(p, role)[s])
    write_json(a/"split.json", dict(schema=1, sha256=SPLIT, probe=ids.tolist(), calib=(ids + p.N).tolist()))
    write_index(a/"probes", "made here", SPLIT, p.class_names, {r: dict(ids=ids + k * p.N, labels=p.labels) for k, r in enumerate(("probe", "calib", "test"))},
                [m | dict(config=c) for m, c in zip(p.members, configs or [CONFIG] * p.S)])
    from geonb.chromatic.distances import distance_matrix
    q = read_probes(a, allow_mixed=True, least=1)
    for name in distances if q.S > 1 else (): write_distance(a/"embeddings", name, distance_matrix(q.probe, name), q.files)
    write_manifest(a, "made here"); return a


def edited(path, change):
    "Change a JSON file by a function of its content."
    found = json.loads(Path(path).read_text()); change(found); Path(path).write_text(json.dumps(found))
