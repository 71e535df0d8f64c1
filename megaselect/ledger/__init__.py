"""What autograd saves for backward and what runs again there, counted on any model. Knows no family and no mode."""

from megaselect.ledger.live_bytes import LiveBytes
from megaselect.ledger.record import record
from megaselect.ledger.recorder import scope
from megaselect.ledger.rows import Ledger, SavedRow

__all__ = ["Ledger", "LiveBytes", "SavedRow", "record", "scope"]
