"""Every fault, by name, in the order of docs/silent-errors.md."""

from __future__ import annotations

from corpus import changed_faults, functions, gradient_faults, random_faults, state_faults
from corpus.fault import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for module in (random_faults, state_faults, changed_faults, functions, gradient_faults)
    for fault in module.FAULTS
}
