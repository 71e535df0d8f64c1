"""The optimizer against the same steps written out by hand: equal to the bit."""

import pytest
import torch
from torch import nn

from megaselect.config import TrainingConfig
from megaselect.training.optimizer import INITIAL_LOSS_SCALE, MIN_LOSS_SCALE, MixedPrecisionAdamW, StepResult

SETTINGS = TrainingConfig(lr=1e-2, weight_decay=0.3, clip_grad=0.5, beta1=0.8, beta2=0.9, epsilon=1e-6)
RATES = (1e-2, 2e-2, 5e-3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))
NOT_FINITE = (float("nan"), float("inf"))


def small_model(dtype=torch.float32):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    return model.to(dtype)


def inputs(number, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(number)
    return scale * torch.randn(6, 8, generator=generator).to(dtype)


def loss_of(model, number, scale=1.0):
    weight = next(model.parameters())
    return model(inputs(number, weight.dtype, scale).to(weight.device)).float().square().mean()


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def micro_batch_gradients(model, numbers):
    """Name -> the gradient of each micro-batch alone, in the model's dtype, from a copy without hooks."""
    copy = small_model(next(model.parameters()).dtype)
    copy.load_state_dict(model.state_dict())
    gradients = {name: [] for name, _ in copy.named_parameters()}
    for number in numbers:
        copy.zero_grad(set_to_none=True)
        loss_of(copy, number).backward()
        for name, weight in copy.named_parameters():
            gradients[name].append(weight.grad.clone())
    return gradients


def by_hand(model, settings):
    """AdamW over fp32 tensors with the decay on matrices only."""
    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.epsilon, fused=True)


def clip_by_hand(model):
    """The norm before: in fp64, rounded once."""
    squares = [weight.grad.double().square().sum() for weight in model.parameters()]
    norm = torch.stack(squares).sum().sqrt().float()
    nn.utils.clip_grads_with_norm_(model.parameters(), SETTINGS.clip_grad, norm)
    return norm


@pytest.mark.parametrize("device", DEVICES)
def test_fp32_is_adamw_after_clip_grad_norm(device):
    ours, theirs = small_model().to(device), small_model().to(device)
    optimizer, adam = MixedPrecisionAdamW(ours, SETTINGS), by_hand(theirs, SETTINGS)
    for step, rate in enumerate(RATES):
        for number in (2 * step, 2 * step + 1):
            optimizer.backward(loss_of(ours, number))
            loss_of(theirs, number).backward()
        result = optimizer.step(rate, torch.ones((), device=device))
        norm = clip_by_hand(theirs)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        assert norm.item() > SETTINGS.clip_grad  # or clipping would do nothing here
        assert result == StepResult(norm.item(), skipped=False, nonfinite=False)
        assert_equal(weights_of(ours), weights_of(theirs))
        assert all(weight.grad is None for weight in ours.parameters())


def test_clip_0_clips_nothing():
    settings = SETTINGS.model_copy(update={"clip_grad": 0.0})
    ours, theirs = small_model(), small_model()
    optimizer, adam = MixedPrecisionAdamW(ours, settings), by_hand(theirs, settings)
    optimizer.backward(100 * loss_of(ours, 0))
    (100 * loss_of(theirs, 0)).backward()
    assert optimizer.step(settings.lr).grad_norm > 1
    adam.step()
    assert_equal(weights_of(ours), weights_of(theirs))


def test_bf16_gradients_are_added_in_fp32_and_freed():
    model = small_model(torch.bfloat16)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    alone = micro_batch_gradients(model, range(4))
    for number in range(4):
        optimizer.backward(loss_of(model, number))
        assert all(weight.grad is None for weight in model.parameters())
    rounded_sum_differs = False
    for name, master in optimizer.masters.items():
        expected = alone[name][0].float()
        in_bf16 = alone[name][0].clone()
        for gradient in alone[name][1:]:
            expected += gradient.float()
            in_bf16 += gradient
        assert master.grad.dtype == torch.float32
        assert torch.equal(master.grad, expected)
        rounded_sum_differs |= not torch.equal(in_bf16.float(), expected)
    assert rounded_sum_differs  # or this test could not tell fp32 sums from bf16 ones


def test_bf16_steps_are_adamw_on_fp32_masters():
    model, masters = small_model(torch.bfloat16), small_model(torch.bfloat16).float()
    optimizer, adam = MixedPrecisionAdamW(model, SETTINGS), by_hand(masters, SETTINGS)
    for step, rate in enumerate(RATES):
        alone = micro_batch_gradients(model, (2 * step, 2 * step + 1))
        for number in (2 * step, 2 * step + 1):
            optimizer.backward(loss_of(model, number))
        result = optimizer.step(rate)
        for name, master in masters.named_parameters():
            master.grad = alone[name][0].float() + alone[name][1].float()
        norm = clip_by_hand(masters)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        assert result.grad_norm == norm.item()
        assert_equal(dict(optimizer.masters), dict(masters.named_parameters()))
        assert_equal(weights_of(model), {name: master.bfloat16() for name, master in optimizer.masters.items()})
        assert all(master.grad is None for master in optimizer.masters.values())
    fine = optimizer.masters["0.weight"]
    assert not torch.equal(fine, fine.bfloat16().float())  # the masters hold more than the weights can


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_decay_shrinks_matrices_and_nothing_else(dtype):
    """With gradients of 0, decay is all that moves a weight."""
    model = small_model(dtype)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    before = {name: master.detach().clone() for name, master in optimizer.masters.items()}
    optimizer.backward(0 * loss_of(model, 0))
    optimizer.step(0.1)
    for name, master in optimizer.masters.items():
        expected = before[name] - (0.1 * SETTINGS.weight_decay) * before[name] if master.dim() == 2 else before[name]
        if master.dim() == 2:
            torch.testing.assert_close(master.detach(), expected, rtol=1e-6, atol=0)
            assert not torch.equal(master, before[name])
        else:
            assert torch.equal(master, expected)


def test_fp16_overflow_skips_the_step_and_halves_the_loss_scale():
    model = small_model(torch.float16)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    assert optimizer.scalars()["scale"] == INITIAL_LOSS_SCALE == 32768.0
    optimizer.backward(loss_of(model, 0))
    assert not optimizer.step(1e-2).skipped
    before, moments = weights_of(model), {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    optimizer.backward(1e4 * loss_of(model, 1))
    assert optimizer.step(1e-2).skipped
    assert optimizer.scalars()["scale"] == INITIAL_LOSS_SCALE / 2
    assert_equal(weights_of(model), before)
    assert_equal(optimizer.tensors(), moments)
    optimizer.backward(loss_of(model, 2))
    assert not optimizer.step(1e-2).skipped
    assert not torch.equal(weights_of(model)["0.weight"], before["0.weight"])


def test_fp16_gradients_are_unscaled_before_they_are_clipped():
    """The reported norm is that of the loss, not of the scaled loss."""
    model = small_model(torch.float16)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    optimizer.backward(loss_of(model, 0))
    scaled = nn.utils.get_total_norm([master.grad for master in optimizer.masters.values()]).item()
    assert optimizer.step(1e-2).grad_norm == pytest.approx(scaled / INITIAL_LOSS_SCALE, rel=1e-6)


def state_of(model, optimizer):
    tensors = weights_of(model) | {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    return tensors | {name: torch.tensor(value) for name, value in optimizer.scalars().items()}


def after_a_step(dtype, device="cpu"):
    model = small_model(dtype).to(device)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    optimizer.backward(loss_of(model, 0))
    assert optimizer.step(1e-2) == StepResult(pytest.approx(1, abs=1), skipped=False, nonfinite=False)
    return model, optimizer


def assert_goes_on_as_if_nothing_had_been(model, optimizer, dtype, device):
    """The next step has the bits of the same step of a run that never saw the step before it."""
    undisturbed, its = after_a_step(dtype, device)
    for each, own in ((model, optimizer), (undisturbed, its)):
        own.backward(loss_of(each, 2))
        assert not own.step(1e-2, torch.ones((), device=device)).skipped
    assert_equal(state_of(model, optimizer), state_of(undisturbed, its))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype, value, device):
    model, optimizer = after_a_step(dtype, device)
    before = state_of(model, optimizer)
    optimizer.backward(loss_of(model, 1))
    optimizer.masters["3.bias"].grad[1] = value
    result = optimizer.step(1e-2, torch.ones((), device=device))
    assert (result.skipped, result.nonfinite, str(result.grad_norm)) == (True, True, str(value))
    assert_equal(state_of(model, optimizer), before)
    assert all(master.grad is None for master in optimizer.masters.values())
    assert_goes_on_as_if_nothing_had_been(model, optimizer, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_that_is_not_finite_changes_nothing(dtype, value, device):
    """Its gradients may be finite all the same; in fp16 the loss scale is no answer to it."""
    model, optimizer = after_a_step(dtype, device)
    before = state_of(model, optimizer)
    optimizer.backward(loss_of(model, 1))
    result = optimizer.step(1e-2, torch.tensor(value, device=device))
    assert result == StepResult(pytest.approx(1, abs=1), skipped=True, nonfinite=True)
    assert_equal(state_of(model, optimizer), before)
    assert_goes_on_as_if_nothing_had_been(model, optimizer, dtype, device)


def test_a_first_step_that_is_left_out_leaves_no_moments():
    model = small_model()
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    optimizer.backward(float("nan") * loss_of(model, 0))
    assert optimizer.step(1e-2).nonfinite
    assert len(optimizer.tensors()) == 18
    assert not any(tensor.any() for tensor in optimizer.tensors().values())


def test_a_step_that_is_left_out_does_not_round_the_masters_again():
    """A weight that is not its master's is what the diagnosis has yet to see."""
    model, optimizer = after_a_step(torch.bfloat16)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    optimizer.backward(loss_of(model, 1))
    assert optimizer.step(1e-2).nonfinite
    assert model[0].weight[0, 0].isnan()


def test_fp16_has_a_lowest_loss_scale():
    model, optimizer = after_a_step(torch.float16)
    optimizer.load_scalars(optimizer.scalars() | {"scale": 2 * MIN_LOSS_SCALE})
    for nonfinite in (False, True, True):
        before = state_of(model, optimizer)
        optimizer.backward(loss_of(model, 1))
        optimizer.masters["0.weight"].grad[0, 0] = float("inf")
        result = optimizer.step(1e-2, torch.ones(()))
        assert (result.skipped, result.nonfinite) == (True, nonfinite)
        assert optimizer.scalars()["scale"] == MIN_LOSS_SCALE == 2**-10
        halved = {} if nonfinite else {"scale": torch.tensor(MIN_LOSS_SCALE), "_growth_tracker": torch.tensor(0)}
        assert_equal(state_of(model, optimizer), before | halved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_is_restored_to_the_bit(dtype):
    model = small_model(dtype)
    optimizer = MixedPrecisionAdamW(model, SETTINGS)
    for number, rate in enumerate(RATES):
        optimizer.backward(loss_of(model, number))
        optimizer.step(rate)
    state, scalars = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}, optimizer.scalars()
    names = [name for name, _ in model.named_parameters()]
    kinds = ["step", "exp_avg", "exp_avg_sq"] + (["master"] if dtype != torch.float32 else [])
    assert state.keys() == {f"{kind}.{name}" for kind in kinds for name in names}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}

    other = small_model(dtype)
    other.load_state_dict(model.state_dict())
    restored = MixedPrecisionAdamW(other, SETTINGS)
    for name, tensor in restored.tensors().items():
        tensor.copy_(state[name])
    restored.load_scalars(scalars)
    assert_equal(restored.tensors(), state)
    assert restored.scalars() == scalars
    for each, its in ((model, optimizer), (other, restored)):
        its.backward(loss_of(each, 9))
        its.step(1e-2)
    assert_equal(weights_of(other), weights_of(model))
    assert_equal(restored.tensors(), optimizer.tensors())
