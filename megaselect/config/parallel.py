"""How ranks share a model: section `parallel`, and its rules."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megaselect.config.section import Section
from megaselect.config.setting_error import located
from megaselect.units import parse_duration


class ParallelConfig(Section):
    """How the ranks that torchrun starts share a model."""

    sharding: Literal["parameters", "gradients", "none"] = Field(
        "parameters",
        description="what ranks share: parameters, gradients and moments; parameters too, but whole from forward to "
        "backward; none: each rank holds all",
    )
    replicas: int = Field(1, ge=1, description="groups of ranks that each hold the whole model, and share it inside")
    reduction: Literal["ordered", "native"] = Field(
        "ordered",
        description="how gradients are summed over ranks: ordered gives the same bits with any number of ranks, native "
        "is torch's own",
    )
    timeout: str = Field(
        "10m", min_length=1, description="time after which ranks that wait for another one give up, such as 90s"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        located(lambda: parse_duration(self.timeout, "parallel.timeout"), "parallel.timeout")
        return self
