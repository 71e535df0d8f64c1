"""Prints what megaselect.recompute saves on architectures of Hugging Face, as a table for docs/any-model.md.

    python tests/recomputation/any_model/architecture_table.py

Beside it stand, on the same models and batches: torch's selective checkpointing around each layer, which saves the
results of matrix products and attention, and transformers' own checkpointing. A ledger counts the bytes of all.
"""

import functools
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]

import torch  # noqa: E402
import transformers  # noqa: E402
from architecture_steps import SETTINGS, Cell, bytes_without_recompute, cell, ledger_of  # noqa: E402
from architectures import ALL_ARCHITECTURES, build  # noqa: E402
from torch.utils.checkpoint import create_selective_checkpoint_contexts  # noqa: E402

from megaselect.errors import RecomputeError  # noqa: E402

PRODUCTS = ["mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm"]
ATTENTION = [f"_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient")]
ATTENTION += ["_scaled_dot_product_flash_attention_for_cpu"]
SAVED_BY_SAC = [getattr(torch.ops.aten, name).default for name in (*PRODUCTS, *ATTENTION)]
HEADER = "| architecture | bits | none | bytes of each setting | predicted | ÷ none | ÷ SAC | ÷ HF |"


def row(name: str) -> str:
    """One architecture; numbers of the settings in their order."""
    cells = [cell(name, setting) for setting in SETTINGS]
    none = bytes_without_recompute(name)
    selective = functools.partial(create_selective_checkpoint_contexts, SAVED_BY_SAC)
    rivals = [none, _checkpointed(name, context_fn=selective), _checkpointed(name)]
    columns = [name, " · ".join(_bits(one) for one in cells), f"{none:,}"]
    columns += [" · ".join(f"{one.saved:,}" for one in cells), " · ".join(_prediction(one) for one in cells)]
    columns += [" · ".join(_ratio(one.saved, rival) for one in cells) for rival in rivals]
    return f"| {' | '.join(columns)} |"


def _bits(one: Cell) -> str:
    return "differ" if one.different or one.unproved else "equal"


def _prediction(one: Cell) -> str:
    if isinstance(one.predicted, RecomputeError):
        return "refused"
    return "equal" if one.predicted == one.saved else f"{one.predicted - one.saved:+,}"


def _ratio(saved: int, rival: int | None) -> str:
    return "–" if rival is None else f"{saved / rival:.2f}"


def _checkpointed(name: str, **settings: object) -> int | None:
    """Under transformers' switch; None where the architecture has none, or torch refuses to run it so."""
    model = build(name)
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False, **settings})
        return ledger_of(name, model).total
    except (ValueError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|")
    for name in ALL_ARCHITECTURES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
