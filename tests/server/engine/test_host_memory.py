from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")

# In a thread, as the engine runs; and a process each, since malloc goes by all that came before.
PROGRAM = """
import ctypes, resource, sys, threading, torch
from trimtab.server.engine.host_memory import keep_freed_memory

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for step in range(30):
        if step == 10:
            before = page_faults()
        logits = torch.ones(32 * 49152)
        guided = logits + 1
        places = guided.view(32, -1).sort().indices
        total = (guided * 2).sum()
        del logits, guided, places
    print(page_faults() - before)

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a page is 4 KiB, whatever the machine's mood
if sys.argv[1] == "kept":
    keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(way: str) -> int:
    command = [sys.executable, "-c", PROGRAM, way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_logits_are_not_mapped_anew_at_every_step():
    assert page_faults("kept") < page_faults("given back") / 3
