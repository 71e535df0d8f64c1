"""Which tokens may be drawn, how often they are, and that a decoder with kept keys computes what the model does."""

import math
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaselect import build_model
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.errors import ConfigError, SamplingError
from megaselect.training.decoding import Decoder
from megaselect.training.evaluate import evaluating
from megaselect.training.sampling import SamplingSettings, candidates, draw, draw_tokens
from megaselect.training.text_stream import TextStream

EVERYTHING = SamplingSettings(1.0, None, None)
# Probabilities 1/2, 1/4, 1/8, 1/8 of the tokens 2, 0, 3, 1: exact in floating point.
LOGITS = torch.tensor([0.25, 0.125, 0.5, 0.125]).log()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, {2: 1 / 2, 0: 1 / 4, 1: 1 / 8, 3: 1 / 8}),
        (1, None, {2: 1}),
        (2, None, {2: 2 / 3, 0: 1 / 3}),
        (9, None, {2: 1 / 2, 0: 1 / 4, 1: 1 / 8, 3: 1 / 8}),
        (None, 1.0, {2: 1 / 2, 0: 1 / 4, 1: 1 / 8, 3: 1 / 8}),
        (None, 0.49, {2: 1}),
        (None, 0.51, {2: 2 / 3, 0: 1 / 3}),
        (None, 1e-9, {2: 1}),
        (2, 0.6, {2: 1}),  # of the two that are left the first has 2/3
        (2, 0.7, {2: 2 / 3, 0: 1 / 3}),
    ],
)
def test_what_top_k_and_top_p_leave(top_k, top_p, kept):
    tokens, probabilities = candidates(LOGITS, SamplingSettings(1.0, top_k, top_p))
    assert tokens[0] == 2  # likeliest first
    assert dict(zip(tokens.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature):
    tokens, probabilities = candidates(LOGITS, SamplingSettings(temperature, None, None))
    weights = {2: 0.5, 0: 0.25, 1: 0.125, 3: 0.125}
    powers = {token: weight ** (1 / temperature) for token, weight in weights.items()}
    expected = {token: power / sum(powers.values()) for token, power in powers.items()}
    assert dict(zip(tokens.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40),
    temperature=st.sampled_from([1e-30, 0.1, 0.7, 1.0, 1.5, 1e30]),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.none() | st.floats(1e-6, 1.0),
)
def test_the_kept_set_is_the_smallest_of_the_likeliest(logits, temperature, top_k, top_p):
    logits = torch.tensor(logits)
    tokens, probabilities = candidates(logits, SamplingSettings(temperature, top_k, top_p))
    left_out = sorted(set(range(len(logits))) - set(tokens.tolist()))
    assert len(set(tokens.tolist())) == len(tokens) <= (top_k or len(logits))
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    kept_logits = logits[tokens]
    if left_out:
        assert kept_logits.min() >= logits[left_out].max()
    weights = (logits.double() - logits.max().double()) / temperature
    likeliest = torch.softmax(weights.sort(descending=True).values[: top_k or len(logits)], 0)
    if top_p is None:
        assert len(tokens) == len(likeliest)
    else:  # the last one kept is needed to reach p, and no other is
        assert likeliest[: len(tokens)].sum() >= top_p - 1e-5
        assert likeliest[: len(tokens) - 1].sum() < top_p + 1e-5


@given(logits=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_greedy_is_the_likeliest(logits, seed):
    logits, generator = torch.tensor(logits), torch.Generator().manual_seed(seed)
    assert draw(logits, SamplingSettings(0, 5, 0.3), generator) == logits.argmax()
    assert logits[draw(logits, SamplingSettings(1e-45, None, None), generator)] == logits.max()


def test_frequencies_are_the_probabilities():
    """Chi-square of 5,000 draws with a fixed seed, against the 99.9th percentile for n - 1 degrees of freedom."""
    draws = 5_000
    for kept, percentile in ((EVERYTHING, 16.27), (SamplingSettings(0.7, 3, None), 13.82)):
        generator = torch.Generator().manual_seed(1)
        counts = torch.zeros(len(LOGITS))
        for _ in range(draws):
            counts[draw(LOGITS, kept, generator)] += 1
        tokens, probabilities = candidates(LOGITS, kept)
        expected = draws * probabilities
        assert counts.sum() == counts[tokens].sum()
        assert ((counts[tokens] - expected) ** 2 / expected).sum() < percentile


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(value):
    with pytest.raises(SamplingError, match="not finite"):
        candidates(torch.tensor([1.0, value]), EVERYTHING)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, 40, None), "--temperature -1: must be 0 (the likeliest token) or more"),
        ((math.nan, 40, None), "--temperature nan: must be 0 (the likeliest token) or more"),
        ((math.inf, 40, None), "--temperature inf: must be 0 (the likeliest token) or more"),
        ((1.0, -1, None), "--top-k -1: must be at least 1"),
        ((1.0, 40, 0.0), "--top-p 0: must lie in (0, 1]"),
        ((1.0, 40, 1.5), "--top-p 1.5: must lie in (0, 1]"),
        ((1.0, 40, math.nan), "--top-p nan: must lie in (0, 1]"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(ConfigError) as raised:
        SamplingSettings(*values)
    assert str(raised.value) == message


@pytest.mark.parametrize("attention", ["unfused", "fused", "sdpa"])
def test_a_decoder_computes_what_the_model_does(make_config, attention):
    """At every length, past the window too: but for the order of sums, in fp64, since rounding in fp32 says nothing."""
    dropout = 0.0 if attention == "sdpa" else 0.1
    config = make_config(model__attention=attention, model__dropout_p=dropout, model__init_std=0.2)
    model = build_model(config).double()
    ids = torch.randint(256, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    lengths = [1, 2, 3, 9, 15, 16, 17, 30, 31, 5, 6]
    with evaluating(model):
        expected = [model(torch.tensor([ids[max(length - 16, 0) : length]]))[0, -1, :250].float() for length in lengths]
    decoder = Decoder(model, 250)
    for length, logits in zip(lengths, expected, strict=True):
        torch.testing.assert_close(decoder.next_logits(ids[:length]), logits, rtol=1e-6, atol=1e-6)


def test_a_decoder_looks_at_each_token_once(make_config):
    model = build_model(make_config())
    lengths = []
    model.final_layernorm.register_forward_hook(lambda *_: lengths.append("call"))
    model.layers[0].register_forward_hook(lambda _, inputs, output: lengths.append(inputs[0].shape[0]))
    drawn = draw_tokens(Decoder(model, 256).next_logits, [1, 2, 3], SamplingSettings(), 0)
    list(islice(drawn, 15))
    assert [length for length in lengths if length != "call"] == [3, *[1] * 13, 16]


def test_a_decoder_forgets_another_prompt(make_config):
    model = build_model(make_config(model__init_std=0.2))
    with evaluating(model):
        expected = model(torch.tensor([[7, 8, 9]]))[0, -1]
    decoder = Decoder(model, 256)
    for ids in ([1], [1, 2], [7, 8, 9]):
        logits = decoder.next_logits(ids)
    torch.testing.assert_close(logits, expected)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Knows few characters; others are spelt as bytes."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train_tokenizer([f"some words and {number}" for number in range(99)], 290))
    return Tokenizer(path)


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(max_size=5), text=st.text(max_size=20))
def test_streamed_text_is_the_text(tokenizer, prompt, text):
    """Whatever comes out stays: no character is written before it is whole, and none is left out."""
    before = tokenizer.encode(prompt)
    stream, shown = TextStream(tokenizer, before), prompt
    for token in tokenizer.encode(text):
        shown += stream.add(token)
        assert (prompt + text).startswith(shown)
    assert shown + stream.rest() == prompt + text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 289), max_size=30))
def test_streamed_ids_of_any_kind_are_their_text(tokenizer, ids):
    """A model may write bytes that are no UTF-8."""
    stream = TextStream(tokenizer, [])
    assert "".join([*map(stream.add, ids), stream.rest()]) == tokenizer.decode(ids)
