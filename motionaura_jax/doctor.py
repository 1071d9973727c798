"""`motionaura doctor`: versions, devices, and problems of the installation with their remedies."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import motionaura_jax
from motionaura_jax.core import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; exit with 1 if something does not work."""
    parser = cli.Parser("doctor", "Show versions and devices, and problems of the installation with their remedies.")
    args = parser.parse_args(argv)
    return cli.run(examine, as_json=args.json, show=show)


def examine() -> dict[str, Any]:
    """Return the facts, the findings, a one-line verdict, and "ok": True if there is no problem."""
    from motionaura_jax.health.findings import diagnose, gather, verdict

    facts = gather()
    findings = diagnose(facts)
    return {
        "ok": all(finding.level != "problem" for finding in findings),
        "motionaura_jax": motionaura_jax.__version__,
        **asdict(facts),
        "findings": [asdict(finding) for finding in findings],
        "verdict": verdict(facts, findings),
    }


def show(report: cli.Result) -> None:
    """Print the result of `examine` as tables, then the findings, then the verdict."""
    from motionaura_jax.health.installation import EXTRAS

    versions = {name: version or "missing" for name, version in report["versions"].items()}
    _table("Versions", {"motionaura-jax": report["motionaura_jax"], "python": report["python"], **versions}.items())
    _table("FFmpeg libraries of PyAV", report["ffmpeg"].items())
    _table("Devices of JAX", ((device["kind"], _memory(device)) for device in report["devices"]))
    accelerators = ", ".join(report["accelerators"]) or "none"
    _table("Machine", {**report["host"], "accelerators": accelerators}.items())
    _table("Compilation cache", report["cache"].items())
    extras = report["extras"].items()
    _table("Extras", ((name, "installed" if there else EXTRAS[name].without) for name, there in extras))
    _table("XLA flags of training", report["xla_flags"].items())
    _table("Environment", report["environment"].items())
    colors = {"problem": "red", "warning": "yellow"}
    for finding in report["findings"]:
        _line(finding["level"], colors[finding["level"]], f"{finding['fault']}\n  -> {finding['remedy']}")
    _line("verdict", "green" if report["ok"] else "red", report["verdict"])


def _memory(device: dict[str, Any]) -> str:
    size = "" if device["memory_gb"] is None else f", {device['memory_gb']} GB"
    return f"{device['platform']}{size}"


def _table(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    from rich.table import Column, Table

    table = Table("", Column(overflow="fold"), title=title, title_justify="left", show_header=False, min_width=40)
    for name, value in rows:
        table.add_row(name, str(value))
    if table.row_count:
        cli.console().print(table, markup=False)


def _line(label: str, color: str, text: str) -> None:
    from rich.text import Text

    cli.console().print(Text.assemble((f"{label}: ", f"bold {color}"), text), soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
