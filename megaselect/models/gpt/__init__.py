"""The GPT family: the maths with no word about which recompute mode is on, and what the ledger is told of it."""

from megaselect.ledger.families import FAMILIES
from megaselect.models.gpt.model import GPT
from megaselect.models.gpt.tensor_names import GptFamily

FAMILIES.append(GptFamily())

__all__ = ["GPT"]
