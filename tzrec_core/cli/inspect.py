"""Commands that look: list-models, list-plugins, show-model, validate."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tzrec_core.cli.output import (
    ConfigArgument,
    JsonOption,
    SetOption,
    console,
    print_json,
    print_plugin_problems,
    print_table,
)
from tzrec_core.errors import ConfigError, did_you_mean
from tzrec_core.plugins import ModelSpec, Offer, Spec, State, Task, registry


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("list-models")(list_models)
    app.command("list-plugins")(list_plugins)
    app.command("show-model")(show_model)
    app.command("validate")(validate)


def list_models(
    task: Annotated[str, typer.Option(help=f"Only models of this task: {', '.join(Task)}.")] = "",
    json: JsonOption = False,
) -> None:
    """List the installed models."""
    if task and task not in list(Task):
        raise ConfigError(
            f"--task {task!r} is not one of {', '.join(Task)}.{did_you_mean(task, [t.value for t in Task])}"
        )
    rows = [_summary(name, offer) for name, offer in registry().listing(ModelSpec) if task in ("", offer.spec.task)]
    if json:
        print_json(rows)
        return
    print_plugin_problems()
    if not rows:
        if task:
            typer.echo(f"No model of task {task} is installed. `tzrec list-models` shows all.")
        else:
            typer.echo("No models are installed. Install one, for instance: pip install tzrec-deepfm")
        return
    print_table(
        ["name", "task", "plugin", "summary"],
        [[r["name"], r["task"], f"{r['plugin']} {r['version']}", r["summary"]] for r in rows],
    )


def _summary(name: str, offer: Offer[ModelSpec]) -> dict[str, Any]:  # Any: JSON
    return {
        "name": name,
        "task": str(offer.spec.task),
        "summary": offer.spec.summary,
        "paper": offer.spec.paper,
        "plugin": offer.plugin.distribution,
        "version": offer.plugin.version,
        "aliases": list(offer.spec.aliases),
        "traits": sorted(offer.spec.traits),
    }


def list_plugins(json: JsonOption = False) -> None:
    """List the plugins: state, version, what each offers, and why one is not ok."""
    rows = [
        {
            "name": p.name,
            "distribution": p.distribution,
            "version": p.version,
            "module": p.module,
            "requires_core": p.requires,
            "state": str(p.state),
            "reason": p.reason,
            "notes": p.notes,
            "offers": [{"kind": s.kind, "name": s.name} for s in p.specs],
        }
        for p in [registry().core, *registry().plugins]
    ]
    if json:
        print_json(rows)
        return
    table = [
        [p.name, f"{p.distribution} {p.version}".strip(), str(p.state), _offers(p.specs)]
        for p in [registry().core, *registry().plugins]
    ]
    print_table(["name", "plugin", "state", "offers"], table)
    for note in registry().problems():
        typer.echo(f"note: {note}")


def _offers(specs: Sequence[Spec]) -> str:
    """What a plugin offers, in a few words: `model deepfm; 12 metrics`."""
    kinds: dict[str, list[str]] = {}
    for spec in specs:
        kinds.setdefault(spec.label(), []).append(spec.name)
    return "; ".join(
        f"{kind} {', '.join(names)}" if len(names) < 4 else f"{len(names)} {kind}{'es' if kind[-1] == 's' else 's'}"
        for kind, names in kinds.items()
    )


def show_model(
    name: Annotated[str, typer.Argument(help="Name, or distribution:name.")], json: JsonOption = False
) -> None:
    """Show a model: fields, types, defaults and meanings, groups, paper, example."""
    from tzrec_core.config.assemble import config_class
    from tzrec_core.config.describe import field_rows

    offer = registry().get(ModelSpec, name)
    spec = offer.spec
    descriptor = config_class(offer).DESCRIPTOR
    if json:
        print_json(
            {
                **_summary(spec.name, offer),
                "target": spec.target,
                "groups": [
                    {"name": g.name, "from_field": g.from_field, "types": list(g.types), "required": g.required}
                    for g in spec.groups
                ],
                "fields": field_rows(descriptor),
                "example": _example(offer),
            }
        )
        return
    _print_model(offer, descriptor)


def _print_model(offer: Offer[ModelSpec], descriptor: Any) -> None:  # Any: protobuf's stubs of it disagree
    from tzrec_core.config.describe import field_tables

    spec, out = offer.spec, console()
    out.print(f"{spec.name}: {spec.summary}", style="bold", markup=False, highlight=False)
    lines = [f"task {spec.task}; from {offer.plugin.distribution} {offer.plugin.version}".strip()]
    lines += [f"paper: {spec.paper}"] if spec.paper else []
    lines += [f"traits: {', '.join(sorted(spec.traits))}"] if spec.traits else []
    lines += [f"also called: {', '.join(spec.aliases)}"] if spec.aliases else []
    out.print("\n".join(lines), markup=False, highlight=False)
    if spec.groups:
        rows = [
            [_group_name(g.name, g.from_field), " or ".join(g.types), "yes" if g.required else "no"]
            for g in spec.groups
        ]
        print_table(["feature group", "type", "required"], rows, title="Feature groups")
    for title, fields in field_tables(f"{spec.name} {{ ... }}", descriptor):
        print_table(["field", "type", "default", "meaning"], [list(row.values()) for row in fields], title=title)
    if example := _example(offer):
        out.print(f"\nExample, {spec.example}", style="bold", markup=False, highlight=False)
        typer.echo(example)


def _group_name(name: str, from_field: str) -> str:
    if from_field:
        return f"named by {from_field}"
    return "the first one" if name == "*" else name


def _example(offer: Offer[ModelSpec]) -> str:
    from importlib.resources import files

    spec = offer.spec
    if not spec.example:
        return ""
    try:
        return files(spec.target.partition(".")[0]).joinpath(spec.example).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError):
        return ""


def validate(
    config: ConfigArgument,
    table: Annotated[
        str, typer.Argument(metavar="[TABLE]", help="With --data: the table, instead of train_input_path.")
    ] = "",
    data: Annotated[bool, typer.Option("--data", help="Also look at a table, for what fails or misleads.")] = False,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Check a config: names, types, groups, losses, metrics; with --data also against a table."""
    if table and not data:
        raise ConfigError(f"{table!r} is looked at with --data only: tzrec validate {config} --data {table}")
    if table and (Path(config).suffix in (".parquet", ".csv") or Path(config).is_dir()):
        config, table = (
            table,
            config,
        )  # `--data TABLE CONFIG`: typer lacks options whose value may be absent
    print_plugin_problems()
    from tzrec_core.config import feature_entries, load_config, model_offer

    try:
        checked = load_config(config, overrides=set_ or [], validate=True)
    except ConfigError as error:
        if json:
            print_json({"ok": False, "problems": error.problems})
            raise typer.Exit(error.exit_code) from None
        raise
    offer = model_offer(checked.model_config)
    num_features = len(feature_entries(checked.feature_configs))
    shown = {"ok": True, "problems": [], "model": offer.spec.name, "num_features": num_features}
    if not json:
        state = "" if offer.plugin.state is State.OK else f" ({offer.plugin.state})"
        groups = ", ".join(g.group_name for g in checked.model_config.feature_groups)
        plugin = f"{offer.plugin.distribution} {offer.plugin.version}".strip()
        features = f"{num_features} feature{'s' if num_features != 1 else ''}"
        typer.echo(f"{config} is valid: {offer.spec.name} of {plugin}{state}, {features} in groups {groups}")
    if not data:
        if json:
            print_json(shown)
        return
    from tzrec_core.data.lint import lint_data

    report = lint_data(checked, table)
    if json:
        findings = [{**asdict(finding), "level": str(finding.level)} for finding in report.findings]
        shown |= {"ok": not report.has_errors, "rows": report.num_rows, "rows_read": report.num_read}
        print_json({**shown, "findings": findings})
    else:
        read = (
            f"all {report.num_rows:,}"
            if report.num_read == report.num_rows
            else f"{report.num_read:,} of {report.num_rows:,}"
        )
        typer.echo(f"{table or checked.train_input_path}: {read} rows read, findings: {len(report.findings)}")
        if report.findings:
            rows = [[found.level, found.feature, found.what, found.fix] for found in report.findings]
            print_table(["level", "name", "what", "fix"], rows)
    if report.has_errors:
        raise typer.Exit(ConfigError.exit_code)
