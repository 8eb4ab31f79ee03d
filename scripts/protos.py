"""Writes the generated code of every .proto in the repo: the core's and that of each plugin in plugins/.

Run by the Makefile with a Python that has `grpcio-tools==1.76.0` (it wants an older protobuf than the core):

    python scripts/protos.py            write *_pb2.py and *_pb2.pyi beside the packages' code
    python scripts/protos.py --check    write nothing; print the stale files and exit with 1 if there are any

The comments of the core's .proto, which do not travel with its package, go to tzrec_core/protos/comments.json.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "tzrec_core" / "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "comments.json")


def proto_packages() -> list[tuple[Path, Path, Path]]:
    """What to compile, as (root of the sources, folder of the generated code, root of its import path)."""
    core = [(ROOT / "protos", CORE, ROOT)]
    plugins = [(p.parent, p, p.parent) for p in sorted(ROOT.glob("plugins/tzrec-*/tzrec_*")) if p.is_dir()]
    return core + plugins


def compile_protos(sources: Path, package: Path, code_root: Path, out: Path) -> None:
    """Compiles the .proto files of one package into `out`, which stands for `code_root`."""
    from grpc_tools import protoc

    folder = sources / package.relative_to(code_root)
    protos = sorted(str(path.relative_to(sources)) for path in folder.rglob("*.proto"))
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


def generated_files(folder: Path) -> dict[Path, bytes]:
    """The generated files under a folder, by their path within it."""
    found = sorted(path for pattern in GENERATED for path in folder.rglob(pattern))
    return {path.relative_to(folder): path.read_bytes() for path in found}


def main() -> None:
    """Regenerates or checks the generated code of all packages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when a file is stale")
    check = parser.parse_args().check

    stale = []
    for sources, package, code_root in proto_packages():
        with tempfile.TemporaryDirectory() as temp:
            compile_protos(sources, package, code_root, Path(temp))
            if package == CORE:
                write_comments(sources, Path(temp) / package.relative_to(code_root))
            fresh = generated_files(Path(temp) / package.relative_to(code_root))
        committed = generated_files(package)
        for path in sorted(fresh.keys() | committed.keys()):
            if fresh.get(path) == committed.get(path):
                continue
            stale.append((package / path).relative_to(ROOT))
            if check:
                continue
            if path in fresh:
                (package / path).write_bytes(fresh[path])
            else:
                (package / path).unlink()

    for path in stale:
        print(f"stale: {path}" if check else f"wrote: {path}")
    if check and stale:
        sys.exit("Generated code differs from its .proto: run `make protos` and commit the result.")


if __name__ == "__main__":
    main()
