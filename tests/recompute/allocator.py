"""What torch's CPU allocator says: an oracle for the ledger that knows nothing of autograd."""

import gc

from torch.profiler import ProfilerActivity, profile

LOSS_BYTES = 4


def still_allocated(forward):
    """Bytes that a call of `forward` allocates and that live on after it, its result among them."""
    forward()  # what only a first call allocates is no part of it
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = forward()
    del result
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())
