"""What is saved for backward: section `recompute`, and its rules."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from megaselect.config.layers import parse_layers
from megaselect.config.section import Section
from megaselect.config.setting_error import SettingError, located
from megaselect.recompute_modules import MODULES
from megaselect.units import parse_size

if TYPE_CHECKING:
    ModuleName = str
else:  # from the declarations, which no type checker can read
    ModuleName = Literal[MODULES]

SETTINGS_OF_MODE = {
    "none": (),
    "selective": ("modules", "layers"),
    "full": ("method", "num_layers", "layers"),
    "auto": ("memory",),
}


class RecomputeConfig(Section):
    """What is saved for backward and what is computed again. The losses do not change."""

    mode: Literal["none", "selective", "full", "auto"] = Field(
        "none",
        json_schema_extra={"off": "none"},
        description="none keeps all; selective recomputes softmax and dropout; full recomputes whole layers; auto "
        "plans each layer, the fastest way that fits the memory",
    )
    modules: tuple[ModuleName, ...] = Field(
        ("softmax", "dropout"),
        description=f"what selective recomputes: any of {', '.join(MODULES)}; or all",
    )
    method: Literal["uniform", "block", "sqrt"] = Field(
        "uniform",
        description="where full puts checkpoints: one per chunk of N layers (uniform), one per layer for the first N "
        "layers (block), or one per chunk of about sqrt(layers) (sqrt)",
    )
    num_layers: int | None = Field(None, ge=1, description="the N of method uniform (none: 1) or block")
    layers: str | None = Field(
        None, description="only these layers, such as 0-11, 0,3,5-7, even, odd or skip-first-last; none: all layers"
    )

    memory: str | None = Field(
        None, min_length=1, description="what a step may hold with auto, such as 24GiB; none: what the device has free"
    )

    @field_validator("modules", mode="before")
    @classmethod
    def _expand_all(cls, value: Any) -> Any:
        """`all`, alone, is every module."""
        return MODULES if value in ("all", ["all"], ("all",)) else value

    @field_validator("layers", mode="before")
    @classmethod
    def _read_single_layer(cls, value: Any) -> Any:
        """`layers: 3` in YAML is a number."""
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_recompute(self)
        return self

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """Numbers of the layers that the mode applies to, ascending, in a model of `num_layers` layers.

        Raises ConfigError where `layers` names a layer that the model does not have, or none at all.
        """
        return tuple(range(num_layers)) if self.layers is None else parse_layers(self.layers, num_layers)


def check_recompute(recompute: RecomputeConfig) -> None:
    """No setting is given that the mode would ignore, and those of the mode fit each other."""
    for name in ("modules", "method", "num_layers", "layers", "memory"):
        value = getattr(recompute, name)
        if name in recompute.model_fields_set and value is not None and name not in SETTINGS_OF_MODE[recompute.mode]:
            modes = [mode for mode, names in SETTINGS_OF_MODE.items() if name in names]
            raise SettingError(
                f"recompute.{name} works with mode {' or '.join(modes)} only, but recompute.mode is {recompute.mode}; "
                f"remove it, or set the mode (--recompute {modes[0]})",
                f"recompute.{name}",
                "recompute.mode",
            )
    if not recompute.modules:
        raise SettingError(
            "recompute.modules is empty, so that selective would keep everything; "
            f"name one of {', '.join(MODULES)}, or all, or set the mode to none",
            "recompute.modules",
        )
    repeated = [name for name in recompute.modules if recompute.modules.count(name) > 1]
    if repeated:
        raise SettingError(f"recompute.modules names {repeated[0]} twice; name it once", "recompute.modules")
    _check_method(recompute)
    if recompute.memory is not None:
        located(lambda: parse_size(str(recompute.memory), "recompute.memory"), "recompute.memory")


def _check_method(recompute: RecomputeConfig) -> None:
    names = ("recompute.method", "recompute.num_layers")
    if recompute.mode != "full":
        return
    if recompute.method == "block" and recompute.num_layers is None:
        raise SettingError(
            "recompute.method block needs recompute.num_layers, how many layers it recomputes; "
            "set it (--recompute-num-layers N), or use uniform for all layers",
            *names,
        )
    if recompute.method == "sqrt" and recompute.num_layers is not None:
        raise SettingError(
            f"recompute.method sqrt chooses the layers per checkpoint itself, but recompute.num_layers is "
            f"{recompute.num_layers}; remove it, or use method uniform",
            *names,
        )
