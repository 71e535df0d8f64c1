"""Every private name of another library that this package uses, each with its reason. Nothing else may hold one.

docs/torch-versions.md lists them. A name is looked up here once. Where a library has it no longer, the caller gets what
its function's docstring says; training needs none of them. What observes a step (the ledger, verify, compare) is
proved on the torch that runs, before its first use, by megaselect.ledger.self_check: names that exist can change
their meaning.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from megaselect.errors import ComparisonError, UnsupportedTorchError


def _found(module: str, *names: str) -> Any:
    """The first of `names` that the module has, dots and all; None where it has none, or is not there itself."""
    with contextlib.suppress(ImportError):
        home = importlib.import_module(module)
        for name in names:
            with contextlib.suppress(AttributeError):
                return functools.reduce(getattr, name.split("."), home)
    return None


# Watching operators is public in neither name nor place, and there is no other way: torch's own FlopCounterMode,
# MemTracker and selective checkpoint are built on it.
TorchDispatchMode: Any = _found("torch.utils._python_dispatch", "TorchDispatchMode") or object
# Whether a tensor is made of others (DTensor); torch.utils has no public question for it.
_is_wrapper = _found("torch.utils._python_dispatch", "is_traceable_wrapper_subclass")
# Tensors inside torch.func's transforms have no storage to count.
_is_transformed = _found("torch._C", "_functorch.is_functorch_wrapped_tensor")

# What a non-reentrant region runs under. From 2.14 the second name is an alias that nothing calls any more.
_REGION_NAMES = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
# Users of that generator who imported it by name.
_REGION_USERS = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")
_HOOK = "_checkpoint_hook"  # the class of the saved-tensor hooks inside a region
_CACHE = "_CachingTorchDispatchMode"  # what selective checkpointing runs a region's first run under

# torch's wrapper module, as torchtitan and FSDP's utilities put it around layers, and what it calls the module inside.
CHECKPOINT_WRAPPER_MODULE = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
WRAPPED_MODULE = "_checkpoint_wrapped_module"


class MadeOfTensors(Protocol):
    """A tensor that is a wrapper around others: by torch's protocol it names the attributes that they are."""

    def __tensor_flatten__(self) -> tuple[list[str], Any]: ...


def is_made_of_tensors(tensor: Tensor) -> TypeGuard[MadeOfTensors]:
    """Whether `tensor` is a wrapper around others, as a DTensor is. False where torch cannot say."""
    return _is_wrapper is not None and bool(_is_wrapper(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Whether `tensor` belongs to a function transform of torch.func. False where torch cannot say."""
    return _is_transformed is not None and bool(_is_transformed(tensor))


def storage_address(tensor: Tensor) -> int:
    """Of the storage object itself: it tells empty storages apart too, whose data_ptr() is 0."""
    return tensor.untyped_storage()._cdata


def version_of(tensor: Tensor) -> int:
    """How often `tensor` was changed in place: public to read in every error of autograd's, and nowhere else."""
    return -1 if tensor.is_inference() else tensor._version


def graph_of(tensor: Tensor) -> torch.autograd.graph.Node | None:
    """The node that made a tensor, or what it is a view of. A view's own node says only that it is a view."""
    return (tensor if tensor._base is None else tensor._base).grad_fn


def argument_names(op: Any) -> list[str]:
    """Of an operator, from its schema."""
    return [argument.name for argument in op._schema.arguments]


def written_arguments(op: Any) -> tuple[int, ...]:
    """Positions of the arguments that an operator writes into, from its schema; (-1,) where one has a keyword alone."""
    arguments = op._schema.arguments
    written = [
        place for place, argument in enumerate(arguments) if argument.alias_info and argument.alias_info.is_write
    ]
    return (-1,) if any(arguments[place].kwarg_only for place in written) else tuple(written)


_FakeTensor = _found("torch._subclasses.fake_tensor", "FakeTensor")


def is_fake(tensor: Tensor) -> bool:
    """Whether `tensor` has a shape and no values. False where torch cannot say."""
    return _FakeTensor is not None and isinstance(tensor, _FakeTensor)


_FakeTensorMode = _found("torch._subclasses.fake_tensor", "FakeTensorMode")
_FakeCopyMode = _found("torch._subclasses.fake_tensor", "FakeCopyMode")


@contextlib.contextmanager
def fake_copy(tree: Any) -> Iterator[Any]:
    """A copy of `tree`, modules too, with tensors of shapes alone; operators on them inside need no memory.

    Samples of transformers count as not packed. Raises UnsupportedTorchError where torch cannot make one.
    """
    if _FakeTensorMode is None or _FakeCopyMode is None:
        raise unsupported("has no tensors without values where they were")
    mode = _FakeTensorMode()
    with _FakeCopyMode(mode):
        copied = copy.deepcopy(tree)
    with _refusals_untold(), _samples_not_packed(), mode:
        yield copied


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, what is made has a shape and no values, and takes no memory: a model of any size can be built.

    Raises UnsupportedTorchError where torch cannot do so.
    """
    if _FakeTensorMode is None:
        raise unsupported("has no tensors without values where they were")
    with _refusals_untold(), _FakeTensorMode():
        yield


@contextlib.contextmanager
def _refusals_untold() -> Iterator[None]:
    """Where an operator refuses fake tensors torch prints a stack, and raises too."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _samples_not_packed() -> Iterator[None]:
    """transformers reads from positions whether samples are packed; where these have no values it makes masks for such
    as are, in every layer, which it does not for those that are not."""
    masks, name = sys.modules.get("transformers.masking_utils"), "find_packed_sequence_indices"
    with contextlib.ExitStack() as stack:
        if hasattr(masks, name):
            stack.enter_context(replaced(masks, name, lambda _: lambda *args, **kwargs: None))
        yield


_NEEDS_VALUES = tuple(
    filter(
        None,
        (
            _found("torch._subclasses.fake_tensor", name)
            for name in (
                "DataDependentOutputException",
                "DynamicOutputShapeException",
                "UnsupportedFakeTensorException",
                "UnsupportedOperatorException",
            )
        ),
    )
)


def needs_values(error: BaseException) -> bool:
    """Whether an operator refused since tensors had no values. False where torch cannot say."""
    return isinstance(error, _NEEDS_VALUES)


_without_functions = _found("torch._C", "DisableTorchFunction")
_without_modes = _found("torch.utils._python_dispatch", "_disable_current_modes")


@contextlib.contextmanager
def modes_suspended() -> Iterator[None]:
    """Inside, no mode sees calls or operators: a compiler would trace what a mode does with them."""
    with contextlib.ExitStack() as stack:
        for suspend in (_without_functions, _without_modes):
            if suspend is not None:
                stack.enter_context(suspend())
        yield


@contextlib.contextmanager
def compiled_parts(model: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Inside, each compiled module in `model` is called as around(its call): a hook would be compiled with it."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            name = "_compiled_call_impl" if module.__dict__.get("_compiled_call_impl") else "forward"
            if is_compiled_module(module):
                call = getattr(module, name)
                stack.callback(module.__dict__.__setitem__, name, call)
                module.__dict__[name] = around(call)
        yield


def is_observed() -> bool:
    """Whether a ledger or `verify` watches this step."""
    return bool(_observers)


def is_in_backward() -> bool:
    """Whether this thread runs a backward pass: the stack of autograd's threads for GPUs does not say so."""
    return _graph_task() != -1


_graph_task = _found("torch._C", "_current_graph_task_id") or (lambda: -1)


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody has put a hook on the module. True where torch cannot say."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(module.__dict__.get(name, True) for name in names)


class Hooks:
    """Saved-tensor hooks of an observer: torch's own, and known as no user's where selective checkpointing asks."""

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        self._pack = pack  # one object: a bound method is a new one each time it is read
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, unpack)

    def __enter__(self) -> None:
        _observers.append(self._pack)
        self._hooks.__enter__()

    def __exit__(self, *args: object) -> None:
        self._hooks.__exit__(*args)
        _observers.remove(self._pack)


_observers: list[Callable[[Tensor], Any]] = []
_top_hooks = _found("torch._C", "_autograd._top_saved_tensors_default_hooks")


def outer_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The saved-tensor hooks that are on, pack and unpack. None: there are none, or torch cannot say."""
    top = _top_hooks(False) if _top_hooks else None
    return (top[0], top[1]) if top else None


def only_observed() -> bool:
    """Whether the saved-tensor hooks that are on are an observer's. True where torch cannot say."""
    top = _top_hooks(False) if _top_hooks else None
    return top is None or any(top[0] is pack for pack in _observers)


def is_compiled_module(module: nn.Module) -> bool:
    """Whether torch.compile or Module.compile has been at the module: a hook on what is inside has it compiled anew."""
    wrapper = _found("torch._dynamo", "OptimizedModule") if "torch._dynamo" in sys.modules else None
    return module.__dict__.get("_compiled_call_impl") is not None or (wrapper and isinstance(module, wrapper)) or False


@contextlib.contextmanager
def other_hooks_watched(packed: Callable[[Tensor, Any], None]) -> Iterator[None]:
    """Inside, packed(tensor, what is kept for it) is called for the saved-tensor hooks of others that are entered.

    torch calls the innermost hooks alone. Its own, of checkpointed regions, are left out.
    """

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def enter(self: Any) -> Any:
            pack = self.pack_hook
            of_torch = any(base.__module__ == checkpoint.__name__ for base in type(self).__mro__)
            if of_torch or any(pack is one for one in _observers):
                return original(self)

            def watched_pack(tensor: Tensor) -> Any:
                kept = pack(tensor)
                with _without_functions() if _without_functions else contextlib.nullcontext():
                    packed(tensor, kept)  # what the observer asks of tensors is no call of the model's
                return kept

            self.pack_hook = watched_pack
            try:
                return original(self)
            finally:
                self.pack_hook = pack

        return enter

    with replaced(torch.autograd.graph.saved_tensors_hooks, "__enter__", watched):
        yield


Around = Callable[[Callable[[], Iterator[None]], Callable[..., Any], dict[str, Any]], Iterator[None]]


@contextlib.contextmanager
def regions_run_by(around: Around) -> Iterator[None]:
    """Inside, torch's checkpoint runs each non-reentrant region in around(run, function, keyword arguments).

    run() is the generator that it would run it in. Not for several threads at a time.
    """
    name = next((name for name in _REGION_NAMES if hasattr(checkpoint, name)), "")
    if not name:
        raise unsupported("runs checkpointed regions in a way that is not known")
    with contextlib.ExitStack() as stack:
        for user in _REGION_USERS:
            home = sys.modules.get(user)  # who imports it later gets the one that is there then
            if hasattr(home, name):
                stack.enter_context(replaced(home, name, functools.partial(_adapted, around)))
        yield


def _adapted(around: Around, original: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """Either form of the generator: with the region's arguments behind torch's own, or as a tuple and a dictionary."""

    def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[None]:
        given = kwargs
        if original.__name__ == _REGION_NAMES[0]:
            given = args[1] if len(args) > 1 else kwargs["kwargs"]
            # Selective checkpointing asks those who are inside saved-tensor hooks to choose, with a warning in 2.14 and
            # an error later. An observer's hooks are no reason to: the cache stays what it is without them.
            if kwargs.get(_RESPECT) is None and only_observed():
                kwargs[_RESPECT] = False
        return around(functools.partial(original, function, *args, **kwargs), function, given)

    return generator


_RESPECT = "respect_saved_tensors_hooks"


@contextlib.contextmanager
def region_hooks_watched(
    enter: Callable[[], None], pack: Callable[[Tensor], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Inside, each first run of a non-reentrant region calls enter() and leave(), and pack(tensor) where autograd would
    keep one and torch's hook lets go of it."""
    if not hasattr(checkpoint, _HOOK):
        raise unsupported("lets go of tensors inside checkpointed regions in a way that is not known")

    def watched(original: Any) -> Any:
        class WatchedHook(original):
            pack_hook: Callable[[Tensor], Any]

            def __init__(self, frame: Any) -> None:
                super().__init__(frame)
                inner = self.pack_hook

                @functools.wraps(inner)  # its attributes say that it is torch's own
                def watched_pack(tensor: Tensor) -> Any:
                    pack(tensor)
                    return inner(tensor)

                self.pack_hook = watched_pack

            def __enter__(self) -> None:
                enter()
                super().__enter__()

            def __exit__(self, *args: object) -> None:
                super().__exit__(*args)
                leave()

        return WatchedHook

    with replaced(checkpoint, _HOOK, watched):
        yield


@contextlib.contextmanager
def cache_watched(cached: Callable[[Tensor, str], None]) -> Iterator[None]:
    """Inside, cached(tensor, operator) is called for what selective checkpointing keeps of an operator's results."""
    mode = getattr(checkpoint, _CACHE, None)
    if mode is None:
        raise unsupported("keeps what selective checkpointing saves in a way that is not known")

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = original(self, func, types, args, kwargs)
            if not _is_traced():
                for tensor in last_cached(self.storage.get(func)):
                    cached(tensor, func.overloadpacket.__name__)
            return out

        return without_compiler(dispatch)

    with replaced(mode, "__torch_dispatch__", watched):
        yield


def last_cached(entries: Any) -> list[Tensor]:
    """The tensors of an operator's latest entry: of a list in torch 2.11, of a dictionary by call number later."""
    if not entries:
        return []
    latest = entries[-1] if isinstance(entries, list) else next(reversed(entries.values()))
    parts = latest if isinstance(latest, tuple | list) else [latest]
    return [part.val for part in parts if isinstance(getattr(part, "val", None), Tensor)]


_proxy_mode = _found("torch._C", "_TorchDispatchModeKey.PROXY")
_dispatch_mode = _found("torch._C", "_get_dispatch_mode")
_tracing_context = _found("torch._guards", "TracingContext.try_get")


def _is_traced() -> bool:
    """Whether a compiler runs this to see what it would do: nothing is kept then."""
    is_making_graph = _dispatch_mode is not None and _dispatch_mode(_proxy_mode) is not None
    return is_making_graph or (_tracing_context is not None and _tracing_context() is not None)


def without_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, never compiled. torch.compiler.disable is public, and imports the compiler, which takes a second."""
    disable = _found("torch", "_disable_dynamo")
    return disable(function, recursive=True) if disable else torch.compiler.disable(function)


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """owner.name is replacement(owner.name) inside."""
    original = getattr(owner, name)
    setattr(owner, name, replacement(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def unsupported(what: str) -> UnsupportedTorchError:
    """The error that says what this torch does otherwise, and what follows."""
    return UnsupportedTorchError(
        f"torch {torch.__version__} {what}, so that the ledger, verify and compare would be wrong: training is not "
        "affected; use them with a torch from 2.11 to 2.15, or a newer megaselect"
    )


def forget_groups(mesh: Any) -> None:
    """A mesh holds its process groups, and caches of DTensor, which have no other way to be emptied, hold the mesh for
    good: so do connections last, and whoever waits at their other ends. Where torch holds them otherwise, nothing is
    done, and they wait for their time-out.
    """
    held = getattr(mesh, "_pg_registry", None)
    if isinstance(held, dict):
        held.clear()


def real_tensors() -> contextlib.AbstractContextManager[None]:
    """Random states are real tensors among fake ones too: inside, they can be compared."""
    unset = _found("torch._subclasses.fake_tensor", "unset_fake_temporarily")
    return unset() if unset else contextlib.nullcontext()


def share_compiled_graphs(graphs: int) -> None:
    """Modules that differ in integers alone share graphs, up to `graphs` a function. The compiler's settings have no
    public home; a torch without them compiles each layer for itself."""
    config = _found("torch._dynamo", "config")
    if config is not None and hasattr(config, "allow_unspec_int_on_nn_module"):
        config.allow_unspec_int_on_nn_module = True
    if config is not None and hasattr(config, "recompile_limit"):
        config.recompile_limit = max(config.recompile_limit, graphs)


def load_compiler() -> None:
    """torch.optim imports it on first use, which takes every process a second."""
    _found("torch", "_dynamo")


def quieten_region_warnings() -> None:
    """The compiler warns of every operator that writes in place inside a selective region, whenever there is one."""
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Each target becomes its source, in few kernels where torch has the operator, else one by one."""
    copy = _found("torch", "_foreach_copy_")
    if copy:
        copy(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def saved_form(part: Any) -> Any:
    """A view or report as wandb-workspaces would save it. Raises ComparisonError where that cannot be asked for."""
    if not hasattr(part, "_to_model"):
        raise ComparisonError("this wandb-workspaces saves views in a way that is not known here; install 0.4")
    return part._to_model()


def adjusted_when_saved(view: Any, adjust: Callable[[Any], None]) -> Any:
    """A subclass of wandb-workspaces' `view` whose saved form goes through `adjust`: some settings have only that."""

    class Adjusted(view):
        def _to_model(self) -> Any:
            form = saved_form(super())
            adjust(form)
            return form

    return Adjusted


class MemoryHistory:
    """The CUDA allocator's history. torch documents these names as they are, with the underscore."""

    @staticmethod
    def start(**settings: Any) -> None:
        torch.cuda.memory._record_memory_history(**settings)

    @staticmethod
    def stop() -> None:
        torch.cuda.memory._record_memory_history(enabled=None)

    @staticmethod
    def dump(path: str) -> None:
        torch.cuda.memory._dump_snapshot(path)

    @staticmethod
    def snapshot() -> dict[str, Any]:
        return torch.cuda.memory._snapshot()
