"""What is reported, and where: section `logging`, and its rules."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megaselect.config.section import Section
from megaselect.config.setting_error import located
from megaselect.units import parse_steps


class LoggingConfig(Section):
    """What is reported, and where."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        json_schema_extra={"off": "disabled"},
        description="Weights & Biases; auto: online where a key is set, offline otherwise",
    )
    wandb_project: str = Field("megaselect", min_length=1, description="project that the runs go to")
    wandb_group: str | None = Field(None, description="group of the run; none: no group")
    log_interval: int = Field(10, ge=1, description="steps between lines on the console")
    tensorboard: bool = Field(False, description="also write TensorBoard's event files into the run directory")
    profile: str | None = Field(
        None, min_length=1, description="steps whose trace torch's profiler writes, such as 10-12; none: no trace"
    )
    memory_snapshot: bool = Field(False, description="write the GPU allocator's history of the first steps")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_logging(self)
        return self


def check_logging(logging: LoggingConfig) -> None:
    """The steps to profile are steps."""
    if logging.profile is not None:
        located(lambda: parse_steps(str(logging.profile), "logging.profile"), "logging.profile")
