"""Saves the dashboard where it can be saved: on the server where there is a key and an answer, else as a file."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from megaselect.errors import ConfigError
from megaselect.report.wandb_connection import WandbConnection, first_line, sdk
from megaselect.report.wandb_dashboard import make_report, make_workspace, specification

# A server that does not answer costs this long twice, and nothing is asked of it after that.
SERVER_TIMEOUT_SECONDS = 8
LINE_COLUMNS = 180  # of the reason why nothing was saved there: the SDK's own has URLs and attempts in it


@dataclass(frozen=True)
class Dashboard:
    """Where it went: URLs of what was saved, or the file of its specification and why it is one."""

    workspace: str | None = None
    report: str | None = None
    specification: str | None = None
    because: str | None = None


def save_dashboard(entity: str | None, project: str, group: str | None, file: Path, local: bool) -> Dashboard:
    """To the server, unless `local` or nothing answers there; then to `file`. Never asks for a key.

    entity: None means the key's own. Raises ConfigError where the file cannot be written.
    """
    if local:
        return _write(entity, project, group, file, because=None)
    notes: list[str] = []
    connection = WandbConnection("auto", notes.append, without="no server is asked")
    if connection.mode != "online":
        because = connection.offline_because.strip(" ()") or f"its variables say {connection.mode}"
        return _write(entity, project, group, file, notes[0] if notes else because)
    try:
        return _upload(entity, project, group)
    except Exception as error:  # as many kinds as the SDK has ways to fail; the specification is complete without it
        because = textwrap.shorten(first_line(error), LINE_COLUMNS, placeholder=" ...")
        return _write(entity, project, group, file, because)


def _upload(entity: str | None, project: str, group: str | None) -> Dashboard:
    wandb = sdk()
    wandb.setup(wandb.Settings(x_graphql_retry_max=1, x_graphql_timeout_seconds=SERVER_TIMEOUT_SECONDS))
    api = wandb.Api()
    owner = entity or os.environ.get("WANDB_ENTITY") or api.default_entity
    if all(known.name != project for known in api.projects(owner)):
        api.create_project(project, owner)
    workspace = make_workspace(owner, project, group).save()
    report = make_report(owner, project, group).save()
    return Dashboard(workspace.url, report.url)


def _write(entity: str | None, project: str, group: str | None, file: Path, because: str | None) -> Dashboard:
    content = specification(entity or os.environ.get("WANDB_ENTITY", ""), project, group)
    try:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; choose another --out") from error
    return Dashboard(specification=str(file), because=because)
