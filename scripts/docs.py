"""Writes registry_docs/ and the registry that the core ships, from manifests, .proto, READMEs, docstrings and results.

    python scripts/docs.py                           write the pages
    python scripts/docs.py --check                   write nothing; exit with 1 when a file is stale or a claim unproved
    python scripts/docs.py --conformance [PLUGIN]    first run the conformance kit, both tiers, on these plugins or on
                                                     all of plugins/, and write conformance.json

Hand-written in registry_docs/ are guides/, results.toml and community.toml.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pages import api, index, models, registry, results, schema, sources, specs
from pages.markdown import DOCS, ROOT

from tzrec_core.errors import TzrecError
from tzrec_core.plugins import ModelSpec, Registry, use_registry

SHIPPED = ROOT / "tzrec_core" / "plugins" / "registry.json"


def outputs(found: Registry) -> dict[Path, str]:
    """Every generated file with what it should hold."""
    return {
        DOCS / "index.md": index.page(found),
        **{models.path(offer.spec.name): models.page(found, offer) for offer in found.offers(ModelSpec)},
        DOCS / "results.md": results.page(found),
        DOCS / "specs.md": specs.page(found),
        DOCS / "api.md": api.page(),
        DOCS / "schema.md": schema.page(),
        DOCS / "registry.json": _json(registry.whole(found)),
        SHIPPED: _json(registry.shipped(found), sort_keys=True),
    }


def stale_files(fresh: dict[Path, str]) -> list[Path]:
    """The files that do not hold what they should, and pages of models that are no more."""
    differ = [path for path, text in fresh.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return differ + [path for path in sorted(DOCS.glob("models/*.md")) if path not in fresh]


def write(fresh: dict[Path, str]) -> None:
    """Write the stale files, and remove pages of models that are no more."""
    for path in stale_files(fresh):
        print(f"{'wrote' if path in fresh else 'removed'}: {path.relative_to(ROOT)}")
        if path in fresh:
            path.parent.mkdir(exist_ok=True)
            path.write_text(fresh[path], encoding="utf-8")
        else:
            path.unlink()


def write_conformance(names: list[str]) -> bool:
    """Run the conformance kit on plugins and write the outcomes; those of the other plugins are kept.

    Args:
        names: distributions.

    Returns:
        whether nothing failed.
    """
    from tzrec_core.testing.check import Outcome, checks
    from tzrec_core.testing.conformance import check_plugin

    found = {name: check_plugin(name, slow=True) for name in names}
    old = sources.Conformance.read().outcomes
    outcomes = {name: outcomes for name, outcomes in old.items() if name in sources.projects()}
    outcomes |= {name: {r.key: str(r.outcome) for r in results} for name, results in found.items()}
    known = [*checks("plugin", slow=True), *checks("model", slow=True)]
    data = {
        "generated_by": "make conformance",
        "checks": {c.name: {"rule": c.rule, **({"trait": str(c.trait)} if c.trait else {})} for c in known},
        "plugins": dict(sorted(outcomes.items())),
    }
    sources.CONFORMANCE.write_text(_json(data), encoding="utf-8")
    bad = [(n, r) for n, rs in found.items() for r in rs if r.outcome in (Outcome.FAILED, Outcome.SKIPPED)]
    for name, result in bad:
        print(f"{result.outcome}: {name}: {result.key}: {result.message}")
    return all(result.outcome is not Outcome.FAILED for _, result in bad)


def _json(value: Any, *, sort_keys: bool = False) -> str:  # Any: JSON
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n"


def main() -> int:
    """Writes or checks the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only compare")
    mode.add_argument("--conformance", nargs="*", metavar="PLUGIN", help="run the conformance kit first")
    options = parser.parse_args()
    try:
        with use_registry(sources.official()) as found:
            conforms = True
            if options.conformance is not None:
                conforms = write_conformance(options.conformance or list(sources.projects()))
            fresh = outputs(found)
            unproved = sources.Conformance.read().unproved(found)
    except TzrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for line in unproved:
        print(f"unproved: {line}")
    if not options.check:
        write(fresh)
        return 0 if conforms else 1
    stale = stale_files(fresh)
    for path in stale:
        print(f"stale: {path.relative_to(ROOT)}")
    if stale:
        print("Run `make docs` and commit the result.")
    return 1 if stale or unproved else 0


if __name__ == "__main__":
    sys.exit(main())
