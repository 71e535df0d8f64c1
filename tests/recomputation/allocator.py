"""What torch's CPU allocator says: an oracle for the ledger that knows nothing of autograd."""

import gc

from torch.profiler import ProfilerActivity, profile

LOSS_BYTES = 4


def still_allocated(forward):
    """Bytes that a call of `forward` allocates and that live on after it, its result among them."""
    forward()  # what only a first call allocates is no part of it
    gc.disable()  # what earlier calls left in cycles must not be freed meanwhile
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            result = forward()
    finally:
        gc.enable()
    del result
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())
