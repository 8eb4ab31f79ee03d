"""A page per model."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pages import results
from pages.markdown import DOCS, generated, link, relink, sections, table
from pages.sources import Conformance, projects
from tzrec_core.config.assemble import config_class
from tzrec_core.config.comments import message_comment
from tzrec_core.config.describe import field_tables
from tzrec_core.plugins import Group, ModelSpec, Offer, Registry


def path(name: str) -> Path:
    """Where a model's page is."""
    return DOCS / "models" / f"{name}.md"


def page(registry: Registry, offer: Offer[ModelSpec]) -> str:
    """models/<name>.md."""
    spec, here, project = offer.spec, path(offer.spec.name), projects()[offer.plugin.distribution]
    told = sections(project.readme.read_text(encoding="utf-8"))
    descriptor = config_class(offer).DESCRIPTOR

    def told_in(title: str) -> str:
        bodies = [body for head, body in told.items() if head.lower().startswith(title)]
        return relink("\n\n".join(bodies), project.readme, here) + "\n"

    parts = [
        generated(f"the manifest, settings, README and example of {offer.plugin.distribution}, and results.toml"),
        f"# `{spec.name}`\n",
        f"{spec.summary}\n",
        _facts(offer, link(project.readme, here)),
        "## When to use it\n",
        told_in("when"),
        results.where_others_won(registry, spec.name),
        "## A config\n",
        f"The packaged example, `{spec.example}`; it runs in seconds on generated tables.\n",
        f"```\n{_example(offer, project.folder)}\n```\n",
        "## Fields\n",
        f"{message_comment(descriptor)}\n",
        *(
            f"### `{title}`\n\n{table(['field', 'type', 'default', 'meaning'], _cells(rows))}"
            for title, rows in field_tables(f"{spec.name} {{ ... }}", descriptor)
        ),
        "## Feature groups\n",
        table(["group", "type", "required"], map(_group, spec.groups)),
        "## Results\n",
        results.of_model(registry, spec.name, here),
        "## Departures from the paper\n",
        told_in("departures"),
        "## Conformance\n",
        _conformance(offer),
    ]
    return "\n".join(part for part in parts if part)


def _facts(offer: Offer[ModelSpec], readme: str) -> str:
    spec, package = offer.spec, offer.plugin.distribution
    conformance = Conformance.read()
    proved = conformance.proved(offer)
    facts = {
        "Task": f"`{spec.task}`",
        "Plugin": f"[{package}]({readme}), `pip install {package}`",
        "Class": f"`{spec.target}`",
        "Paper": re.sub(r"arXiv:(\d+\.\d+)", r"[\g<0>](https://arxiv.org/abs/\1)", spec.paper),
        "Also called": ", ".join(f"`{name}`" for name in spec.aliases),
        "Traits proved": ", ".join(proved),
        "Traits claimed, not proved yet": ", ".join(sorted({str(trait) for trait in spec.traits} - set(proved))),
    }
    return "".join(f"- {name}: {fact}\n" for name, fact in facts.items() if fact)


def _example(offer: Offer[ModelSpec], folder: Path) -> str:
    package = folder / offer.plugin.module.partition(".")[0]
    return (package / offer.spec.example).read_text(encoding="utf-8").strip()


def _cells(rows: Iterable[dict[str, str]]) -> list[list[str]]:
    return [[f"`{r['field']}`", r["type"], _default(r["default"]), r["meaning"]] for r in rows]


def _default(text: str) -> str:
    return text if text in ("required", "unset") else f"`{text}`"


def _group(group: Group) -> list[str]:
    name = f"the one that `{group.from_field}` names" if group.from_field else f"`{group.name}`"
    return ["the first one" if group.name == "*" else name, " or ".join(group.types), "yes" if group.required else "no"]


def _conformance(offer: Offer[ModelSpec]) -> str:
    outcomes = Conformance.read().of_model(offer)
    if not outcomes:
        return "Not run yet: `make conformance`.\n"
    counts = Counter(outcomes.values())
    lines = [
        f"- {outcome}: " + ", ".join(f"`{name}`" for name, found in outcomes.items() if found == outcome) + "\n"
        for outcome in counts
        if outcome != "passed"
    ]
    return (
        f"`tzrec check {offer.plugin.distribution} --slow`: {counts['passed']} of {len(outcomes)} checks passed. "
        f"[conformance.json](../conformance.json) has the rule of each.\n\n{''.join(lines)}"
    )
