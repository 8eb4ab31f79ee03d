"""Writes tzrec_core/plugins/registry.json: every official model, and the package that ships it.

The core ships this file so that it can name the package of a model that is not installed.

    python scripts/registry_json.py            write the file from the manifests in plugins/
    python scripts/registry_json.py --check    write nothing; exit with 1 when the file is stale
"""

import argparse
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

from tzrec_core.plugins import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "tzrec_core" / "plugins" / "registry.json"


def manifests() -> list[tuple[str, ModuleType]]:
    """Every plugin in plugins/, installed or not, as (distribution, imported manifest)."""
    found = []
    for folder in sorted(ROOT.glob("plugins/tzrec-*")):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for module in project["entry-points"]["tzrec.plugins"].values():
            path = folder / f"{module.replace('.', '/')}.py"
            spec = importlib.util.spec_from_file_location(module, path)
            assert spec is not None and spec.loader is not None, path
            manifest = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(manifest)
            found.append((project["name"], manifest))
    return found


def registry_text() -> str:
    """What registry.json should hold."""
    models: dict[str, dict[str, str]] = {}
    for package, manifest in manifests():
        for spec in manifest.tzrec_specs():
            if not isinstance(spec, ModelSpec):
                continue
            entry = {"package": package, "task": str(spec.task), "summary": spec.summary}
            for name in (spec.name, *spec.aliases):
                assert name not in models, f"{package} and {models[name]['package']} both offer {name!r}"
                models[name] = entry if name == spec.name else {**entry, "alias_of": spec.name}
    return json.dumps({"models": models}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes or checks registry.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when the file is stale")
    check = parser.parse_args().check
    fresh = registry_text()
    if fresh == REGISTRY.read_text(encoding="utf-8"):
        return
    if check:
        sys.exit(f"stale: {REGISTRY.relative_to(ROOT)}. Run `python scripts/registry_json.py` and commit it.")
    REGISTRY.write_text(fresh, encoding="utf-8")
    print(f"wrote: {REGISTRY.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
