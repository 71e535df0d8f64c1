"""A whole run: from a config to a summary. Sets the pieces up in order; the loop is in megaselect.training.loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from megaselect.build import build_distributed
from megaselect.config import Config
from megaselect.devices import Placement, load_kernels, resolve_placement
from megaselect.distributed.launch import joined_ranks
from megaselect.distributed.layout import Layout
from megaselect.distributed.ranks import Ranks
from megaselect.distributed.together import BeginAgain
from megaselect.kernels.dropout_mask import drop_threshold
from megaselect.models.gpt.apply_plan import applied_plan
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.presets import describe_recompute
from megaselect.training.automatic import plan_note, save_plan
from megaselect.training.checkpoint import find_checkpoint, load_checkpoint
from megaselect.training.checkpoint_files import list_checkpoints
from megaselect.training.compatibility import changed_data, changed_settings
from megaselect.training.data_choice import follow_vocabulary
from megaselect.training.datasets import Datasets, open_datasets
from megaselect.training.events import RunHeader, RunSummary, SilentSink, Sink, failures_told
from megaselect.training.loop import Trainer
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.out_of_memory import memory_errors_explained, static_remedy
from megaselect.training.profilers import check_profilers
from megaselect.training.ranks_alike import check_alike
from megaselect.training.run_dir import RunDir
from megaselect.training.run_record import Segment, changed_device
from megaselect.training.shared_run_dir import shared_run_dir
from megaselect.training.signals import StopRequest
from megaselect.training.state import RunState
from megaselect.training.torch_state import own_torch_state
from megaselect.units import parse_duration

MakeSink = Callable[[Config, Path, StopRequest], Sink]


def train(config: Config, config_name: str, notes: Sequence[str], make_sink: MakeSink) -> RunSummary:
    """Train to max_steps, continuing from a checkpoint where the config says so. Raises MegaselectError.

    make_sink: is given the config, the run's directory, and what a sink may ask to stop the run. Torch's random states
    and settings, and the handlers of signals and warnings, are afterwards as they were; but a rank of several whose run
    has failed ignores SIGTERM: it is about to say why.
    """
    while True:
        try:
            return _train_on_ranks(config, config_name, notes, make_sink)
        except BeginAgain as again:
            config = Config.from_dict({**config.to_dict(), **again.settings})
            notes = [*notes, f"note: {again.reason}"]


@contextmanager
def _begins_again_in(run_dir: Path, config: Config) -> Iterator[None]:
    """What begins again goes on in the same directory, from its last checkpoint if it has one."""
    try:
        yield
    except BeginAgain as again:
        resume = "auto" if list_checkpoints(run_dir) else config.training.resume
        place = {"run_dir": str(run_dir), "resume": resume}
        again.settings["training"] = {**config.to_dict()["training"], **place}
        raise


def _train_on_ranks(config: Config, config_name: str, notes: Sequence[str], make_sink: MakeSink) -> RunSummary:
    """As many times as the ranks begin again. Raises BeginAgain."""
    with joined_ranks(parse_duration(config.parallel.timeout, "--parallel.timeout")) as ranks:
        placement = resolve_placement(config.training)
        check_profilers(config.logging, placement.device)
        limit = config.training.exit_after
        stop = StopRequest(parse_duration(limit, "--exit-after") if limit else None, ranks)
        elsewhere = memory_errors_explained("setting up, reporting or saving", "free memory that other processes hold")
        place = shared_run_dir(config, config_name, ranks)
        own_state = own_torch_state(config.training, placement.on_gpu)
        with own_state, place as home, elsewhere, _begins_again_in(home.path, config):
            return _train(config, placement, config_name, notes, make_sink, stop, home, ranks)


def _train(
    config: Config,
    placement: Placement,
    config_name: str,
    notes: Sequence[str],
    make_sink: MakeSink,
    stop: StopRequest,
    home: RunDir,
    ranks: Ranks,
) -> RunSummary:
    run_dir = home.path
    # First: what it refuses should not wait for data and model.
    sink = make_sink(config, run_dir, stop) if ranks.is_first else SilentSink()
    with ranks.first_alone():  # it may have the default corpus to make
        config, vocabulary_notes = follow_vocabulary(config)
        datasets = open_datasets(config)
    check_alike(ranks, config, datasets.fingerprint)
    found = find_checkpoint(config.training.resume, run_dir, ranks)
    resume_notes = [*found.notes, *changed_settings(found.checkpoint, config, placement.dtype)]
    resume_notes += changed_data(found.checkpoint, config, datasets.fingerprint, run_dir)
    with memory_errors_explained("building the model", static_remedy(config, placement, ranks.size)):
        model, automatic, spread = build_distributed(config, placement, ranks)
        optimizer = MixedPrecisionAdamW(model, config.training, spread)
        state = load_checkpoint(found.checkpoint, model, optimizer) if found.checkpoint else RunState(0, 0)
    load_kernels(config.model, placement)
    layout = Layout.of(config.parallel, ranks.size, ranks.rank).to_dict()
    segment = Segment.begin(state.step, placement.device_name, torch.__version__, layout)
    with home.recorded(config, segment, sink.note) as record:
        home.keep_tokenizer(datasets.tokenizer)
        own_notes = [
            *home.notes,
            *vocabulary_notes,
            *resume_notes,
            *datasets.notes,
            *changed_device(record.segment_before, segment),
            *_own_notes(config, placement, state, ranks),
        ]
        if automatic:
            if ranks.is_first:
                save_plan(run_dir, automatic)
            own_notes.append(plan_note(automatic))
        all_notes = [*notes, *own_notes]
        header = _header(config, placement, config_name, optimizer, model, datasets, run_dir, state, all_notes)
        with failures_told(sink):
            sink.start(header)
            state = replace(state, identity=ranks.from_first({**state.identity, **sink.identity()}))
            with warnings.catch_warnings(), stop:
                _show_warnings_as_notes(sink)
                summary = Trainer(config, model, optimizer, datasets, state, run_dir, sink, ranks).run(stop)
        record.stopped_by = summary.stopped_by
    sink.finish(summary)
    return summary


def _own_notes(config: Config, placement: Placement, state: RunState, ranks: Ranks) -> list[str]:
    notes = []
    for name in ("attention_dropout_p", "hidden_dropout_p"):
        asked = getattr(config.model, name)
        effective = drop_threshold(asked) / 256
        if effective != asked:
            notes.append(f"note: {name} {asked} is {effective:.4f} here: probabilities are multiples of 1/256")
    if len(notes) == 2 and config.model.attention_dropout_p == config.model.hidden_dropout_p:
        notes = [notes[0].replace("attention_dropout_p", "dropout_p")]
    if config.model.attention == "sdpa" and placement.on_gpu and not config.training.deterministic:
        notes.append("note: torch's own attention repeats itself to the bit on a GPU only with --deterministic")
    if ranks.size > 1 and config.parallel.reduction == "native":
        notes.append("note: --parallel.reduction native: another number of ranks gives other bits")
    if state.step >= config.training.max_steps:
        notes.append(
            f"note: the run is already at step {state.step}: give a larger --max-steps to go on, or a new --run-dir"
        )
    elif state.step:
        notes.append(f"note: continuing from step {state.step}")
    return notes


def _header(
    config: Config,
    placement: Placement,
    config_name: str,
    optimizer: MixedPrecisionAdamW,
    model: GPT,
    datasets: Datasets,
    run_dir: Path,
    state: RunState,
    notes: list[str],
) -> RunHeader:
    shape = config.model
    return RunHeader(
        config_name=config_name,
        device=placement.device_name,
        dtype=str(placement.dtype).removeprefix("torch."),
        model=f"{shape.num_layers} layers, hidden {shape.hidden_size}, {shape.num_attention_heads} heads, "
        f"sequence {shape.seq_length}, vocabulary {shape.vocab_size}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        attention=shape.attention,
        recompute=describe_recompute(config.recompute, applied_plan(model)),
        data=datasets.description,
        run_dir=str(run_dir),
        max_steps=config.training.max_steps,
        first_step=state.step,
        config=config.to_dict(),
        notes=notes,
        identity=state.identity,
        ranks=str(optimizer.layout) if optimizer.layout.ranks > 1 else "",
    )


def _show_warnings_as_notes(sink: Sink) -> None:
    """Warnings of the recompute layer reach the user through the sink, once each."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            sink.note(str(message))

    warnings.showwarning = show
