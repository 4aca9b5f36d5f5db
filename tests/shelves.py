"Bundles in miniature: as much as lists, comparisons and checks read, and nothing that was trained."
import numpy as np

from geonb.core.atomic import sha256, write_json, write_sums
from geonb.core.run import history_csv

LABELS = np.random.default_rng(0).integers(4, size=300)


def finished(root, run_id, seed=0, skill=.8, dataset="digits", laboratory="pentachora", metric="test accuracy", epochs=6, started=None, members=0, labels=LABELS, columns=(), answers=True, data=None, **parameters):
    "A finished bundle that verifies; `skill` is the share of test samples it gets right."
    p = root/laboratory/dataset/run_id; p.mkdir(parents=True); rng = np.random.default_rng([seed, int(1000*skill), len(labels)]); C = max(labels, default=0) + 1
    def logits(): right = rng.random(len(labels)) < skill; return 3*np.eye(C, dtype=np.float32)[np.where(right, labels, (labels + 1) % C)] + rng.normal(0, .1, (len(labels), C)).astype(np.float32)
    z = np.stack([logits() for _ in range(members)]) if members else logits(); accuracy = float(((z.mean(0) if members else z).argmax(-1) == labels).mean())
    write_json(p/"config.json", dict(schema=1, laboratory=laboratory, dataset=dataset, parameters=dict(seed=seed, dataset=dataset, epochs=epochs, **parameters), data=data or {}, model=dict(kind="line", class_names=[f"class {c}" for c in range(C)])))
    history = [{"epoch": e, "stage": "train", "loss/total": 1/e + .1*seed, "val/accuracy": accuracy*(1 - .5**e), "val/confusion": [[1]], **{c: e + seed for c in columns}} for e in range(1, epochs + 1)]
    write_json(p/"history.json", history); (p/"history.csv").write_text(history_csv(history))
    if answers: np.savez(p/"predictions_test.npz", logits=z, labels=labels)
    started = started or f"2026-01-{1 + seed % 28:02d}T00:00:00Z"
    write_json(p/"manifest.json", dict(run_id=run_id, laboratory=laboratory, dataset=dataset, seed=seed, started=started, finished=started.replace("T00:00:00", "T00:02:30"), headline={metric: accuracy}, chosen=dict(metric="val/accuracy", epoch=epochs, value=accuracy),
                                       test=dict(accuracy=accuracy, accuracy_low=accuracy - .05, accuracy_high=accuracy + .05), environment=dict(torch="2", threads=1), code="c0de", device="cpu", config_sha256=sha256(p/"config.json")))
    write_sums(p); return p


def partial(root, run_id, epochs=3, dataset="digits", laboratory="pentachora", **parameters):
    "A run that was killed after some epochs."
    p = root/laboratory/dataset/f"{run_id}.partial"; p.mkdir(parents=True)
    write_json(p/"run.json", dict(run_id=run_id, laboratory=laboratory, dataset=dataset, started="2026-02-01T00:00:00Z", parameters=dict(seed=0, dataset=dataset, epochs=9, **parameters)))
    write_json(p/"writer.json", dict(pid=2**22 + 1, started=0.)); write_json(p/"history.json", [{"epoch": e, "val/accuracy": .1*e, "loss/total": 1/e} for e in range(1, epochs + 1)]); return p
