"""The ledger as a user reads it, 80 columns wide."""

import torch
from rich.console import Console

from megaselect.ledger import Ledger, SavedRow
from megaselect.report.ledger_table import ledger_table


def row(layer, name, shape=(2, 3), dtype=torch.float32, size=24, view_bytes=None, views=1, **more):
    return SavedRow(layer, layer, name, shape, dtype, size, view_bytes or size, views, **more)


def lines(*rows, width=80):
    ledger = Ledger()
    ledger.by_storage = dict(enumerate(rows))
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(ledger_table(ledger))
    text = captured.get().splitlines()
    assert max(map(len, text)) <= width
    return [" ".join(line.split()) for line in text[2:] if line.strip()]  # without the heading


def test_layers_with_the_same_rows_share_a_heading_and_what_is_outside_comes_last():
    assert lines(
        row("", "tokens", dtype=torch.int64, size=48),
        *(row(f"h.{layer}", "block input", (5,), torch.bfloat16, 10) for layer in (0, 1, 2)),
        row("h.3", "block input", (6,), torch.bfloat16, 12),
        row("h.4", "block input", (5,), torch.bfloat16, 10),
        row("", "logits"),
    ) == [
        "h.0-2,4 (4x) 10 saved, each",
        "block input 5 bfloat16 10",
        "h.3 12 saved",
        "block input 6 bfloat16 12",
        "outside the layers 72 saved",
        "tokens 2x3 int64 48",
        "logits 2x3 float32 24",
        "saved in all 124 124 bytes",
    ]


def test_alike_rows_of_a_layer_are_one_line():
    assert lines(row("h.0", "statistics"), row("h.0", "input", size=1_234), row("h.0", "statistics")) == [
        "h.0 1,282 saved",
        "statistics 2x3 float32 48 2 tensors",
        "input 2x3 float32 1,234",
        "saved in all 1,282 1.25 KiB",
    ]


def test_what_is_recomputed_comes_apart_and_has_a_total_of_its_own():
    assert lines(
        row("layers.0-1", "block input"),
        row("layers.0", "probs", status="recomputed", size=2**20),
        row("layers.1", "probs", status="recomputed", size=2**20),
        row("layers.2-3", "block input"),
    ) == [
        "layers.0-3 (2 chunks) 24 saved, each",
        "block input 2x3 float32 24",
        "layers.0-1 (2x) 1,048,576 recomputed, each",
        "probs 2x3 float32 1,048,576",
        "saved in all 48 48 bytes",
        "recomputed in all 2,097,152 2.00 MiB",
    ]


def test_notes_say_what_pins_more_and_who_holds_it():
    assert lines(
        row("h.0", "q, k, v", size=72, views=3),
        row("h.0", "a row", size=120, view_bytes=24),
        row("h.0", "product", held_by="cache"),
        row("h.0", "mask", (), held_by="closure", size=8, view_bytes=4),
    )[1:5] == [
        "q, k, v 2x3 float32 72 3 views of one",
        "a row 2x3 float32 120 view, pins 5x",
        "product 2x3 float32 24 selective cache",
        "mask scalar float32 8 closure, view, pins 2x",
    ]


def test_many_ranges_are_not_listed():
    rows = [row(f"h.{layer}", "input", (layer % 2,)) for layer in range(12)]
    assert [line for line in lines(*rows) if line.startswith("h.")] == [
        "h.0,2,4,… (6x) 24 saved, each",
        "h.1,3,5,… (6x) 24 saved, each",
    ]


def test_long_names_are_folded_not_cut():
    name = "post_attention_layernorm: mul output"
    text = lines(row("model.layers.11", name, (16, 2048, 12288), size=1_610_612_736), width=80)
    assert "".join(text).replace(" ", "").count(name.replace(" ", "")[:20]) == 1
    assert any("1,610,612,736" in line for line in text)


def test_an_empty_ledger_is_a_total_of_nothing():
    assert lines() == ["saved in all 0 0 bytes"]


def test_a_full_width_cuts_no_note():
    wide = row("h.0", "input_layernorm: to_copy output", (1, 1, 2048, 2048), torch.bfloat16, 536_870_912, 268_435_456)
    assert "input_layernorm: to_copy 1x1x2048x2048 bfloat16 536,870,912 view, pins 2x" in lines(wide)
