"""The index of the registry: the models by task, those of others, and the other pages."""

from pathlib import Path

from pages.markdown import DOCS, generated, link, table, title
from pages.sources import Conformance, projects, read_toml
from tzrec_core.plugins import ModelSpec, Registry, Task

COMMUNITY = DOCS / "community.toml"
# The order to read them in; others follow.
GUIDES = (
    "first_model", "write_a_plugin", "specs_and_hooks", "configs", "features", "training", "migrate_from_torcheasyrec",
    "command_line",
)  # fmt: skip
REFERENCE = {
    "results.md": "Results: every measured number, with command, commit and machine",
    "specs.md": "Specs: all that a plugin can offer, and what is built in",
    "api.md": "The Python API",
    "schema.md": "The config schema: what becomes of every field of TorchEasyRec's",
    "registry.json": "This registry for programs",
}


def page(registry: Registry) -> str:
    """index.md."""
    conformance = Conformance.read()
    parts = [
        generated("the manifests in plugins/, conformance.json and community.toml"),
        "# The model registry\n",
        "Each model is a pip package. `tzrec list-models` shows those that are installed, `tzrec show-model NAME` one "
        "of them. The page of a model says when to use it, when another one is better, what there is to set, and what "
        "it reaches.\n",
    ]
    for task in Task:
        rows = [
            [
                f"[`{offer.spec.name}`](models/{offer.spec.name}.md)",
                _package(offer.plugin.distribution),
                offer.spec.summary,
                offer.spec.paper,
                ", ".join(conformance.proved(offer)),
            ]
            for offer in registry.offers(ModelSpec)
            if offer.spec.task is task
        ]
        if rows:
            head = ["model", "plugin", "summary", "paper", "traits proved"]
            parts.append(f"## Task `{task}`\n\n{table(head, rows)}")
    parts += [
        "## Traits\n",
        "What a model may claim to be able to do beyond its task. A trait is proved when all of its checks passed on "
        "the package in this repository; [conformance.json](conformance.json) has the outcome of every check, `tzrec "
        "check PLUGIN --slow` runs them.\n",
        table(["trait", "what its checks hold"], _traits(conformance)),
        "## Plugins of others\n",
        _community(),
        "## Guides\n",
        "".join(f"- [{title(path)}](guides/{path.name})\n" for path in _guides()),
        "## Reference\n",
        "".join(f"- [{says}]({path})\n" for path, says in REFERENCE.items()),
    ]
    return "\n".join(parts)


def _package(name: str) -> str:
    return f"[{name}]({link(projects()[name].readme, DOCS / 'index.md')})"


def _traits(conformance: Conformance) -> list[list[str]]:
    traits = sorted({check["trait"] for check in conformance.checks.values() if "trait" in check})
    rules = {t: [c["rule"] for c in conformance.checks.values() if c.get("trait") == t] for t in traits}
    return [[trait, " ".join(rules[trait])] for trait in traits]


def _community() -> str:
    entries = sorted(read_toml(COMMUNITY).get("plugin", []), key=lambda entry: entry["name"])
    add = "[community.toml](community.toml) says how to list one."
    if not entries:
        return f"None is listed yet; {add}\n"
    rows = [
        [f"[{e['name']}]({e['url']})", e["summary"], ", ".join(f"`{o}`" for o in e["offers"]), e["license"]]
        for e in entries
    ]
    return f"{table(['plugin', 'summary', 'offers', 'licence'], rows)}\nNobody here vouches for them; {add}\n"


def _guides() -> list[Path]:
    """The guides there are, in the order to read them in."""
    found = sorted(DOCS.glob("guides/*.md"))
    return sorted(found, key=lambda path: GUIDES.index(path.stem) if path.stem in GUIDES else len(GUIDES))
