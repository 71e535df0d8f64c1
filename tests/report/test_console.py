import io
import os
import pty
import re
import threading

import pytest
from consoles import pipe, written
from rich.console import Console

from megaselect.report.console import ConsoleSink

PLAIN = """\
megaselect configs/tiny.yaml
  device         cpu, 2 threads
  dtype          float32
  model          4 layers, hidden 192, 6 heads, sequence 128, vocabulary 4096
  parameters     2,587,392
  attention      unfused
  recompute      selective: softmax, dropout
                 keeps the scores; Megatron-LM's selective means core_attn
  data           default corpus, 1,115,394 tokens
  steps          20
  run directory  runs/tiny
dropout_p 0.1 is 0.1016 here: probabilities are multiples of 1/256
saved per layer: predicted 2.30 MiB, measured 2.30 MiB (equal to the byte)
saved in all:    predicted 9,647,900 bytes, measured 9,647,900 bytes
other settings:  none 3.55 MiB, core_attn dropout 1.17 MiB, all 1005.70 KiB,
                 full 192.00 KiB
step 10/20  loss  7.5000    2,048 tokens/s  ETA    0:05  grad norm 1.25
eval 10/20  valid loss 7.7500
a sentence of more than eighty columns, which goes on in a second line, set in
  by two columns
step 20/20  loss  6.5000    2,048 tokens/s  ETA    0:00  grad norm 1.25
finished
  steps          20 (20,480 tokens) in 1:05
  final loss     6.5000
  valid loss     6.7500 (best 6.2500)
  speed          5,650 tokens/s, 181.2 ms per step (medians)
  saved          9.20 MiB for backward (9,647,900 bytes)
  peak memory    3.00 GiB of tensors
  recompute      selective: softmax, dropout
  run directory  runs/tiny
sample of text that the model writes
  First Citizen:
  Speak.
"""

SUMMARY_WITH_ALL = """\
finished
  steps          20 (20,480 tokens) in 1:05
  skipped steps  3
  final loss     6.5000
  valid loss     6.7500 (best 6.2500)
  test loss      6.8750
  loss spikes    1,200
  speed          5,650 tokens/s, 181.2 ms per step (medians)
  time by phase  data 0.1%, forward 32.0%, backward 64.0%, optimizer 2.8%, rest
                 1.1%
  saved          9.20 MiB for backward (9,647,900 bytes)
"""

HEADER_AT_80 = """\
╭─ megaselect configs/tiny.yaml ───────────────────────────────────────────────╮
│ device         cpu, 2 threads                                                │
│ dtype          float32                                                       │
│ model          4 layers, hidden 192, 6 heads, sequence 128, vocabulary 4096  │
│ parameters     2,587,392                                                     │
│ attention      unfused                                                       │
│ recompute      selective: softmax, dropout                                   │
│                keeps the scores; Megatron-LM's selective means core_attn     │
│ data           default corpus, 1,115,394 tokens                              │
│ steps          20                                                            │
│ run directory  runs/tiny                                                     │
╰──────────────────────────────────────────────────────────────────────────────╯
"""


def terminal(width, **environment):
    """A console that takes its file for a terminal; `environment` is all that it sees of one."""
    file = io.StringIO()
    console = Console(
        force_terminal=True, width=width, height=50, file=file, color_system="standard", _environ=environment
    )
    return console, file


def visible(output):
    """Lines as a terminal would show them over time: without escape codes, a redrawn line for each drawing."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output))


def test_a_pipe_gets_plain_lines_of_80_columns(header, report, metrics, summary):
    console, file = pipe()
    sink = ConsoleSink(log_interval=10, console=console)
    sink.start(header())
    sink.saved(report())
    for step in range(1, 21):
        sink.step(metrics(step, step_ms=9000.0 if step == 1 else 500.0))
        if step == 10:
            sink.evaluation(step, 7.75)
            sink.note("a sentence of more than eighty columns, which goes on in a second line, set in by two columns")
    sink.finish(summary())
    assert written(file) == PLAIN
    assert max(map(len, PLAIN.splitlines())) <= 80


@pytest.mark.parametrize(("first_step", "notes"), [(0, 1), (19, 1), (20, 0)])
def test_a_run_that_compiles_says_so_before_its_first_step(header, first_step, notes):
    config = header().config
    config = {**config, "training": {**config["training"], "compile": True}}
    console, file = pipe()
    ConsoleSink(log_interval=10, console=console).start(header(config=config, first_step=first_step))
    lines = written(file).splitlines()
    assert lines[8] == "  compile        each layer, by torch.compile"
    assert lines.count("note: compiling the layers in the first step, which may take minutes") == notes
    console, file = pipe()
    ConsoleSink(log_interval=10, console=console).start(header())
    assert "compil" not in written(file)


def test_a_pipe_gets_a_line_now_and_then_on_a_long_evaluation(header, metrics, monkeypatch):
    """Here at each call, as if each micro-batch took a quarter of a minute: the clock is the test's."""
    clock = iter([100.0, 115.0, 120.0, 130.0, 3000.0, 3001.0])
    monkeypatch.setattr("megaselect.report.console.time.monotonic", lambda: next(clock))
    console, file = pipe()
    sink = ConsoleSink(log_interval=1, console=console)
    sink.start(header())
    before = written(file)
    for done in (0, 1000, 1300, 2000):
        sink.evaluating("test", done, 19_461)
    sink.evaluating("valid", 0, 64)
    sink.evaluating("valid", 8, 64)
    assert written(file).removeprefix(before) == (
        "evaluating on the test split: 1,000 of 19,461 samples  ETA 4:37\n"
        "evaluating on the test split: 2,000 of 19,461 samples  ETA 4:22\n"
    )


def test_a_terminal_shows_an_evaluation_in_its_bar(header, metrics):
    console, file = terminal(100)
    sink = ConsoleSink(log_interval=1, console=console)
    sink.start(header())
    sink.step(metrics(1))
    sink.evaluating("valid", 0, 64)
    sink.evaluation(1, 7.75)
    sink.fail("")
    lines = [line for line in visible(file.getvalue()) if "evaluating" in line]
    assert re.fullmatch(r"1/20 ━*[╸╺]?━* evaluating on the valid split: 0 of 64 samples *", lines[0])


def test_the_last_step_is_shown_whatever_the_interval(header, metrics):
    console, file = pipe()
    sink = ConsoleSink(log_interval=7, console=console)
    sink.start(header())
    for step in range(1, 21):
        sink.step(metrics(step))
    assert re.findall(r"^step +(\d+)/20", written(file), re.MULTILINE) == ["7", "14", "20"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(play, width):
    console, file = terminal(width)
    play(console, sample="word " * 100 + "x" * 300)
    assert max(map(len, visible(file.getvalue()))) == width


def test_a_terminal_of_80_columns_shows_header_bar_and_summary(play):
    console, file = terminal(80)
    play(console)
    lines = visible(file.getvalue())
    assert lines[:12] == HEADER_AT_80.splitlines()
    last_bar = [line for line in lines if line.startswith("20/20 ")][-1]
    assert last_bar.endswith("━ loss  6.5000    2,048 tokens/s  ETA    0:00  grad norm 1.25")
    assert "eval 10/20  valid loss 7.7500" in lines
    assert any(line.startswith("╭─ finished ─") for line in lines)
    assert lines[-3:] == ["  First Citizen:", "  Speak.", ""]
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(("stopped_by", "named"), [("SIGTERM", "SIGTERM"), ("exit-after", "--exit-after")])
def test_the_summary_says_what_stopped_the_run_and_how_it_goes_on(play, stopped_by, named):
    console, file = pipe()
    play(console, stopped_by=stopped_by, steps=12, sample=None)
    lines = written(file).splitlines()
    assert f"interrupted by {named}" in lines
    assert "finished" not in lines
    assert lines[-1] == "  to continue    the same command with --run-dir runs/tiny goes on from step 12"


def test_the_summary_shows_what_went_wrong_and_where_the_time_went(play):
    console, file = pipe()
    phases = {"data": 0.25, "forward": 58, "backward": 116, "optimizer": 5}
    play(console, test_loss=6.875, skipped_steps=3, loss_spikes=1200, phase_ms=phases)
    assert SUMMARY_WITH_ALL in written(file)
    assert max(map(len, SUMMARY_WITH_ALL.splitlines())) <= 80


def test_waiting_for_data_is_said_once(header, metrics):
    console, file = pipe()
    sink = ConsoleSink(log_interval=1000, console=console)
    sink.start(header(max_steps=1000))
    for step in range(1, 100):
        sink.step(metrics(step, step_ms=500.0, data_ms=400.0 if step < 10 else 24.0))
    assert "waiting for data" not in written(file)  # the median is 24 of 500
    for step in range(100, 200):
        sink.step(metrics(step, step_ms=500.0, data_ms=35.0))
    note = "note: steps spend 7% of their time waiting for data: raise --data.prefetch, or"
    assert [line for line in written(file).splitlines() if line.startswith("note: steps")] == [note]


def test_bytes_that_differ_are_shown_loudly(play, report):
    measured = {**report().measured, "layers.2": report().measured["layers.2"] + 1}
    saved = report(measured=measured, measured_total=report().measured_total + 1)
    loud = "\x1b[1;37;41m"  # bold white on red
    console, file = terminal(80)
    play(console, saved)
    output = file.getvalue()
    assert f"{loud}WARNING: the bytes saved for backward are not the bytes predicted\x1b[0m" in output
    assert f"{loud}  layers.2: predicted 2,411,725 bytes, measured 2,411,726 bytes (+1)\x1b[0m" in output
    assert f"{loud}  in all: predicted 9,647,900 bytes, measured 9,647,901 bytes (+1)\x1b[0m" in output
    assert "layers.1" not in output
    assert "equal to the byte" not in output


def test_no_color_is_heeded(play, report):
    def colours(**environment):
        console, file = terminal(80, **environment)
        play(console, report(measured_total=1))
        codes = re.findall(r"\x1b\[([0-9;]*)m", file.getvalue())
        return {part for code in codes for part in code.split(";") if part[:1] in "349" and len(part) == 2}

    assert "41" in colours()
    assert colours(NO_COLOR="1") == set()


def test_an_output_without_unicode_gets_question_marks(play):
    console, file = pipe("ascii")
    play(console, sample="caf\u00e9")
    assert written(file).splitlines()[-1] == "  caf?"


def test_a_path_stays_whole(header):
    console, file = pipe()
    path = "/a/path/of/more/than/eighty/columns/" + "deeper/" * 10
    sink = ConsoleSink(log_interval=10, console=console)
    sink.note(f"checkpoint saved: {path}")
    assert written(file).splitlines() == ["checkpoint saved:", f"  {path}"]


CHILD = """
import sys
sys.path[:0] = ["tests/report"]
from conftest import HEADER, _metrics
from megaselect.report.console import ConsoleSink
sink = ConsoleSink(log_interval=1)
sink.start(HEADER)
sink.note("word " * 40)
sink.step(_metrics(1))
raise RuntimeError("out of memory")
"""
TOLD = CHILD.replace("raise Runt", "sink.fail('out of memory')\nprint('after')\nraise Runt")


def test_forced_colour_sends_no_bar_into_a_pipe(run_python):
    output = run_python(child(CHILD), FORCE_COLOR="1", TTY_COMPATIBLE="1", COLUMNS="200").stdout
    assert output.splitlines()[-1] == "step  1/20  loss  8.4000    2,048 tokens/s  ETA    0:10  grad norm 1.25"
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80  # whatever COLUMNS says: it is not a log's width


@pytest.mark.parametrize("code", [CHILD, TOLD])
def test_a_run_that_fails_gives_the_terminal_its_cursor_back(run_python, code):
    reader, writer = pty.openpty()
    chunks = []
    drain = threading.Thread(target=lambda: chunks.extend(iter(lambda: read_or_end(reader), b"")))
    drain.start()
    result = run_python(child(code), stdout=writer, TERM="xterm", COLUMNS="80")
    os.close(writer)
    drain.join(timeout=600)
    os.close(reader)
    output = b"".join(chunks).decode()
    assert "RuntimeError: out of memory" in result.stderr
    assert "1/20 " in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert output.find("after") in (-1, len(output) - len("after\r\n"))  # below the bar, which is closed by then


def read_or_end(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says that the other side of a pty is closed
        return b""


def child(code):
    return code.replace("tests/report", os.path.dirname(__file__))
