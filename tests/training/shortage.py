"""Makes memory run out at chosen points of a run in this process, by a request that no machine can meet."""

import torch

from megaselect.training import optimizer

EXBIBYTE = 2**60


def exhaust():
    """The allocator's own error."""
    torch.empty(EXBIBYTE, dtype=torch.uint8)


class Shortage:
    """`points`: number of a training forward pass of the process, counted from 1 -> where after it memory runs out.

    forward: before the last layer; backward: when the gradient reaches the first layer; norm: in the optimizer, before
    anything changes; update: after the weights have changed. `evaluating`: the next forward pass without gradients.
    """

    def __init__(self, monkeypatch, points, evaluating=False):
        self.points, self.evaluating, self.passes = dict(points), evaluating, 0
        self._patch_build(monkeypatch)
        for owner, name, point in (
            (optimizer, "gradient_norm", "norm"),
            (optimizer.ShardIndependentAdamW, "step", "update"),
        ):
            monkeypatch.setattr(owner, name, self._then(getattr(owner, name), point))

    def hit(self, point):
        """Once at each of the points."""
        if self.points.get(self.passes) == point:
            del self.points[self.passes]
            exhaust()

    def _then(self, function, point):
        def run(*arguments, **keywords):
            result = function(*arguments, **keywords)
            self.hit(point)
            return result

        return run

    def _patch_build(self, monkeypatch):
        from megaselect.training import run

        build = run.build_distributed

        def build_with_hooks(*settings):
            model, *others = build(*settings)
            model.register_forward_pre_hook(self._count)
            model.layers[-1].register_forward_pre_hook(lambda *_: self.hit("forward"))
            model.layers[0].register_forward_hook(self._watch_gradient)
            return model, *others

        monkeypatch.setattr(run, "build_distributed", build_with_hooks)

    def _count(self, model, _):
        self.passes += model.training
        if self.evaluating and not model.training:
            exhaust()

    def _watch_gradient(self, layer, _, output):
        if output.requires_grad:
            output.register_hook(lambda _: self.hit("backward"))
