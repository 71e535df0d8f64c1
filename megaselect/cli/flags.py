"""The flags of a run, generated from the config schema, so that a setting and its flag cannot differ.

Every command that takes a config has them: train, and those that tell about the run that train would make.
"""

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_origin

from pydantic.fields import FieldInfo

import megaselect
from megaselect.cli.commands import commands_with
from megaselect.cli.setting_help import DEFAULT_CONFIG, METAVARS, metavar, value_without_flag
from megaselect.config import Config, iter_settings
from megaselect.config.format_value import one_line_errors
from megaselect.config.messages import nearest_setting
from megaselect.config.shipped import find_config, shipped_configs
from megaselect.errors import ConfigError
from megaselect.units import size_notes

# The settings that people change daily have short flags; every other setting is --section.name.
SHORT_FLAGS = {
    "model.attention": "--attention",
    "recompute.mode": "--recompute",
    "recompute.modules": "--recompute-modules",
    "recompute.method": "--recompute-method",
    "recompute.num_layers": "--recompute-num-layers",
    "recompute.layers": "--recompute-layers",
    "recompute.memory": "--memory",
    "training.max_steps": "--max-steps",
    "training.run_dir": "--run-dir",
    "training.resume": "--resume",
    "training.exit_after": "--exit-after",
    "training.on_nonfinite": "--on-nonfinite",
    "training.on_oom": "--on-oom",
    "training.seed": "--seed",
    "training.device": "--device",
    "training.dtype": "--dtype",
    "training.deterministic": "--deterministic",
    "training.compile": "--compile",
    "model.kernel_backend": "--kernel-backend",
    "logging.wandb": "--wandb",
    "logging.tensorboard": "--tensorboard",
    "logging.profile": "--profile",
    "logging.memory_snapshot": "--memory-snapshot",
}

_EPILOG = f"""\
Flags win over the config file, and that wins over the defaults. `{DEFAULT_CONFIG}: ` is
what the default config has instead. Flags may be written with _ for -. Where a
setting may be unset, `none` unsets it.

Megatron-LM's --recompute-activations and --recompute-granularity selective
mean --recompute selective --recompute-modules core_attn, and its
--recompute-granularity full means --recompute full."""


def _no_options(_: argparse.ArgumentParser) -> None:
    """A command without flags of its own."""


@dataclass(frozen=True)
class CommandFlags:
    """What a command's --help says, and the flags that it has.

    settings: those that it uses, and has flags for. add_options: adds flags of its own.
    """

    prog: str
    usage: str
    description: str
    settings: frozenset[str]
    add_options: Callable[[argparse.ArgumentParser], None] = _no_options


@dataclass(frozen=True)
class RunCommand:
    """A parsed command line. options: the command's own flags. notes: lines to print before anything else."""

    config: Config
    config_path: Path
    options: argparse.Namespace
    notes: list[str]
    debug: bool


def at_least_one(text: str) -> int:
    """The type of a flag that counts. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; --help lists the flags")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(shutil.get_terminal_size().columns, 100) - 2)


@one_line_errors()
def parse_run_args(argv: Sequence[str], command: CommandFlags) -> RunCommand:
    """Flags to a validated config. Raises ConfigError; --help and --version print and raise SystemExit(0)."""
    parser = _run_parser(command)
    namespace, unknown = parser.parse_known_args([_with_dashes(argument) for argument in argv])
    given = vars(namespace)
    if unknown:
        raise ConfigError(_explain_unknown_flag(unknown[0], parser))
    debug, config_name = given.pop("debug", False), given.pop("config", DEFAULT_CONFIG)
    settings = _flags_of_settings()
    megatron = ("recompute_granularity", "recompute_activations")
    options = {name: given.pop(name) for name in list(given) if name not in settings and name not in megatron}
    flags = {name: flag for name, flag in settings.items() if name in given}
    notes = _map_megatron_flags(given, flags)
    path = find_config(config_name, "--config ")
    overrides = {name: _unset(value, name) for name, value in given.items()}
    config = Config.from_yaml(path, overrides, flags)
    if config.recompute.memory is not None:
        notes += size_notes(config.recompute.memory, _flag("recompute.memory"))
    return RunCommand(config, path, argparse.Namespace(**options), notes, debug)


# Megatron-LM's spellings: the epilog explains them, the list of flags does not show them.
MEGATRON_FLAGS = ("--recompute-granularity", "--recompute-activations")


def _run_parser(command: CommandFlags) -> OneLineParser:
    parser = OneLineParser(
        prog=command.prog,
        usage=command.usage,
        description=command.description,
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    command.add_options(parser)
    settings, configured = dict(iter_settings()), _default_config()
    top = parser.add_argument_group("flags")
    top.add_argument(
        "--config", metavar="FILE", help=f"YAML file, or the name of a shipped config (default: {DEFAULT_CONFIG})"
    )
    for name in SHORT_FLAGS:
        if name in command.settings:
            _add_setting(top, name, settings[name], configured)
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    version = f"megaselect {megaselect.__version__}"
    top.add_argument("--version", action="version", version=version, help="show the version and exit")
    top.add_argument("-h", "--help", action="help", help="show this text and exit")
    granularity, activations = MEGATRON_FLAGS
    parser.add_argument(granularity, help=argparse.SUPPRESS)
    parser.add_argument(activations, action="store_true", help=argparse.SUPPRESS)
    for section, section_field in Config.model_fields.items():
        section_class: Any = section_field.annotation
        long_names = [f"{section}.{name}" for name in section_class.model_fields]
        long_names = [name for name in long_names if name not in SHORT_FLAGS and name in command.settings]
        if long_names:
            group = parser.add_argument_group(section, section_class.__doc__)
            for name in long_names:
                _add_setting(group, name, settings[name], configured)
    return parser


def _default_config() -> dict[str, Any]:
    """What the config that is taken without --config has: dotted name of a setting -> value, none of them none."""
    sections = Config.from_yaml(shipped_configs()[DEFAULT_CONFIG]).to_dict()
    settings = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {name: value for name, value in settings.items() if value not in (None, [])}


def _add_setting(group: Any, name: str, field: FieldInfo, configured: Mapping[str, Any]) -> None:
    """Values stay text: the schema converts and judges them, as it does those of a file.

    configured: what the default config has.
    """
    flag, kind = _flag(name), field.annotation
    help_text = f"{field.description}{value_without_flag(field, configured.get(name))}".replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help_text)
    elif get_origin(kind) is tuple:
        group.add_argument(flag, dest=name, nargs="+", action="extend", metavar=METAVARS[name], help=help_text)
    else:
        group.add_argument(flag, dest=name, metavar=metavar(name, kind), help=help_text)


def _flag(name: str) -> str:
    return SHORT_FLAGS.get(name, f"--{name.replace('_', '-')}")


def _flags_of_settings() -> dict[str, str]:
    return {name: _flag(name) for name, _ in iter_settings()}


def _with_dashes(argument: str) -> str:
    """--model.hidden_size=64 -> --model.hidden-size=64; values keep their underscores."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _unset(value: Any, name: str) -> Any:
    """`none` on the command line is null where that is the default; a mode or a path called none stays text."""
    return None if value == "none" and dict(iter_settings())[name].default is None else value


def _map_megatron_flags(given: dict[str, Any], flags: dict[str, str]) -> list[str]:
    """Replaces Megatron-LM's recompute flags in `given` by ours, and says so in the returned lines."""
    granularity, activations = given.pop("recompute_granularity", None), given.pop("recompute_activations", False)
    if granularity is None and not activations:
        return []
    if granularity not in (None, "selective", "full"):
        raise ConfigError(f"--recompute-granularity {granularity}: must be selective or full")
    if activations and granularity == "full":
        raise ConfigError(
            "--recompute-activations means --recompute-granularity selective, but --recompute-granularity is full; "
            "give one of the two"
        )
    flag = "--recompute-activations" if granularity is None else "--recompute-granularity"
    if "recompute.mode" in given:
        raise ConfigError(f"{flag} is Megatron-LM's name for --recompute; give one of the two")
    mode = granularity or "selective"
    ours = {"recompute.mode": mode}
    if mode == "selective" and "recompute.modules" not in given:
        ours["recompute.modules"] = ["core_attn"]
    given.update(ours)
    flags.update(dict.fromkeys(ours, flag))
    shown = flag if granularity is None else f"{flag} {granularity}"
    meaning = f"--recompute {mode}" + (" --recompute-modules core_attn" if "recompute.modules" in ours else "")
    return [f"note: {shown} (Megatron-LM's) is read as {meaning}"]


_OPTION_LINE = re.compile(r"^ +(-.*)", re.MULTILINE)  # of --help: `  -h, --help  show this text`
_LONG_FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


def _explain_unknown_flag(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return f"unexpected argument {argument}; flags start with --, and --help lists them"
    shown = [name for line in _OPTION_LINE.findall(parser.format_help()) for name in _LONG_FLAG.findall(line)]
    known = [*shown, *MEGATRON_FLAGS]
    if users := _other_commands_with(flag, known):
        others = f"megaselect {' and '.join(users)}"
        return f"{flag}: {parser.prog} does not use it; {others} {'does' if len(users) == 1 else 'do'}"
    candidates = {name.replace("_", "-"): short for name, short in _flags_of_settings().items() if short in known}
    candidates |= {name.removeprefix("--"): name for name in known}
    near = nearest_setting(flag.lstrip("-"), list(candidates))
    meant = list(dict.fromkeys(candidates[name] for name in near))
    return f"unknown flag {flag}; " + (f"did you mean {' or '.join(meant)}?" if meant else "--help lists the flags")


def _other_commands_with(flag: str, known: list[str]) -> list[str]:
    """Commands with a flag for the setting that `flag` names in full, where there is none among the known flags."""
    plain = flag.removeprefix("--").removeprefix("no-")
    for name, short in _flags_of_settings().items():
        if short not in known and plain in (short.removeprefix("--"), name.replace("_", "-")):
            return commands_with(name)
    return []
