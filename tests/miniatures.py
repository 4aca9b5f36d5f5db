"""Four small tasks that use everything `fit` offers; as a script, the warm process that trains them in forks which may be killed (see warm.py).

Two pathways with a controller; a quantiser whose codebook moves without gradients; two stages with a frozen part;
members of a population. Each is a second's work and none is special to a laboratory.
"""
import os
import signal
import time

import torch
from torch import nn

from geonb.core.callbacks import usual_callbacks
from geonb.core.seeds import stream, torch_seed, torch_stream
from geonb.core.training import Stage, Task, fit, task_state
from warm import Count, answer, die, die_at_call, disk_full, flat, serve, timeless

FEATURES, CLASSES = 6, 3


class Clouds:
    "Gaussian clouds, one per class; a batch is a pure function of its place."
    def __init__(self, name, steps, size=16, labels=True): self.name, self.steps, self.size, self.labels = name, steps, size, labels
    def batch(self, epoch, i):
        g = torch_stream(11, self.name, epoch, i); y = torch.randint(CLASSES, (self.size,), generator=g)
        x = torch.randn(self.size, FEATURES, generator=g) + 1.2*torch.eye(CLASSES, FEATURES)[y]
        return {"x": x, "y": y} if self.labels else {"x": x}


VALIDATION = Clouds("validation", 1, 96).batch(0, 0)


def body(out, norm=True):
    "A little network with dropout (the global random stream) and batch statistics (buffers)."
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(.3), nn.Linear(12, out))


class Weights(nn.Module):
    "The controller's parameters: one log weight for each pathway."
    def __init__(self): super().__init__(); self.log = nn.Parameter(torch.zeros(2))


class Pathways(Task):
    "Two pathways, clipped apart; a controller with its own optimiser pulls their gradient norms towards a running target."
    stages, monitor, ema_decay = (Stage("train", 5),), ("val/error", "min"), .8
    clips = {"left": .5, "right": .05}
    def __init__(self, seed=0):
        super().__init__(); torch.manual_seed(torch_seed(seed, "pathways"))
        self.modules |= {"left": body(CLASSES), "right": body(CLASSES, norm=False), "controller": Weights()}
        self.streams["data"] = Clouds("pathways", 6)
        self.optimisers["left"] = torch.optim.AdamW(self.modules["left"].parameters(), lr=.01)
        self.optimisers["right"] = torch.optim.SGD(self.modules["right"].parameters(), lr=.05, momentum=.9)
        self.optimisers["control"] = torch.optim.Adam(self.modules["controller"].parameters(), lr=.05)
        self.schedules["left"] = lambda i, n: .01*(1 - i/n)
        self.target = {"norm": torch.tensor(1.0), "seen": 0}
    def state(self): return {"target": self.target}
    def load_state(self, s): self.target = s["target"]
    def on_epoch(self, t): self.weights["agree"] = min(1.0, .25*t.epoch)
    def before_step(self, t): self.weights |= dict(zip(("left", "right"), self.modules["controller"].log.detach().exp().tolist()))
    def loss(self, batches):
        b = batches["data"]; l, r = self.modules["left"](b["x"]), self.modules["right"](b["x"]); ce = nn.functional.cross_entropy
        return {"left": ce(l, b["y"]), "right": ce(r, b["y"]), "agree": (l - r).pow(2).mean()}
    def after_backward(self, t):
        norms = {k: nn.utils.clip_grad_norm_(self.modules[k].parameters(), c) for k, c in self.clips.items()}
        both = torch.stack(list(norms.values()))
        self.target = {"norm": .9*self.target["norm"] + .1*both.mean(), "seen": self.target["seen"] + 1}   # before the guard has looked
        self.modules["controller"].log.grad = (both/self.target["norm"]).log().clamp(-1, 1)
        return norms | {"control": self.modules["controller"].log.grad.norm()}
    def evaluate(self):
        p = self.modules["left"](VALIDATION["x"]) + self.modules["right"](VALIDATION["x"])
        return {"val/error": float((p.argmax(1) != VALIDATION["y"]).double().mean())}


class Codebook(nn.Module):
    "Codes as buffers, moved by averages of what is assigned to them."
    def __init__(self, codes=8, dim=4):
        super().__init__()
        for name, x in {"codes": torch.zeros(codes, dim), "counts": torch.ones(codes), "sums": torch.zeros(codes, dim)}.items(): self.register_buffer(name, x)
        self.register_buffer("used", torch.zeros(codes, dtype=torch.long), persistent=False)   # not in the state_dict, and yet state
    def start(self, z): self.codes.copy_(z[:len(self.codes)]); self.sums.copy_(self.codes); self.counts.fill_(1)
    def forward(self, z):
        index = torch.cdist(z, self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                hot = nn.functional.one_hot(index, len(self.codes)).to(z.dtype)
                self.counts.lerp_(hot.sum(0), .2); self.sums.lerp_(hot.T @ z, .2); self.used += hot.sum(0).long()
                self.codes.copy_(self.sums/self.counts.clamp_min(1e-3)[:, None])
        return self.codes[index], index
    def reset(self, z, g):
        "Put dead codes onto latents of this batch; returns how many."
        dead = (self.counts < .5).nonzero().flatten()
        if len(dead):
            rows = torch.from_numpy(g.choice(len(z), len(dead), replace=False))
            self.codes[dead] = z[rows]; self.sums[dead] = z[rows]; self.counts[dead] = 1
        return len(dead)


class Quantiser(Task):
    "Encoder, codebook with a data-dependent start and resets of dead codes, decoder."
    stages, clip, ema_decay = (Stage("train", 5),), 1.0, .9
    def __init__(self, seed=0):
        super().__init__(); torch.manual_seed(torch_seed(seed, "quantiser")); self.seed, self.resets = seed, 0
        self.modules |= {"encoder": body(4), "book": Codebook(), "decoder": nn.Sequential(nn.Dropout(.1), nn.Linear(4, FEATURES))}
        self.streams["data"] = Clouds("quantiser", 6, labels=False)
        self.optimisers["adam"] = torch.optim.Adam([*self.modules["encoder"].parameters(), *self.modules["decoder"].parameters()], lr=.02)
    def state(self): return {"resets": self.resets}
    def load_state(self, s): self.resets = s["resets"]
    @torch.no_grad()
    def on_start(self, batches): self.modules["book"].start(self.modules["encoder"](batches["data"]["x"]))
    def loss(self, batches):
        x = batches["data"]["x"]; self.z = self.modules["encoder"](x); q, _ = self.modules["book"](self.z)
        return {"reconstruction": (self.modules["decoder"](self.z + (q - self.z).detach()) - x).pow(2).mean(), "commitment": (self.z - q).pow(2).mean()}
    def after_step(self, t): self.resets += self.modules["book"].reset(self.z.detach(), stream(self.seed, "reset", t.step))
    def evaluate(self):
        x = VALIDATION["x"]; q, index = self.modules["book"](self.modules["encoder"](x))
        return {"val/error": float((self.modules["decoder"](q) - x).pow(2).mean()), "codes": len(index.unique())}


class Stages(Task):
    "First everything on one stream, until patience ends; then a frozen trunk, another optimiser and two streams of different length."
    stages, monitor, ema_decay = (Stage("whole", 12), Stage("head", 3)), ("val/accuracy", "max"), .8
    def __init__(self, seed=0):
        super().__init__(); torch.manual_seed(torch_seed(seed, "stages"))
        self.modules |= {"trunk": body(5), "head": nn.Sequential(nn.Dropout(.2), nn.Linear(5, CLASSES))}
    def on_stage(self, t):
        self.frozen = t.task.stages[t.stage].name == "head"; self.patience = 0 if self.frozen else 2
        for p in self.modules["trunk"].parameters(): p.requires_grad_(not self.frozen)
        if self.frozen:
            self.streams = {"labelled": Clouds("few", 2, 8), "unlabelled": Clouds("many", 5, labels=False)}
            self.optimisers = {"head": torch.optim.SGD(self.modules["head"].parameters(), lr=.1, momentum=.9)}; self.schedules = {"head": lambda i, n: .1*(1 - i/n)}
        else:
            self.streams = {"labelled": Clouds("few", 5)}
            self.optimisers = {"all": torch.optim.AdamW([{"params": self.modules["trunk"].parameters(), "factor": .5}, {"params": self.modules["head"].parameters()}], lr=.03)}
            self.schedules = {"all": lambda i, n: .03}
    def train_mode(self):
        super().train_mode()
        if self.frozen: self.modules["trunk"].eval()
    def logits(self, x): return self.modules["head"](self.modules["trunk"](x))
    def loss(self, batches):
        b = batches["labelled"]; out = {"cross": nn.functional.cross_entropy(self.logits(b["x"]), b["y"])}
        if "unlabelled" in batches:
            p = self.logits(batches["unlabelled"]["x"]).log_softmax(1); out["entropy"] = -(p.exp()*p).sum(1).mean()
        return out
    def evaluate(self): return {"val/accuracy": float((self.logits(VALIDATION["x"]).argmax(1) == VALIDATION["y"]).double().mean())}


class Member(Task):
    "One of several that differ in their seed alone."
    stages, monitor, ema_decay = (Stage("train", 3),), ("val/accuracy", "max"), .8
    def __init__(self, seed):
        super().__init__(); torch.manual_seed(torch_seed(0, "member", seed)); self.modules["net"] = body(CLASSES)
        self.streams["data"] = Clouds(f"member {seed}", 6); self.optimisers["adam"] = torch.optim.AdamW(self.modules["net"].parameters(), lr=.02)
    def loss(self, batches): b = batches["data"]; return {"cross": nn.functional.cross_entropy(self.modules["net"](b["x"]), b["y"])}
    def evaluate(self): return {"val/accuracy": float((self.modules["net"](VALIDATION["x"]).argmax(1) == VALIDATION["y"]).double().mean())}


TASKS = {"pathways": Pathways, "quantiser": Quantiser, "stages": Stages}
MEMBERS = [3, 4, 5]


def digest(t):
    "All that must be equal to the last bit: tensors, optimisers, own state, loss weights, random streams, callbacks, history, counters."
    return flat({"task": task_state(t.task), "callbacks": {type(c).__name__: c.state() for c in t.callbacks}, "history": timeless(t.history),
                 "counters": [t.stage, t.step, t.total_epoch, t.skips, t.rollbacks, t.lr_scale, t.stop]})


def train(what, path, seconds=0.0, extra=()):
    "Train one of the miniatures in a folder; -> its digest."
    from geonb.core.run import Workspace
    if what != "population":
        task = TASKS[what](); ws = Workspace(path); return digest(fit(task, ws, [*usual_callbacks(task, ws, "none", seconds), *extra]))
    from geonb.core.executor import fit_population
    rows = fit_population(Member, MEMBERS, Workspace(path), checkpoint_seconds=seconds)
    return population_digest(rows, path)


def population_digest(rows, path):
    "What a population returned, and the last checkpoint of every member."
    from geonb.core.run import Workspace
    out = {}
    for m, r in zip(MEMBERS, rows):
        kept = Workspace(path).child(f"{m}").checkpoints.latest()
        kept["trainer"]["history"] = timeless(kept["trainer"]["history"]); del kept["trainer"]["seconds"]
        out[str(m)] = {"row": r | {"history": timeless(r["history"])}, "kept": kept}
    return flat(out)


class Sleepy(Member):
    "A member slow enough to be killed half-way."
    def after_step(self, t): time.sleep(.12)


def child(order):
    "What a forked process does: one training, perhaps with an end to it."
    from geonb.core.errors import GeonbError
    kind, number = order.get("kill") or (None, 0); extra = []; calls = die_at_call(number if kind == "call" else -1)
    if order["what"] == "population" and kind in ("after_batch", "after_epoch"):   # the members' own callbacks
        Member.callbacks = (one := Count(kind, number, die),)
    elif kind in ("after_batch", "after_epoch"): extra = [Count(kind, number, die, order=order.get("order", 95))]
    elif kind in ("SIGINT", "SIGTERM"): extra = [Count("after_step", number, lambda: os.kill(os.getpid(), getattr(signal, kind)))]
    elif kind == "full": extra = [Count("after_step", number, disk_full)]
    elif kind == "twice": extra = [Count("after_step", number, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])]
    try: out = {"digest": train(order["what"], order["path"], order.get("seconds", 0.0), extra), "calls": calls()}
    except (GeonbError, KeyboardInterrupt) as e: out = {"error": type(e).__name__, "message": str(e), "code": getattr(e, "exit_code", 130)}
    answer(order, out)


def warm_up():
    "What a first training would import; no backward, whose threads a fork would not have."
    from torch.utils.tensorboard import SummaryWriter   # noqa: warm
    import safetensors.torch as _, torch._dynamo as _, geonb.core.run as _, geonb.core.executor as _   # noqa: warm
    p = nn.Parameter(torch.zeros(1)); p.grad = torch.ones(1); torch.optim.AdamW([p]).step()   # imports half of torch


if __name__ == "__main__": warm_up(); serve(child)
