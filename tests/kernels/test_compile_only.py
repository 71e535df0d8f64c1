"""What the compiler makes of the Triton kernels for real GPUs, gated on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).with_name("compile_report.py")
# Of a program: on sm_90, and on the smallest GPU that runs what is made for sm_80 (sm_86).
SHARED_LIMIT_BYTES = {90: 227 * 1024, 80: 99 * 1024}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """What two processes report, each of half the cases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPORT.parents[2]), environment.get("PYTHONPATH", "")])
    outputs = [tmp_path_factory.mktemp("report") / "lines" for _ in range(2)]
    children = []
    for half, output in enumerate(outputs):
        command = [sys.executable, str(REPORT), "--half", str(half)]
        children.append(subprocess.Popen(command, env=environment, stdout=output.open("w")))
    assert [child.wait(timeout=900) for child in children] == [0, 0]
    return [json.loads(line) for output in outputs for line in output.read_text().splitlines()]


def select(programs, **wanted):
    found = [p for p in programs if all(p[key] == value for key, value in wanted.items())]
    assert found, f"the report has no program with {wanted}"
    return found


def test_every_kernel_was_compiled_for_both_architectures(programs):
    assert {(p["kernel"], p["direction"]) for p in programs} == {
        ("softmax_dropout", "forward"),
        ("softmax_dropout", "backward"),
        ("fused_attention", "forward"),
        ("fused_attention", "backward"),
        ("bias_dropout_residual", "forward"),
        ("bias_dropout_residual", "backward"),
        ("layer_norm", "forward"),
        ("layer_norm", "backward"),
        ("bias_dropout_residual_layer_norm", "forward"),
        ("bias_dropout_residual_layer_norm", "backward"),
        ("drop_bits", "forward"),
    }
    assert {p["capability"] for p in programs} == {80, 90}


def test_registers_suffice_and_nothing_spills(programs):
    for program in programs:
        assert program["stack_bytes"] == 0, program
        assert program["counts"]["spill"] == 0, program
        assert program["registers"] < 255, program
        assert program["shared_bytes"] <= SHARED_LIMIT_BYTES[program["capability"]], program


def test_exponentials_come_from_one_pattern_and_nothing_is_contracted(programs):
    exponentials = select(programs, kernel="softmax_dropout", form="softmax+dropout")
    assert {p["direction"] for p in exponentials} == {"forward", "backward"}
    for program in exponentials:
        assert set(program["ex2_arguments"]) == {"mul.rn.f32 sub.rn.f32"}, program
    for program in programs:
        if program["kernel"] != "fused_attention":  # no other kernel must agree with it to the bit
            assert program["ptx_fma"] == 0, program


def test_row_sums_are_added_in_one_order_whatever_is_saved(programs):
    forward = select(programs, kernel="softmax_dropout", direction="forward", width=1024, dtype="torch.bfloat16")
    assert {p["form"] for p in forward} == {"none", "softmax+dropout"}
    reductions = [p["reductions"] for p in forward]
    assert len(reductions[0]) == 4  # maximum and sum, of a thread's columns and of the threads
    assert all(found == reductions[0] for found in reductions)


def test_drop_words_are_computed_once_and_only_words_change_layout(programs):
    """The mask's one conversion exchanges the words, a 32nd of the tile; the words' expansion converts nothing."""
    for program in select(programs, width=1024, form="softmax+dropout", dtype="torch.bfloat16"):
        words = [tensor for tensor in program["conversions"] if tensor.endswith("xi32")]
        assert words == ["1x1x8x4x1x4x1xi32"], program  # 128 words for 4096 elements
        assert program["counts"]["wide multiply"] < 80, program  # 40 a word and thread; 8 words a thread without it
        others = set(program["conversions"]) - set(words)
        assert others <= {"16xf32", "16x1xf32", "1x256xf32"}, program  # row statistics, bias
    for program in select(programs, kernel="softmax_dropout", form="none", direction="forward"):
        assert not [tensor for tensor in program["conversions"] if tensor.endswith(("xi1", "xi8"))], program
    for program in select(programs, kernel="softmax_dropout", form="none", direction="backward"):
        assert program["conversions"] == [], program


def test_aligned_tiles_move_16_bytes_a_thread(programs):
    for program in select(programs, kernel="softmax_dropout", dtype="torch.bfloat16", width=1024):
        counts = program["counts"]
        assert counts["16-byte load"] == 2 * 4, (
            program
        )  # the scores twice, or gradient and source; 32 elements a thread
        written = 1 if (program["direction"] == "backward") == (program["form"] == "none") else 2  # and zeros in each
        assert counts["16-byte store"] == written * 2 * 4, program


HIDDEN_NORM = "bias_dropout_residual_layer_norm"


def test_layernorm_adds_a_row_in_one_order_alone_and_after_dropout(programs):
    for program, sums in (("_forward_kernel", 2), ("_backward_kernel", 4)):
        for capability in (80, 90):
            here = {"program": program, "capability": capability, "width": 4096, "dtype": "torch.bfloat16"}
            alone = select(programs, kernel="layer_norm", **here)
            orders = [p["reductions"] for p in alone + select(programs, kernel=HIDDEN_NORM, **here)]
            assert len(orders) >= 2
            assert len(orders[0]) == sums
            assert all(found == orders[0] for found in orders), (program, capability)


def test_layernorm_moves_16_bytes_a_thread_and_reads_a_whole_row_once(programs):
    tensors = {  # [.., h] tensors read and written; the vectors over h come to as many 16-byte loads a tensor
        ("layer_norm", "_forward_kernel"): (1 + 2, 1, 32),
        ("layer_norm", "_backward_kernel"): (2 + 1, 1, 16),
        (HIDDEN_NORM, "_forward_kernel"): (2 + 3, 2, 32),
        (HIDDEN_NORM, "_backward_kernel"): (3 + 1, 2, 16),
    }
    for (kernel, program), (read, written, elements_a_thread) in tensors.items():
        for found in select(programs, kernel=kernel, program=program, width=4096, capability=90):
            accesses = elements_a_thread // 8
            partial_sums = 2 * elements_a_thread // 4 if program == "_backward_kernel" else 0
            assert found["counts"]["16-byte load"] == read * accesses, found
            stores = found["counts"]["16-byte store"] - written * accesses
            # the partial sums of two fp32 vectors, spread over all threads
            assert stores == partial_sums, found


def test_layernorm_after_dropout_exchanges_only_words(programs):
    for found in select(programs, kernel=HIDDEN_NORM, width=4096, form="softmax+dropout", capability=90):
        if found["program"] == "_sum_partials_kernel":
            continue
        # A row's statistic is one element: 1x1xf32 with Triton 3.7 and later, 1xf32 with 3.6.
        small = ("1xf32", "1x1xf32", "4096xf32")
        big = [tensor for tensor in found["conversions"] if tensor not in small]
        assert big == ["1x64x1x4x1xi32"], found  # 256 words for 4096 elements: half the bits of each go unused
        assert found["counts"]["wide multiply"] < 120, found  # 40 a word and thread; 16 words a thread without it


def test_attention_multiplies_on_the_matrix_units(programs):
    for program in select(programs, kernel="fused_attention"):
        if program["dtype"] != "torch.float32" and program["program"] != "_delta_kernel":
            unit = "warpgroup matrix" if program["capability"] == 90 else "matrix"
            products = 3 if program["program"] == "_grad_query_kernel" else 4
            products = 2 if program["direction"] == "forward" else products
            assert program["counts"][unit] >= 2 * products, program  # in each of two loops


def test_attention_runs_two_programs_on_a_multiprocessor_where_heads_are_small(programs):
    for program in select(programs, kernel="fused_attention", direction="forward", width=64, dtype="torch.bfloat16"):
        assert program["registers"] * 256 * 2 <= 65536, program
        assert program["shared_bytes"] * 2 <= SHARED_LIMIT_BYTES[90], program


def test_attention_expands_its_mask_where_the_products_left_the_scores(programs):
    """Rows own their words; with transposed scores words are exchanged, a 32nd of the tile. Nothing is else."""
    words = {(90, 64): "2x1x4x1x4x1x8xi32", (90, 80): "2x1x4x1x2x1x8xi32", (90, 128): "2x1x4x1x2x1x8xi32"}
    words |= {(80, 64): "2x1x4x1x2x1x8xi32", (80, 128): "1x1x4x1x2x1x8xi32"}
    for program in select(programs, kernel="fused_attention"):
        if program["dtype"] == "torch.float32" or program["program"] == "_delta_kernel":
            continue
        found = {tensor for tensor in program["conversions"] if tensor.endswith(("xi32", "xi1", "xi8", "xui32"))}
        transposed = program["program"] == "grad_key_value_kernel"
        if program["capability"] == 90:
            # Each word once: at most 40 products in each of two loops. Philox's alone: how many wide multiplies make
            # addresses is the compiler's affair (60 more with Triton 3.6, which reads row statistics where they go).
            dropped = program["form"] != "no dropout"
            assert (40 if dropped else 0) <= program["philox_multiplies"] <= (80 if dropped else 0), program
        assert found == ({words[program["capability"], program["width"]]} if transposed else set()), program
