"""FLOPs against torch's own counter, the texts of the header, and sample text."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megaselect.build import build_model
from megaselect.config import RecomputeConfig
from megaselect.data.sampler import TokenSource
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.ledger import record
from megaselect.recomputation.plan import make_plan
from megaselect.recomputation.presets import describe_recompute
from megaselect.training.accounting import saved_report, step_flops
from megaselect.training.sampling import sample_text

MODES = {
    "none": {"recompute__mode": "none"},
    "selective": {"recompute__mode": "selective"},
    "core_attn": {"recompute__mode": "selective", "recompute__modules": ["core_attn", "dropout"]},
    "core_attn in one layer": {
        "recompute__mode": "selective",
        "recompute__modules": ["core_attn"],
        "recompute__layers": "1",
    },
    "full": {"recompute__mode": "full"},
    "full in one chunk": {"recompute__mode": "full", "recompute__num_layers": 2},
    "full block": {"recompute__mode": "full", "recompute__method": "block", "recompute__num_layers": 1},
}
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "numbers", "42", "fall")


@pytest.fixture(scope="module")
def source(dataset):
    return TokenSource(dataset, 16, 1234, vocab_size=256)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(200)]
    path.write_bytes(train_tokenizer(lines, 300))
    return Tokenizer(path)


@pytest.fixture(params=MODES)
def config(request, make_config):
    return make_config(**MODES[request.param])


def config_plan(config):
    return make_plan(config.recompute, config.model.num_layers)


def test_step_flops_are_those_that_torch_counts(config, source):
    model = build_model(config)
    batch = source.batch(0, config.training.micro_batch_size)
    with FlopCounterMode(display=False) as counter:
        model(batch.tokens, batch.targets, batch.sample_index).backward()
    micro_batches = config.training.global_batch_size // config.training.micro_batch_size
    assert micro_batches == 2
    assert step_flops(config, 4, config_plan(config)).hardware == micro_batches * counter.get_total_flops()


def test_model_flops_are_the_same_in_every_mode(config, make_config):
    none = step_flops(make_config(), 4, config_plan(make_config()))
    assert step_flops(config, 4, config_plan(config)).model == none.model == none.hardware


def test_saved_report_matches_a_real_forward_pass(config, source):
    model = build_model(config)
    batch = source.batch(0, config.training.micro_batch_size)
    with record(model) as ledger:
        model(batch.tokens, batch.targets, batch.sample_index)
    report = saved_report(config, 4, config_plan(config), ledger)
    assert report.matches
    assert report.measured_total == ledger.total > sum(report.measured.values()) > 0
    assert "" not in report.measured


@pytest.mark.parametrize("mode", ["none", "core_attn", "full"])
def test_alternatives_are_what_a_run_with_that_setting_keeps_in_a_layer(make_config, source, mode):
    """Read in a run of another mode, they are what that mode's own run measures."""
    names = {"none": "none", "core_attn": "core_attn dropout", "full": "full"}
    reports = {}
    for each in ("selective", mode):
        config = make_config(**MODES[each])
        model, batch = build_model(config), source.batch(0, 2)
        with record(model) as ledger:
            model(batch.tokens, batch.targets, batch.sample_index)
        reports[each] = saved_report(config, 4, config_plan(config), ledger)
    assert set(reports[mode].measured.values()) == {reports["selective"].alternatives[names[mode]]}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "none"}, "none"),
        ({"mode": "selective"}, "selective: softmax, dropout"),
        ({"mode": "selective", "modules": ["core_attn"], "layers": "0-3"}, "selective: core_attn (layers 0-3)"),
        ({"mode": "full"}, "full"),
        ({"mode": "full", "num_layers": 2}, "full uniform, 2 a chunk"),
        ({"mode": "full", "method": "block", "num_layers": 3}, "full block, first 3"),
        ({"mode": "full", "method": "sqrt", "layers": "even"}, "full sqrt (layers even)"),
    ],
)
def test_describe_recompute(settings, text):
    assert describe_recompute(RecomputeConfig(**settings)) == text


def test_sample_text_is_a_function_of_the_seed(make_config, tokenizer):
    model = build_model(make_config(model__vocab_size=300))
    torch.manual_seed(1)
    first = sample_text(model, tokenizer, 40, 1234)
    torch.manual_seed(2)
    assert sample_text(model, tokenizer, 40, 1234) == first
    assert sample_text(model, tokenizer, 40, 1235) != first
    assert sample_text(model, tokenizer, 0, 1234) == ""
    assert model.training


@pytest.mark.parametrize("likely", [" ", "\n", "e"])
def test_a_sample_counts_what_is_more_than_blanks(make_config, tokenizer, likely):
    """From a model that writes one piece alone: as many as asked for, or four times as many blanks."""
    model = build_model(make_config(model__vocab_size=300))
    piece = tokenizer.encode(likely)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0)
        model.final_layernorm.bias.fill_(1)
        model.token_embedding.weight[piece[0]] = 10
    text = sample_text(model, tokenizer, 5, 0)
    assert (len(piece), text) == (1, likely * (5 if likely.strip() else 20))


def test_sample_text_takes_the_largest_seed_and_leaves_the_global_generator(make_config, tokenizer):
    model = build_model(make_config(model__vocab_size=300))
    before = torch.get_rng_state()
    sample_text(model, tokenizer, 3, 2**64 - 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_text_draws_only_pieces_that_the_tokenizer_has(make_config, tokenizer):
    """A model padded far beyond the tokenizer's vocabulary; sampling goes past one window of context."""
    model = build_model(make_config(model__vocab_size=4096))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0)  # every piece as likely as any other
    assert isinstance(sample_text(model, tokenizer, 40, 0), str)
