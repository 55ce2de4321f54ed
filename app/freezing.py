"""What a process has after its start, out of the garbage collector's sight."""

import gc


def freeze() -> None:
    """Take what a process has now out of the garbage collector's sight: it stays, and to look at it again and again
    made the slowest polls five times slower."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
