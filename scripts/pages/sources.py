"""What the pages are made from: the plugins of this repository, and what the conformance kit found about them."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from pages.markdown import DOCS, ROOT
from tzrec_core.errors import PluginError
from tzrec_core.plugins import ModelSpec, Offer, Registry, Selection
from tzrec_core.plugins.hooks import ENTRY_POINT_GROUP

CONFORMANCE = DOCS / "conformance.json"


@dataclass(frozen=True)
class Project:
    """A plugin of plugins/.

    Attributes:
        folder: where its pyproject.toml is.
        version: its own.
        core: the versions of tzrec-core that it works with, such as ">=0.1,<0.2".
    """

    folder: Path
    version: str
    core: str

    @property
    def readme(self) -> Path:
        """What its authors say of it."""
        return self.folder / "README.md"


@cache
def projects() -> dict[str, Project]:
    """The distributions in plugins/ that have a manifest, by name."""
    found = {}
    for path in sorted(ROOT.glob("plugins/tzrec-*/pyproject.toml")):
        project = read_toml(path)["project"]
        if ENTRY_POINT_GROUP in project.get("entry-points", {}):
            (core,) = (need for need in project["dependencies"] if need.startswith("tzrec-core"))
            found[project["name"]] = Project(path.parent, project["version"], core.removeprefix("tzrec-core"))
    return found


def official() -> Registry:
    """A registry of the plugins in plugins/ and of no others, whatever else is installed.

    Raises:
        PluginError: one of them is not installed, or not ok.
    """
    found = [plugin for plugin in Registry.find(Selection()).plugins if plugin.distribution in projects()]
    if missing := sorted(projects().keys() - {plugin.distribution for plugin in found}):
        raise PluginError(f"in plugins/ and not installed: {', '.join(missing)}; run `make setup`")
    ours = Registry(found)
    ours.require_ok()
    return ours


@dataclass(frozen=True)
class Conformance:
    """What the conformance kit found.

    Attributes:
        checks: by name: the `rule`, and the `trait` that it proves, if any.
        outcomes: of each plugin, by check or, for a check of a model, `check[model]`.
    """

    checks: Mapping[str, Mapping[str, str]]
    outcomes: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls) -> "Conformance":
        """From the file that `make conformance` writes; empty without it."""
        data = json.loads(CONFORMANCE.read_text(encoding="utf-8")) if CONFORMANCE.exists() else {}
        return cls(data.get("checks", {}), data.get("plugins", {}))

    def of_model(self, offer: Offer[ModelSpec]) -> dict[str, str]:
        """The outcome of each check of a model and of its plugin."""
        outcomes = self.outcomes.get(offer.plugin.distribution, {})
        keys = {name: f"{name}[{offer.spec.name}]" for name in self.checks}
        found = {name: outcomes.get(key, outcomes.get(name, "")) for name, key in keys.items()}
        return {name: outcome for name, outcome in found.items() if outcome}

    def proved(self, offer: Offer[ModelSpec]) -> list[str]:
        """The traits that a model claims and that have checks, all of which passed; sorted."""
        outcomes = self.of_model(offer)
        proofs = {
            str(trait): [outcomes.get(name) for name, check in self.checks.items() if check.get("trait") == trait]
            for trait in sorted(offer.spec.traits)
        }
        return [trait for trait, found in proofs.items() if set(found) == {"passed"}]

    def unproved(self, registry: Registry) -> list[str]:
        """A line for each model that claims traits which are not proved: what is missing, and what to run."""
        lines = []
        for offer in registry.offers(ModelSpec):
            if missing := sorted({str(trait) for trait in offer.spec.traits} - set(self.proved(offer))):
                package = offer.plugin.distribution
                lines.append(
                    f"{offer.spec.name} claims {', '.join(missing)}, which conformance.json does not show as passed: "
                    f"run `python scripts/docs.py --conformance {package}`, or take the claim out of the manifest"
                )
        return lines


def read_toml(path: Path) -> dict[str, Any]:  # Any: TOML
    """A TOML file; its numbers keep the digits that they are written with."""
    return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
