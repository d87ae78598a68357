"""Ranks under torchrun, which is the engine; one process otherwise."""

from fastue.core import env


def place() -> tuple[int, int]:
    """(this process's rank, how many ranks there are)."""
    return env.rank()


def barrier() -> None:
    """Wait for all ranks; nothing for a single process."""
    if place()[1] > 1:
        import datetime

        import torch.distributed as dist

        if not dist.is_initialized():
            # The others wait for as long as one of them trains.
            dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))
        dist.barrier()
