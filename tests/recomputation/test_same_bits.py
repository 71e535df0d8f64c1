"""The first promise: every recompute setting gives bitwise the same losses, gradients and trained parameters."""

import functools

import pytest
import torch
from recompute_settings import SETTINGS, full, selective
from tiny_models import build_unchecked, gradients, make_batch, make_config
from turns import in_turns

from megaselect import build_model
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.recomputation.plan import make_plan

DTYPES = ["fp32", "bf16"]


def train(model, config, steps, accumulation=1):
    """Every loss, every gradient of every step and the trained parameters, by name."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trace, sample = {}, 0
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulation):
            loss = model(*make_batch(config, sample))
            loss.backward()
            trace[f"loss from sample {sample}"] = loss.detach()
            sample += config.training.micro_batch_size
        trace |= {f"step {step} gradient of {name}": grad.clone() for name, grad in gradients(model).items()}
        optimizer.step()
    return trace | {f"trained {name}": value.detach().clone() for name, value in model.named_parameters()}


@functools.cache
def trained_with_none(dtype, batch, steps, accumulation=1, **model):
    config = make_config(dtype=dtype, batch=batch, **model)
    return train(build_model(config), config, steps, accumulation)


def different(actual, expected):
    assert actual.keys() == expected.keys()
    return [name for name in expected if not torch.equal(actual[name], expected[name])]


@in_turns(2, {"setting": SETTINGS, "dtype": DTYPES, ("batch", "accumulation"): [(1, 2), (4, 1)]})
def test_every_setting_trains_to_the_same_bits(setting, dtype, batch, accumulation):
    config = make_config(setting, dtype=dtype, batch=batch)
    trace = train(build_model(config), config, 2, accumulation)
    assert different(trace, trained_with_none(dtype, batch, 2, accumulation)) == []


PROBABILITIES = [(0.25, 0.0), (0.0, 0.25), (0.5, 0.002), (0.0, 0.0)]


@in_turns(2, {"setting": SETTINGS, "dtype": DTYPES, ("attention_p", "hidden_p"): PROBABILITIES})
def test_every_setting_gives_the_same_bits_at_other_dropout_probabilities(setting, dtype, attention_p, hidden_p):
    dropout = {"attention_dropout_p": attention_p, "hidden_dropout_p": hidden_p}
    config = make_config(setting, dtype=dtype, **dropout)
    trace = train(build_unchecked(config), config, 1)
    assert different(trace, trained_with_none(dtype, 2, 1, **dropout)) == []


ATTENTIONS = [("fused", 0.1), ("fused", 0.0), ("sdpa", 0.0)]


@in_turns(2, {"setting": SETTINGS, "dtype": DTYPES, ("attention", "attention_p"): ATTENTIONS})
def test_every_setting_gives_the_same_bits_within_each_attention(setting, dtype, attention, attention_p):
    model = {"attention": attention, "attention_dropout_p": attention_p}
    config = make_config(setting, dtype=dtype, **model)
    trace = train(build_unchecked(config), config, 1)
    assert different(trace, trained_with_none(dtype, 2, 1, **model)) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_a_loss_in_chunks_gives_the_same_bits_in_every_mode(dtype, chunk):
    settings = ({}, SETTINGS["all"], SETTINGS["uniform 2"])
    configs = [make_config(recompute, dtype=dtype, loss_chunk_tokens=chunk) for recompute in settings]
    traces = [train(build_model(config), config, 1) for config in configs]
    assert different(traces[1], traces[0]) == different(traces[2], traces[0]) == []


@pytest.mark.parametrize("attention", ["fused", "sdpa"])
def test_another_attention_changes_rounding_only(attention, relative_error):
    def gradients_of(kind):
        config = make_config(attention=kind, attention_dropout_p=0.1 if attention == "fused" else 0.0)
        model = build_model(config).double()
        model(*make_batch(config)).backward()
        return gradients(model)

    expected = gradients_of("unfused")
    errors = {name: relative_error(grad, expected[name]) for name, grad in gradients_of(attention).items()}
    assert all(error < 1e-12 for error in errors.values()), errors


@pytest.mark.parametrize("name", ["softmax dropout", "core_attn", "all", "uniform 2"])
def test_two_threads_give_the_same_bits_in_every_mode(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        traces = [train(build_model(config), config, 1) for config in map(make_config, ({}, SETTINGS[name]))]
    finally:
        torch.set_num_threads(threads)
    assert different(*traces) == []


@pytest.mark.parametrize("attention_p", [0.1, 0.0])
@pytest.mark.parametrize("recompute", [selective("softmax", "dropout"), full()], ids=["selective", "full"])
def test_the_bits_are_the_same_in_fp64(recompute, attention_p):
    def gradients_of(config):
        model = build_unchecked(config).double()
        model(*make_batch(config)).backward()
        return gradients(model)

    actual = gradients_of(make_config(recompute, attention_dropout_p=attention_p))
    assert different(actual, gradients_of(make_config(attention_dropout_p=attention_p))) == []


def test_a_step_learns_and_its_gradients_are_not_zero():
    trace = trained_with_none("fp32", 4, 2)
    initial = dict(build_model(make_config()).named_parameters())
    assert all(grad.abs().max() > 0 for name, grad in trace.items() if "gradient" in name)
    assert all(not torch.equal(trace[f"trained {name}"], value) for name, value in initial.items())


@pytest.mark.parametrize("recompute", [{}, SETTINGS["softmax dropout"], SETTINGS["uniform 1"]], ids=str)
def test_the_masks_follow_the_sample_index_and_the_seed(recompute):
    config = make_config(recompute)
    model, other_seed = build_model(config), build_model(make_config(recompute, seed=4321))
    other_seed.load_state_dict(model.state_dict())
    tokens, targets, samples = make_batch(config)
    loss = model(tokens, targets, samples)
    assert torch.equal(model(tokens, targets, samples), loss)
    assert not torch.equal(model(tokens, targets, samples + 1), loss)
    assert not torch.equal(other_seed(tokens, targets, samples), loss)
    assert torch.equal(model.eval()(tokens, targets), other_seed.eval()(tokens, targets))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_sample_does_not_depend_on_the_batch_it_is_in(setting, dtype):
    # 32 tokens a sample: a CPU's matrix products round the odd rows of a ragged edge their own way.
    config = make_config(setting, dtype=dtype, seq_length=32)
    model = build_model(config)
    tokens, _, samples = make_batch(config, first_sample=5, batch=2)
    together = model(tokens, None, samples)
    apart = [model(tokens[i : i + 1], None, samples[i : i + 1]) for i in range(2)]
    assert torch.equal(together, torch.cat(apart))


def test_a_sample_has_the_same_masks_in_any_batch(record_saved):
    config = make_config()
    model = build_model(config)

    def masks(first_sample, batch):  # each as [b, ...]
        with record_saved() as saved:
            model(*make_batch(config, first_sample, batch))
        kept = [tensor for tensor in saved if tensor.dtype == torch.int8]
        return [mask if mask.dim() == 4 else mask.transpose(0, 1) for mask in kept]

    together, apart = masks(5, 4), [masks(sample, 1) for sample in (5, 6, 7, 8)]
    assert len(together) == 3 * config.model.num_layers + 1
    assert all(torch.equal(mask, torch.cat(parts)) for mask, *parts in zip(together, *apart, strict=True))


def test_splitting_a_batch_changes_gradients_by_the_order_of_sums_only(relative_error):
    config = make_config(selective("softmax", "dropout"))
    together, apart = (build_model(config).double() for _ in range(2))
    together(*make_batch(config, batch=4)).backward()
    for sample in range(4):
        (apart(*make_batch(config, sample, batch=1)) / 4).backward()
    errors = {name: relative_error(grad, gradients(together)[name]) for name, grad in gradients(apart).items()}
    assert all(error < 1e-12 for error in errors.values()), errors


def test_a_plan_can_be_replaced_on_a_live_model():
    config = make_config(full())
    model = build_unchecked(config)
    model(*make_batch(config)).backward()
    expected = {name: grad.clone() for name, grad in gradients(model).items()}
    for recompute in SETTINGS.values():
        model.zero_grad()
        apply_recompute(model, make_plan(make_config(recompute).recompute, config.model.num_layers))
        model(*make_batch(config)).backward()
        assert different(gradients(model), expected) == []
