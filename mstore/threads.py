"""How many threads to work with."""

import os


def default_threads() -> int:
    """Threads to work with: one per processor, eight at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
