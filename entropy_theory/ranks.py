"""The end of a process that is one rank of several, and how a process knows that it is one of several runs."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

PATIENCE = 10.0  # seconds
PARENT_VARIABLE = "ENTROPY_THEORY_PARENT"  # set for the training runs of arms


def leave_ranks(*, together: bool = True) -> None:
    """End the process group, if there is one, so that the process can end: every rank calls this last.

    The threads of a gloo group free the tensors of a collective after it is over. A tensor that Python knows needs the
    interpreter for that, and a thread that asks for the interpreter while it is being finalised is ended by force, in a
    destructor, which aborts the process: "terminate called without an active exception". Destroying the group does not
    join its threads as long as anything else holds the group, as a device mesh does. So this waits until they have
    nothing left to do.

    Args:
        together: Wait for the other ranks first; not after an error, of which they do not know.
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    if together:
        dist.barrier()
    dist.destroy_process_group()
    gc.collect()  # a trainer's cycles hold groups and tensors
    _wait_for_idle_threads()


def _wait_for_idle_threads() -> None:
    """Wait until the threads of gloo sleep and stay asleep; where the system does not say, for a moment."""
    tasks, deadline, before = Path("/proc/self/task"), time.monotonic() + PATIENCE, None
    if not tasks.is_dir():
        time.sleep(0.5)
        return
    while time.monotonic() < deadline:
        now = {task.name: state for task in tasks.iterdir() if (state := _gloo_state(task)) is not None}
        # A thread that waits for a processor is runnable, and one that waits for Python gets it during the pause.
        if now == before and all(state.startswith("S") for state in now.values()):
            return
        before = now
        time.sleep(0.05)


def _gloo_state(task: Path) -> str | None:
    """The state of a thread of gloo and how often it was switched; None for any other thread."""
    try:
        lines = (task / "status").read_text().splitlines()
    except OSError:  # it has just ended
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if not fields["Name"].strip().startswith("pt_gloo"):
        return None
    return " ".join(fields[name].strip() for name in ("State", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"))
