"""Commands that look: list-models, list-plugins, show-model, validate."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

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

# A message's DESCRIPTOR and its fields: the type stubs of protobuf disagree with themselves about their classes.
Descriptor: TypeAlias = Any
FieldDescriptor: TypeAlias = Any


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
                "fields": _fields(descriptor, ""),
                "example": _example(offer),
            }
        )
        return
    _print_model(offer, descriptor)


def _print_model(offer: Offer[ModelSpec], descriptor: Descriptor) -> None:
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
    for title, rows in _tables(f"{spec.name} {{ ... }}", descriptor):
        print_table(["field", "type", "default", "meaning"], rows, title=title)
    if example := _example(offer):
        out.print(f"\nExample, {spec.example}", style="bold", markup=False, highlight=False)
        typer.echo(example)


def _group_name(name: str, from_field: str) -> str:
    if from_field:
        return f"named by {from_field}"
    return "the first one" if name == "*" else name


def _tables(title: str, descriptor: Descriptor) -> Iterator[tuple[str, list[list[str]]]]:
    """A table of the fields, then one for each message that they hold, however many fields hold it."""
    waiting, seen = [(title, descriptor)], {descriptor.full_name}
    while waiting:
        title, descriptor = waiting.pop(0)
        yield title, [list(_field(field, descriptor).values()) for field in descriptor.fields]
        for field in descriptor.fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                waiting.append((f"{inner.name} {{ ... }}", inner))


def _fields(descriptor: Descriptor, prefix: str, inside: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Every field with its path, those of messages within messages too, until a message holds itself."""
    rows = []
    for field in descriptor.fields:
        row = _field(field, descriptor)
        rows.append({**row, "field": prefix + field.name})
        inner = field.message_type
        if inner is not None and inner.full_name not in inside:
            rows += _fields(inner, f"{prefix}{field.name}.", (*inside, inner.full_name))
    return rows


def _field(field: FieldDescriptor, descriptor: Descriptor) -> dict[str, str]:
    from tzrec_core.config.comments import field_comments

    return {
        "field": field.name,
        "type": _type(field),
        "default": _default(field),
        "meaning": field_comments(descriptor).get(field.name, ""),
    }


def _type(field: FieldDescriptor) -> str:
    names = {
        field.TYPE_BOOL: "bool", field.TYPE_STRING: "string", field.TYPE_FLOAT: "float",
        field.TYPE_DOUBLE: "float", field.TYPE_BYTES: "bytes",
    }  # fmt: skip
    if field.message_type is not None:
        kind = field.message_type.name
    elif field.enum_type is not None:
        kind = " | ".join(v.name for v in field.enum_type.values)
    else:
        kind = names.get(field.type, "int" if field.cpp_type != field.CPPTYPE_UINT32 else "int >= 0")
    return f"list of {kind}" if field.is_repeated else kind


def _default(field: FieldDescriptor) -> str:
    if field.is_required:
        return "required"
    if field.is_repeated:
        return "[]"
    if field.message_type is not None or not field.has_default_value:
        return "unset"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[field.default_value].name)
    value = field.default_value
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _example(offer: Offer[ModelSpec]) -> str:
    from importlib.resources import files

    spec = offer.spec
    if not spec.example:
        return ""
    try:
        return files(spec.target.partition(".")[0]).joinpath(spec.example).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError):
        return ""


def validate(config: ConfigArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Check a config without looking at data: names, types, groups, losses, metrics."""
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
    if json:
        print_json({"ok": True, "problems": [], "model": offer.spec.name, "num_features": num_features})
        return
    state = "" if offer.plugin.state is State.OK else f" ({offer.plugin.state})"
    groups = ", ".join(g.group_name for g in checked.model_config.feature_groups)
    plugin = f"{offer.plugin.distribution} {offer.plugin.version}".strip()
    features = f"{num_features} feature{'s' if num_features != 1 else ''}"
    typer.echo(f"{config} is valid: {offer.spec.name} of {plugin}{state}, {features} in groups {groups}")
