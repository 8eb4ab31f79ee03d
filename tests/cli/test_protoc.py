import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = """
syntax = "proto2";
package acme_ranker;
import "tzrec_core/protos/module.proto";
import "tzrec_core/protos/tower.proto";

// Settings.
message Ranker {
  // Layers.
  required tzrec_core.protos.MLP mlp = 1;
  // Width.
  optional uint32 width = 2 [default = 4];
  // What no config of the core holds.
  optional tzrec_core.protos.Tower tower = 3;
}
"""


def python_with_grpc_tools() -> str | None:
    venv = Path(__file__).parents[2] / ".venv-protos/bin/python"
    found = os.environ.get("TZREC_PROTOC_PYTHON") or (str(venv) if venv.exists() else None)
    return found if found and subprocess.run([found, "-c", "import grpc_tools"], check=False).returncode == 0 else None


@pytest.fixture
def proto(tmp_path) -> Path:
    folder = tmp_path / "acme_ranker"
    folder.mkdir()
    (folder / "config.proto").write_text(PROTO)
    return folder / "config.proto"


@pytest.fixture
def compiler() -> str:
    found = python_with_grpc_tools()
    if found is None:
        pytest.skip("no Python with grpcio-tools: set TZREC_PROTOC_PYTHON, or run `make protos`")
    return found


def test_the_generated_message_works_with_the_installed_core(tzrec, proto, compiler):
    result = tzrec("protoc", str(proto), "--python", compiler)
    assert (result.code, result.err) == (0, "")
    assert f"wrote {proto.parent}/config_pb2.py and {proto.parent}/config_pb2.pyi" in result.out
    assert "class Ranker" in (proto.parent / "config_pb2.pyi").read_text()
    code = (
        "from google.protobuf import text_format; from acme_ranker.config_pb2 import Ranker;"
        "m = text_format.Parse('mlp { hidden_units: [4, 2] }', Ranker());"
        "print(list(m.mlp.hidden_units), m.width)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=proto.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[4, 2] 4\n"


def test_a_mistake_in_the_proto_is_shown_with_its_line(tzrec, proto, compiler):
    proto.write_text(PROTO.replace("uint32", "uint23"))
    result = tzrec("protoc", str(proto), "--python", compiler)
    assert (result.code, result.out) == (2, "")
    assert "does not compile" in result.err
    assert 'acme_ranker/config.proto:12:12: "uint23" is not defined' in result.err
    assert not (proto.parent / "config_pb2.py").exists()


def test_without_grpcio_tools_the_way_to_them_is_shown(tzrec, proto, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"$0: Error while finding module: No module named 'grpc_tools'\" >&2; exit 1\n")
    python.chmod(0o755)
    result = tzrec("protoc", str(proto), "--python", str(python))
    assert (result.code, result.out) == (2, "")
    assert ".venv-protos/bin/pip install grpcio-tools==1.76.0" in result.err
    assert f"tzrec protoc {proto} --python .venv-protos/bin/python" in result.err


def test_a_python_that_is_not_there_is_said(tzrec, proto, tmp_path):
    result = tzrec("protoc", str(proto), "--python", str(tmp_path / "nowhere"))
    assert result.code == 2
    assert "nowhere cannot be run" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PROTO.replace("package acme_ranker;", ""), "has no package; write one that is the Python package it lies in"),
        (
            PROTO.replace("package acme_ranker;", "package other;"),
            "says package other, but lies in acme_ranker/.",
        ),
    ],
)
def test_the_package_must_be_the_folder(tzrec, proto, text, words):
    proto.write_text(text)
    result = tzrec("protoc", str(proto))
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_a_file_that_is_not_there_is_said(tzrec, tmp_path):
    result = tzrec("protoc", str(tmp_path / "nowhere.proto"))
    assert result.code == 2
    assert "nowhere.proto does not exist" in result.err
