"""A warm process that forks a child for every order, so that a training can be killed without paying for imports each time.

`serve(child)` is the process: an order is a dict, `child(order)` does it in a fork and leaves its answer in a file. `Warm` is
the side of the tests. Beside them: ends for a training (`Count`, `die`, `die_at_call`, `disk_full`) and what compares two nests to the last bit.
"""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from geonb.core.callbacks import Callback
from geonb.core.state import pack


def timeless(rows):
    "A history without the seconds, which no two runs share."
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def flat(nest):
    "Every leaf of a nest by its path, tensors as a hash of type, shape and bytes."
    tensors = {}; tree = pack(nest, tensors)
    hashed = {k: hashlib.sha256(f"{v.dtype}{tuple(v.shape)}".encode() + v.numpy().tobytes()).hexdigest()[:16] for k, v in tensors.items()}
    def walk(x, path):
        if isinstance(x, dict) and set(x) == {"~tensor"}: yield path, hashed[x["~tensor"]]
        elif isinstance(x, dict):
            for k, v in x.items(): yield from walk(v, f"{path}/{k}")
        elif isinstance(x, list):
            for i, v in enumerate(x): yield from walk(v, f"{path}/{i}")
        else: yield path, x
    return dict(walk(tree, ""))


def same(a, b, least=100):
    "Two digests without a difference; the first differing leaves are shown."
    a, b = json.loads(json.dumps(a)), json.loads(json.dumps(b))
    assert len(a) > least
    assert {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)} == {}


class Count(Callback):
    "Runs `act` behind a certain number of events."
    def __init__(self, event, number, act, order=95): self.left, self.act, self.order = number, act, order; setattr(self, event, self.count)
    def count(self, t):
        self.left -= 1
        if self.left == 0: self.act()


def die(): os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(number):
    "Die at the n-th system call that makes something durable, visible or gone; fsync itself is left out, since a kill loses no cache. -> a function that tells how many there were."
    left = [number]
    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        real = getattr(os, name) if name != "fsync" else lambda fd: None
        def counted(*a, real=real, **k):
            left[0] -= 1
            if left[0] == 0: die()
            return real(*a, **k)
        setattr(os, name, counted)
    return lambda: number - left[0]


def disk_full():
    "From here on no file of this process may grow beyond a kilobyte."
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def answer(order, out):
    "Leave the answer to an order, also where `disk_full` was called."
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],)*2); Path(order["answer"]).write_text(json.dumps(out))


def serve(child):
    "Orders on stdin, one JSON object a line: one with `wait` waits for that process, any other is done by `child` in a fork of this process."
    import torch
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])}), flush=True); continue
        pid = os.fork()
        if pid == 0:
            os.close(0); os.dup2(2, 1); code = 1
            try: child(order); code = 0
            except BaseException:
                import traceback; traceback.print_exc()
            finally: sys.stderr.flush(); os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)


class Warm:
    "The tests' side of `serve`, which runs in the given script."
    def __init__(self, script, folder):
        self.folder, self.number = folder, 0; self.log = open(folder/"log", "w+")
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    def ask(self, order):
        self.process.stdin.write(json.dumps(order) + "\n"); self.process.stdin.flush()
        line = self.process.stdout.readline(); assert line, self.said()
        return json.loads(line)
    def said(self): return Path(self.log.name).read_text()[-3000:]
    def start(self, **order):
        "Begin an order; -> its child, which has a `pid` and can be waited for."
        self.number += 1; file = self.folder/f"{self.number}.json"
        return Child(self, self.ask(order | {"answer": str(file)})["pid"], file)
    def __call__(self, kill=None, **order):
        "Do an order; -> (exit status, answer or None). `kill`: [\"time\", seconds] is done from here, all else is the child's business."
        child = self.start(kill=kill, **order)
        if kill and kill[0] == "time": time.sleep(kill[1]); child.kill()
        return child.wait()
    def close(self): self.process.stdin.close(); self.process.wait(20); self.log.close()


class Child:
    "A fork at work."
    def __init__(self, warm, pid, file): self.warm, self.pid, self.file = warm, pid, file
    def kill(self): os.kill(self.pid, signal.SIGKILL)   # until it has been waited for, its number is not given to another
    def wait(self):
        "-> (exit status, what it answered or None)"
        status = self.warm.ask({"wait": self.pid})["status"]; assert status != 1, self.warm.said()
        return status, json.loads(self.file.read_text()) if self.file.exists() else None
