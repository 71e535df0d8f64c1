"""Runs one case of the corpus as a user would, from the same random numbers each time."""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Callable

import numpy as np
import torch

import megaselect
from corpus.fault import Case
from megaselect.verification.report import Check, Report

SEED = 7


def report_of(make: Callable[[], Case]) -> Report:
    """Of a new case. What torch and transformers warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make()
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(SEED)
        return megaselect.verify(*case)


def missing(package: str = "", version: tuple[int, int] = (0, 0)) -> str:
    """Why a case cannot run here, "" where it can: it needs `package`, or a torch of this version."""
    have = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if have < version:
        return f"needs torch {version[0]}.{version[1]}; this is {torch.__version__}"
    if package and importlib.util.find_spec(package) is None:
        return f"needs {package}, which is not installed"
    return ""


def found(report: Report, name: str) -> Check | None:
    """The report's check of that name."""
    return next((check for subject in report.subjects for check in subject.checks if check.name == name), None)


def sentence(check: Check | None) -> str:
    """As a report prints it, on one line: `failed same bits: ...`."""
    return f"{check.outcome} {check.name}: {check.detail}" if check else "no such check was made"
