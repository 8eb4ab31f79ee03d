"""`tzrec protoc`: generates a plugin's `_pb2.py` and `_pb2.pyi` beside its .proto."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import descriptor_pb2

from tzrec_core.errors import ConfigError

_GRPC_TOOLS = "grpcio-tools==1.76.0"
_PACKAGE = re.compile(r"^\s*package\s+([\w.]+)\s*;", re.MULTILINE)


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("protoc")(protoc)


def protoc(
    file: Annotated[Path, typer.Argument(help="A .proto whose package is the Python package it lies in.")],
    python: Annotated[
        str,
        typer.Option(envvar="TZREC_PROTOC_PYTHON", help=f"A Python that has {_GRPC_TOOLS}; default: this one."),
    ] = "",
) -> None:
    """Generate FILE_pb2.py and FILE_pb2.pyi beside FILE.proto."""
    root, inner = _locate(file)
    with tempfile.TemporaryDirectory() as scratch:
        core = Path(scratch) / "core.bin"
        core.write_bytes(_core_descriptors().SerializeToString())
        command = [
            python or sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--descriptor_set_in={core}",
            f"--python_out={root}", f"--pyi_out={root}", inner,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ConfigError(f"--python {command[0]} cannot be run: {error.strerror}") from None
    if "No module named" in done.stderr and "grpc_tools" in done.stderr:
        raise ConfigError(
            f"{command[0]} has no grpcio-tools, which wants an older protobuf than tzrec. Give it a place of its own:\n"
            f"  python -m venv .venv-protos && .venv-protos/bin/pip install {_GRPC_TOOLS}\n"
            f"  tzrec protoc {file} --python .venv-protos/bin/python"
        )
    if done.returncode:
        raise ConfigError(f"{file} does not compile:\n{done.stderr.strip()}")
    stem = os.path.splitext(inner)[0]
    typer.echo(f"wrote {root / stem}_pb2.py and {root / stem}_pb2.pyi")


def _locate(file: Path) -> tuple[Path, str]:
    """The folder that holds the top-level package, and the file's path below it."""
    if not file.is_file():
        raise ConfigError(f"{file} does not exist")
    match = _PACKAGE.search(file.read_text(encoding="utf-8"))
    if match is None:
        raise ConfigError(f"{file} has no package; write one that is the Python package it lies in: package tzrec_din;")
    parts = match[1].split(".")
    folder = file.resolve().parent
    if list(folder.parts[-len(parts) :]) != parts:
        raise ConfigError(
            f"{file} says package {match[1]}, but lies in {folder.name}/. Two files of one name in different "
            f"packages would crash the process, so the package must be the folder: {'/'.join(parts)}/{file.name}"
        )
    root = folder.parents[len(parts) - 1]
    return root, str(Path(*parts) / file.name)


def _core_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Everything a plugin's .proto may import from the core, as the installed core has it."""
    from tzrec_core import protos

    found = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            file.CopyToProto(found.file.add())

    for module in pkgutil.iter_modules(protos.__path__):
        if module.name.endswith("_pb2"):
            add(importlib.import_module(f"{protos.__name__}.{module.name}").DESCRIPTOR)
    return found
