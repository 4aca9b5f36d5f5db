"What a page shows, compared with what the pure view says."
import time

import numpy as np


def differs(page_data, view, path=""):
    "Where the page's traces and a view are further apart than 1e-6; None when they agree."
    for key, want in view.items():
        have = page_data.get(key)
        if isinstance(want, dict): where = differs(have or {}, want, f"{path}{key}.")
        elif isinstance(want, str): where = None if have == want else f"{path}{key}: {have} is not {want}"
        elif isinstance(want, np.ndarray) and want.dtype.kind != "U" and have is not None and np.shape(have) == want.shape: where = None if np.allclose(have, want, rtol=0, atol=1e-6, equal_nan=True) else f"{path}{key} is off by {np.nanmax(np.abs(np.subtract(have, want))):.2g}"
        elif have is None or len(have) != len(want): where = f"{path}{key} has {have and len(have)} values, not {len(want)}"
        elif not len(want): where = None
        elif isinstance(want[0], str): where = None if have == want else f"{path}{key}: {have[0]} is not {want[0]}"
        else: where = None if np.allclose(have, want, rtol=0, atol=1e-6) else f"{path}{key} is off by {np.abs(np.subtract(have, want)).max():.2g}"
        if where: return where


def expect(lab, page, explorer, state, seconds=10):
    "Wait for the page to show a state, to 1e-6 in every number of every trace."
    want, end = explorer.view(state), time.monotonic() + seconds
    while True:
        figures = lab.figures(page); assert len(figures) == 1
        wrong = differs({t["name"]: t for t in figures[0]}, want)
        if not wrong or time.monotonic() > end: break
        time.sleep(.05)
    assert not wrong, f"{state}: {wrong}"
