"""The norm of gradients: right to the last bit but one, and the same bits however their rows are cut."""

import math
from fractions import Fraction

import pytest
import torch

from megaselect.training import gradient_norm as module
from megaselect.training.gradient_norm import gradient_norm, rows_of

SHAPES = [(97, 48), (48,), (1, 7), (5, 3, 4), (), (300, 17)]


def random_gradients(scale=1.0):
    """Of sizes far apart, so that the order of a sum would show."""
    return [scale * torch.randn(shape) * 10.0 ** torch.randint(-5, 5, shape) for shape in SHAPES]


def exact(gradients):
    """Rounded once, from the exact sum of squares."""
    total = sum(Fraction(value) ** 2 for gradient in gradients for value in gradient.double().flatten().tolist())
    shift = 2 * (math.frexp(float(total))[1] // 2 - 60)
    root = math.isqrt(int(total / Fraction(2) ** shift))
    return torch.tensor(math.ldexp(root, shift // 2), dtype=torch.float64).float()


def total_rows(gradients):
    return sum(rows_of(gradient.shape) for gradient in gradients)


def by_ranks(gradients, ranks):
    """Each rank's result, where they hold rows as FSDP2 cuts them, and talk in rounds."""
    cut = [(gradient if gradient.dim() else gradient.view(1)).chunk(ranks) for gradient in gradients]
    held = [[parts[rank] for parts in cut if rank < len(parts)] for rank in range(ranks)]
    told = {}

    def run(rank, heard):
        """heard: what all ranks said in the rounds before; raises Told with what this rank says next."""
        rounds = iter(heard)

        def gather(tensor):
            said = next(rounds, None)
            if said is None:
                raise Told(tensor)
            return torch.stack(said)

        return gradient_norm(held[rank], total_rows(gradients), gather)

    heard = []
    while True:
        said = []
        for rank in range(ranks):
            try:
                told[rank] = run(rank, heard)
            except Told as round_of:
                said.append(round_of.args[0])
        if not said:
            return list(told.values())
        heard.append(said)


class Told(Exception):
    """What a rank tells the others."""


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e25])
def test_it_is_the_exact_sum_rounded(scale):
    gradients = random_gradients(scale)
    assert torch.equal(gradient_norm(gradients, total_rows(gradients)), exact(gradients))


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_no_cut_changes_a_bit(ranks):
    gradients = random_gradients()
    whole = gradient_norm(gradients, total_rows(gradients))
    for each in by_ranks(gradients, ranks):
        assert torch.equal(each, whole)


def test_no_block_size_changes_a_bit(monkeypatch):
    gradients = random_gradients()
    whole = gradient_norm(gradients, total_rows(gradients))
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 100)
    assert torch.equal(gradient_norm(gradients, total_rows(gradients)), whole)


def test_nothing_to_clip_is_a_norm_of_zero():
    assert gradient_norm([torch.zeros(3, 4)], 3).item() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_value_that_is_not_finite_shows_on_every_rank(value, ranks):
    gradients = random_gradients()
    gradients[0][1, 1] = value
    for each in by_ranks(gradients, ranks):
        assert str(each.item()) == str(abs(value))
