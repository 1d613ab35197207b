"""`dlcore doctor`: what this machine can run, and why not."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlcore.diagnosis import Finding, Status, can_serve, examine

MARKS = {
    Status.OK: "[green]ok[/]",
    Status.MISSING: "[yellow]no[/]",
    Status.BROKEN: "[red]BROKEN[/]",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--port", default=8000, show_default=True, help="The port you want to serve on.")
def doctor(as_json: bool, port: int) -> int:
    """Say what this machine can run, and what is missing for the rest.

    Exit code 0 if dlcore can serve here (on a GPU or a CPU), 1 if it cannot.

    \b
    Examples:
      dlcore doctor
      dlcore doctor --json --port 9000
    """
    findings = examine(port)
    works = can_serve(findings)
    if as_json:
        click.echo(json.dumps({"ok": works, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        _print_table(findings, works)
    return 0 if works else 1


def _print_table(findings: list[Finding], works: bool) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        fix = f"\n[dim]-> {escape(finding.fix)}[/]" if finding.fix else ""
        table.add_row(finding.name, MARKS[finding.status], escape(finding.detail) + fix)
    console = Console()
    console.print(table)
    console.print()
    console.print(
        "dlcore can serve on this machine: try `dlcore chat`."
        if works
        else "dlcore cannot serve on this machine: mend what is BROKEN above."
    )
