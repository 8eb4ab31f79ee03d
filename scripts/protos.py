"""Writes the generated code of every .proto in the repo: of the core, of plugins, those of examples and tests
included, and of the templates of `tzrec new-plugin`.

Run by the Makefile with a Python that has `grpcio-tools==1.76.0` (it wants an older protobuf than the core):

    python scripts/protos.py            write *_pb2.py and *_pb2.pyi beside the packages' code
    python scripts/protos.py --check    write nothing; print the stale files and exit with 1 if there are any

The comments of the core's .proto, which do not travel with its package, go to tzrec_core/protos/comments.json.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "tzrec_core" / "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "comments.json")
PLUGINS = ("plugins/*", "examples/*", "examples/*/*", "tests/broken_plugins/*")  # a Python package lies in each
TEMPLATES = ROOT / "tzrec_core/scaffold/templates"  # one folder per task; its package is called as below
TEMPLATE_PACKAGE, TEMPLATE_SUFFIX = "tzrec_new_model", ".tmpl"


@dataclass(frozen=True)
class Package:
    """Where the .proto files of a Python package are, and where their generated code is kept.

    Attributes:
        sources: root of the import paths of the .proto files.
        folder: theirs within it, and that of the generated code's import path.
        code: folder that keeps the generated code.
        suffix: what names of kept files end in besides.
    """

    sources: Path
    folder: str
    code: Path
    suffix: str = ""


def proto_packages(temp: Path) -> list[Package]:
    """What to compile; the templates' .proto files are copied into `temp` under the names that protoc wants."""
    found = [Package(ROOT / "protos", "tzrec_core/protos", CORE)]
    names = ("*.proto", "*_pb2.py")  # also where generated code is left of a .proto that is gone
    folders = {path.parent for pattern in PLUGINS for name in names for path in ROOT.glob(f"{pattern}/*/{name}")}
    found += [Package(folder.parent, folder.name, folder) for folder in sorted(folders)]
    for proto in sorted(TEMPLATES.glob(f"*/config.proto{TEMPLATE_SUFFIX}")):
        copy = temp / proto.parent.name / TEMPLATE_PACKAGE / "config.proto"
        copy.parent.mkdir(parents=True)
        shutil.copyfile(proto, copy)
        found.append(Package(temp / proto.parent.name, TEMPLATE_PACKAGE, proto.parent, TEMPLATE_SUFFIX))
    return found


def compile_protos(sources: Path, folder: str, out: Path) -> None:
    """Compiles the .proto files of one package into `out`, which stands for the root of the import path."""
    from grpc_tools import protoc

    protos = sorted(str(path.relative_to(sources)) for path in (sources / folder).rglob("*.proto"))
    if not protos:
        return
    include = dict.fromkeys([sources, ROOT / "protos", files("grpc_tools") / "_proto"])
    code = protoc.main(
        ["protoc", *(f"-I{path}" for path in include), f"--python_out={out}", f"--pyi_out={out}", *protos]
    )
    if code:
        sys.exit(code)


def write_comments(sources: Path, out: Path) -> None:
    """Writes what the core's parts mean, by full name, into `out`."""
    spec = importlib.util.spec_from_file_location("comments", ROOT / "tzrec_core/config/comments.py")
    assert spec is not None and spec.loader is not None
    scanner = importlib.util.module_from_spec(spec)  # by its path: importing the core would need its stack
    sys.modules[spec.name] = scanner
    spec.loader.exec_module(scanner)
    comments: dict[str, str] = {}
    for path in sorted(sources.rglob("*.proto")):
        comments |= scanner.scan(path.read_text(encoding="utf-8")).comments()
    text = json.dumps(comments, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "comments.json").write_text(f"{text}\n", encoding="utf-8")


def generated_files(folder: Path, suffix: str = "") -> dict[str, bytes]:
    """The generated files under a folder, by their path within it and with `suffix`."""
    found = sorted(path for pattern in GENERATED for path in folder.rglob(pattern + suffix))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def stale_files(package: Package, *, write: bool) -> list[Path]:
    """The generated files of a package that are not what protoc writes today; with `write` they are from now on."""
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / package.folder
        compile_protos(package.sources, package.folder, Path(temp))
        if package.code == CORE:
            write_comments(package.sources, out)
        fresh = {f"{path}{package.suffix}": code for path, code in generated_files(out).items()}
    kept = generated_files(package.code, package.suffix)
    stale = sorted(path for path in fresh.keys() | kept.keys() if fresh.get(path) != kept.get(path))
    for path in stale if write else ():
        if path in fresh:
            (package.code / path).write_bytes(fresh[path])
        else:
            (package.code / path).unlink()
    return [(package.code / path).relative_to(ROOT) for path in stale]


def main() -> None:
    """Regenerates or checks the generated code of all packages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when a file is stale")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory() as temp:
        packages = proto_packages(Path(temp))
        stale = [path for package in packages for path in stale_files(package, write=not check)]
    for path in stale:
        print(f"stale: {path}" if check else f"wrote: {path}")
    if check and stale:
        sys.exit("Generated code differs from its .proto: run `make protos` and commit the result.")


if __name__ == "__main__":
    main()
