"""State that a second run changes a second time, or that has changed since the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from corpus.fault import TOKENS, WIDTH, Case, Chain, Fault, Layer, batch, chain, dropping, reentrant, region


class Normed(Layer):
    """With a normalisation behind it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Codebook(Layer):
    """Takes a running mean off, which follows the inputs. update: whether forward itself moves it."""

    def __init__(self, update: bool) -> None:
        super().__init__()
        self.update = update
        self.register_buffer("center", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.update:
            self.follow(x)
        return super().forward(x - self.center)

    def follow(self, x: Tensor) -> None:
        """One step of the running mean."""
        self.center = torch.lerp(self.center, x.detach().mean(0), 0.1)


def followed_outside(layer: Codebook, x: Tensor) -> Tensor:
    """The mean moves before the region, once."""
    layer.follow(x)
    return region(layer, x)


class Experts(Layer):
    """A router that counts the tokens of each of two experts, inside, or behind the region."""

    def __init__(self, counts_inside: bool) -> None:
        super().__init__()
        self.counts_inside, self.router = counts_inside, nn.Linear(WIDTH, 2)
        self.register_buffer("tokens_per_expert", torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.router(x).softmax(-1)
        if self.counts_inside:
            self.count(weights)
        return super().forward(x) * weights[:, :1], weights

    def count(self, weights: Tensor) -> None:
        """Add those of one batch."""
        self.tokens_per_expert += functional.one_hot(weights.argmax(-1), 2).sum(0)


def routed(layer: Experts, x: Tensor) -> Tensor:
    """The region returns the router's weights too."""
    x, weights = region(layer, x)
    if not layer.counts_inside:
        layer.count(weights)
    return x


class BalanceTracker(Experts):
    """Adds the load balancing loss to a dictionary that the log reads: no buffer, a plain attribute."""

    def __init__(self, counts_inside: bool) -> None:
        super().__init__(counts_inside)
        self.tracked = {"load balancing": 0.0}

    def count(self, weights: Tensor) -> None:
        """Add that of one batch."""
        self.tracked["load balancing"] += float(weights.detach().mean(0).square().sum())


class WarmUp(Layer):
    """Its input counts for more with every call, by a counter that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        return super().forward(x * (self.next_scale() if scale is None else scale))

    def next_scale(self) -> float:
        """Of this call."""
        self.calls += 1
        return self.calls / 10


def scaled_outside(layer: WarmUp, x: Tensor) -> Tensor:
    """The counter moves outside; its value is an argument."""
    return region(layer, x, layer.next_scale())


class EverySecondCall(Layer):
    """Does its work in every second call alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, works: bool | None = None) -> Tensor:
        return super().forward(x) if (self.next_works() if works is None else works) else x.clone()

    def next_works(self) -> bool:
        """Whether this call does."""
        self.calls += 1
        return self.calls % 2 == 1


def chosen_outside(layer: EverySecondCall, x: Tensor) -> Tensor:
    """The counter moves outside; what it says is an argument."""
    return region(layer, x, layer.next_works())


class Spectral(nn.Module):
    """A product with a spectral norm of one; each use of the weight is a step of the power iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.linear.weight if weight is None else weight
        return torch.tanh(functional.gelu(functional.linear(x, weight, self.linear.bias)).exp())


def normed_outside(layer: Spectral, x: Tensor) -> Tensor:
    """The normed weight is made once and handed in."""
    return region(layer, x, layer.linear.weight)


class Cached(Layer):
    """Attends to a cache of fixed size, whose next places it fills; the second run fills the places behind them."""

    def __init__(self, use_cache: bool) -> None:
        super().__init__()
        self.use_cache, self.position = use_cache, 0
        self.register_buffer("cache", torch.zeros(4 * TOKENS, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        keys = x
        if self.use_cache:
            filled = self.position + TOKENS
            keys = torch.cat([self.cache[: self.position], x, self.cache[filled:]])
            self.cache = keys.detach()
            self.position = filled
        return super().forward(functional.scaled_dot_product_attention(x, keys, keys))


SCHEDULE = {"step": 0}


class Annealed(Layer):
    """Its temperature is that of a schedule's step: the module's, which goes on, or an argument."""

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        return super().forward(x / (1 + (SCHEDULE["step"] if step is None else step)))


class CountsSteps(Chain):
    """forward ends with the next step of the schedule."""

    def forward(self, x: Tensor) -> Tensor:
        loss = super().forward(x)
        SCHEDULE["step"] += 1
        return loss


def at_step_zero(layer: Annealed, x: Tensor) -> Tensor:
    """The step is an argument."""
    return region(layer, x, 0)


class Gathers(Layer):
    """Adds its result to a list on the module: the second run adds a second time, where it runs to its end."""

    def __init__(self, gathers: bool) -> None:
        super().__init__()
        self.gathers, self.hidden = gathers, []

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.gathers:
            self.hidden.append(out.detach())
        return out


def gathered_outside(layer: Gathers, x: Tensor) -> Tensor:
    """The caller keeps what the region returns."""
    x = region(layer, x)
    layer.hidden.append(x.detach())
    return x


def eval_too_early() -> Case:
    """Somebody turns to evaluation before backward: dropout is off in the second run."""
    model = Chain(dropping, reentrant)

    def loss_fn(loss: Tensor) -> Tensor:
        model.eval()
        return loss

    return Case(model, batch(), loss_fn)


AGAIN = "the second run updates it again"
FAULTS = (
    Fault(
        "batch-norm",
        "state",
        AGAIN,
        chain(lambda: Normed(nn.BatchNorm1d(WIDTH))),
        chain(lambda: Normed(nn.GroupNorm(2, WIDTH))),
    ),
    Fault(
        "ema-codebook",
        "state",
        AGAIN,
        chain(lambda: Codebook(True)),
        chain(lambda: Codebook(False), followed_outside),
    ),
    Fault(
        "tokens-per-expert",
        "state",
        AGAIN,
        chain(lambda: Experts(True), routed),
        chain(lambda: Experts(False), routed),
    ),
    Fault(
        "balance-tracker",
        "state",
        "tracked",
        chain(lambda: BalanceTracker(True), routed),
        chain(lambda: BalanceTracker(False), routed),
    ),
    Fault(
        "gathered-hidden-states",
        "state",
        "hidden",
        chain(lambda: Gathers(True), reentrant),
        chain(lambda: Gathers(False), gathered_outside),
    ),
    Fault("call-counter", "same bits", "differs in", chain(WarmUp), chain(WarmUp, scaled_outside)),
    Fault(
        "every-second-call",
        "gradients",
        "without a gradient",
        chain(EverySecondCall, reentrant),
        chain(EverySecondCall, chosen_outside),
    ),
    Fault("spectral-norm", "same bits", "differs in", chain(Spectral), chain(Spectral, normed_outside)),
    Fault("static-cache", "same bits", "differs in", chain(lambda: Cached(True)), chain(lambda: Cached(False))),
    Fault(
        "global-schedule",
        "second run",
        "gives another result in its second run",
        lambda: Case(CountsSteps(Annealed), batch()),
        lambda: Case(CountsSteps(Annealed, at_step_zero), batch()),
    ),
    Fault(
        "eval-before-backward",
        "same bits",
        "differs in",
        eval_too_early,
        lambda: Case(Chain(dropping, reentrant), batch()),
    ),
)
