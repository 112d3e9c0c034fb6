"""``sb3-reinforce dashboard``: a W&B workspace and a W&B report with the sections of ``metrics.py``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_reinforce.tracking.metrics import SECTIONS, STEP_KEY, Section
from sb3_reinforce.tracking.wandb_internals import end_service, mode_and_key

TITLE = "REINFORCE"


def dashboard(arguments: Sequence[str]) -> int:
    """
    Write the workspace and the report as JSON, and with ``--push`` save both to the project.

    :return: the exit code: 0, 1 if W&B refused, 2 for a command line that cannot be run
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce dashboard",
        description="A W&B workspace and a W&B report for the metrics that are logged.",
        epilog="example: sb3-reinforce dashboard --project sb3-reinforce --push",
    )
    parser.add_argument("--project", default="sb3-reinforce", help="W&B project (default: sb3-reinforce)")
    parser.add_argument("--entity", help="user or team that owns the project (--push: default: the account's)")
    parser.add_argument("--name", default=TITLE, help=f"title of both (default: {TITLE})")
    parser.add_argument("--out", type=Path, default=Path("logs/dashboard"), metavar="DIR", help="default: logs/dashboard")
    parser.add_argument("--push", action="store_true", help="save both to the project; needs an API key and the network")
    options = parser.parse_args(arguments)
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        parser.error('needs wandb-workspaces: pip install "sb3-reinforce[dashboards]"')
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for kind, make in (("workspace", make_workspace), ("report", make_report)):
            file = options.out / f"{kind}.json"
            made = make(options.project, options.entity or "", options.name)
            file.write_text(json.dumps(as_json(made), indent=2) + "\n")
            print(f"{kind}: {file}")
    except OSError as error:
        print(f"sb3-reinforce: error: {options.out} cannot be written: {error}", file=sys.stderr)
        return 1
    return _push(options) if options.push else 0


def _push(options: argparse.Namespace) -> int:
    import wandb

    try:
        if not mode_and_key()[1]:
            print("sb3-reinforce: error: --push needs an API key: wandb login", file=sys.stderr)
            return 1
        entity = options.entity or wandb.Api(timeout=20).default_entity or ""
        workspace = make_workspace(options.project, entity, options.name)
        workspace.save()
        report = make_report(options.project, entity, options.name, of_project=True)
        report.save()
    except Exception as error:
        print(f"sb3-reinforce: error: W&B did not take it ({type(error).__name__}: {error})", file=sys.stderr)
        if wandb.run is None:
            end_service(patience=10)
        return 1
    print(f"pushed: {workspace.url}\npushed: {report.url}")
    return 0


def make_workspace(project: str, entity: str, name: str = TITLE) -> Any:
    """:return: a ``wandb_workspaces.workspaces.Workspace`` with our sections; the entity may be empty if nothing is pushed"""
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=section.title, is_open=True, panels=_panels(section)) for section in SECTIONS]
    settings = ws.WorkspaceSettings(x_axis=STEP_KEY)
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def make_report(project: str, entity: str, name: str = TITLE, of_project: bool = False) -> Any:
    """
    :param of_project: whether to name the project of the runs, for which W&B asks its server; else it is the report's own
    :return: a ``wandb_workspaces.reports.v2.Report``, each section with the question that it answers
    """
    import wandb_workspaces.reports.v2 as wr

    runs: dict[str, Any] = {"entity": entity, "project": project} if of_project else {}
    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        grid = wr.PanelGrid(runsets=[wr.Runset(name="Runs", **runs)], panels=_panels(section))
        blocks += [wr.H2(section.title), wr.P(section.question), grid]
    description = "Made by `sb3-reinforce dashboard`."
    return wr.Report(project=project, entity=entity, title=name, description=description, blocks=blocks)


def _panels(section: Section) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = []
    for metric in section.metrics:
        if metric.kind == "line":
            panels.append(wr.LinePlot(title=metric.title, x=STEP_KEY, y=[metric.key]))
        else:
            panels.append(wr.MediaBrowser(title=metric.title, media_keys=[metric.key]))
    return panels


def as_json(made: Any) -> Any:
    """:return: a workspace or a report in the form that W&B's server takes, made without a network"""
    return json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
