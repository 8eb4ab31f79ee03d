"""The laws of the .proto files: parts are explained, generated code fits, the schema is TorchEasyRec's."""

import ast
import json
import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tzrec_core.config.comments import Part, Source, scan

ROOT = Path(__file__).resolve().parent.parent
FACTS = json.loads((ROOT / "tests" / "goldens" / "config_schema.json").read_text())
FIRST_OWN_NUMBER = 1000
MADE_OPTIONAL = {("CustomFeature", "operator_lib_file")}


def find_protos() -> dict[str, Path]:
    """Every .proto of the repo, by its import path."""
    roots = [(ROOT / "protos", "**/*.proto")]
    roots += [(root, "tzrec_*/**/*.proto") for root in sorted(ROOT.glob("plugins/tzrec-*"))]
    return {str(path.relative_to(root)): path for root, pattern in roots for path in sorted(root.glob(pattern))}


PLACES = find_protos()
SOURCES = {proto: scan(path.read_text()) for proto, path in PLACES.items()}


def pb2_of(proto: str) -> Path:
    """The generated module of a .proto: in the package beside it, or in the core's package."""
    is_plugin = PLACES[proto].is_relative_to(ROOT / "plugins")
    path = PLACES[proto] if is_plugin else ROOT / proto
    return path.with_name(f"{path.stem}_pb2.py")


# Comments


def words(text: str) -> set[str]:
    """The words of a name or sentence, without case, underscores, plural and words that say nothing."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return {_singular(word) for word in re.findall(r"[a-z]+|[0-9]+", spaced.lower())} - _EMPTY_WORDS


def _singular(word: str) -> str:
    """Cuts `s`, `es` and `e`, so that losses = loss and values = value."""
    return re.sub(r"[es]+$", "", word) if len(word) > 3 else word


_SAYS_NOTHING = """a an and are as at be by for from has have in is it its of on or that the this to with
    config configuration configure default enum field message name option parameter setting specify specifies
    use used value"""
_EMPTY_WORDS = {_singular(word) for word in re.findall(r"[a-z]+", _SAYS_NOTHING)}


def comment_problem(name: str, comment: str) -> str | None:
    """What is wrong with the comment above a part, or None."""
    if not comment:
        return "has no comment above it"
    if words(comment) <= words(name):
        return f"has a comment that only repeats its name: {comment!r}"
    return None


@pytest.mark.parametrize("proto", SOURCES)
def test_every_part_of_a_proto_has_a_comment_that_says_more_than_its_name(proto):
    problems = [
        f"{proto}:{part.line}: {part.kind} {part.path} {problem}"
        for part in SOURCES[proto].parts
        if (problem := comment_problem(part.path.rpartition(".")[2], part.comment))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("proto", SOURCES)
def test_every_line_of_a_proto_is_of_the_style_that_is_scanned(proto):
    assert not SOURCES[proto].unread, f"{proto}, lines {SOURCES[proto].unread}"


@pytest.mark.parametrize("proto", SOURCES)
def test_every_comment_is_made_of_sentences(proto):
    bare = [f"{proto}:{part.line}" for part in SOURCES[proto].parts if not part.comment.endswith(".")]
    assert not bare, f"comments that do not end in a full stop: {bare}"


@pytest.mark.parametrize("proto", SOURCES)
def test_no_line_of_a_proto_is_longer_than_110(proto):
    lines = PLACES[proto].read_text().splitlines()
    assert not [f"{proto}:{n}" for n, line in enumerate(lines, 1) if len(line) > 110]


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("batch_size", "Batch size."),
        ("batch_size", "The size of the batch."),
        ("batch_size", "BATCH_SIZE"),
        ("label_fields", "The label field."),
        ("label_fields", "Names of labels."),
        ("NegativeSampler", "Negative samplers."),
        ("NegativeSampler", "The negative_sampler message."),
        ("JRCLoss", "Config for the JRC loss."),
        ("vocab_dict", "The default vocab dict."),
        ("grouping_key", "Specifies the grouping key."),
        ("HSTU", "HSTU."),
        ("eps", "..."),
        ("eps", ""),
    ],
)
def test_a_comment_that_says_nothing_is_refused(name, comment):
    assert comment_problem(name, comment)


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("batch_size", "Rows per batch."),
        ("batch_size", "Batch size, counted in rows."),
        ("label_fields", "Columns that hold labels."),
        ("eps", "Added to the root of the second moment; > 0."),
    ],
)
def test_a_comment_that_adds_something_is_accepted(name, comment):
    assert comment_problem(name, comment) is None


def test_a_part_without_a_comment_is_found_and_a_distant_comment_does_not_count():
    text = "// About a.\nmessage A {\n  // Far away.\n\n  optional int32 b = 1;\n}\nenum C {\n  D = 1;\n}\n"
    bare = [(part.kind, part.path, part.line) for part in scan(text).parts if comment_problem(part.path, part.comment)]
    assert bare == [("field", "A.b", 5), ("enum", "C", 7), ("value", "C.D", 8)]


# Generated code

_LABELS = {1: "optional", 2: "required", 3: "repeated"}
_TYPES = {
    value.number: value.name.removeprefix("TYPE_").lower()
    for value in descriptor_pb2.FieldDescriptorProto.Type.DESCRIPTOR.values
}


def embedded_descriptor(pb2: Path) -> descriptor_pb2.FileDescriptorProto:
    """The file descriptor that a generated module carries, read without importing the module."""
    literal = re.search(r"AddSerializedFile\((b'.*')\)$", pb2.read_text(), re.MULTILINE)
    assert literal, f"{pb2} carries no descriptor"
    return descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(literal[1]))


def described_parts(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
    """What a descriptor declares, in the form of `source_parts`."""
    found: set[tuple[object, ...]] = set()

    def add_enum(prefix, enum):
        found.add(("enum", prefix + enum.name))
        found.update(("value", f"{prefix}{enum.name}.{value.name}", value.number) for value in enum.value)

    def add_message(prefix, message):
        path = f"{prefix}{message.name}"
        found.add(("message", path))
        found.update(("oneof", f"{path}.{oneof.name}") for oneof in message.oneof_decl)
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        for item in message.field:
            label, kind = _LABELS[item.label], _type(item)
            entry = maps.get(kind.rpartition(".")[2])
            if entry is not None:
                label, kind = "", f"map<{_type(entry.field[0])}, {_type(entry.field[1])}>"
            oneof = message.oneof_decl[item.oneof_index].name if item.HasField("oneof_index") else ""
            default = item.default_value if item.HasField("default_value") else None
            found.add(("field", f"{path}.{item.name}", item.number, "" if oneof else label, kind, default, oneof))
        for nested in message.nested_type:
            if not nested.options.map_entry:
                add_message(f"{path}.", nested)
        for enum in message.enum_type:
            add_enum(f"{path}.", enum)

    for message in file.message_type:
        add_message("", message)
    for enum in file.enum_type:
        add_enum("", enum)
    return found


def _type(item: descriptor_pb2.FieldDescriptorProto) -> str:
    return item.type_name.removeprefix(".") if item.type_name else _TYPES[item.type]


def source_parts(proto: str, source: Source) -> set[tuple[object, ...]]:
    """What a .proto declares: names, numbers, labels, full types, defaults as protoc writes them."""
    found: set[tuple[object, ...]] = set()
    for part in source.parts:
        if part.kind == "field":
            kind = _full_type(part, proto, source)
            default = None if part.default is None else _protoc_default(part.default, kind)
            found.add(("field", part.path, part.number, part.label, kind, default, part.oneof))
        elif part.kind == "value":
            found.add(("value", part.path, part.number))
        else:
            found.add((part.kind, part.path))
    return found


def _full_type(part: Part, proto: str, source: Source) -> str:
    if part.type in _TYPES.values() or part.type.startswith(("map<", "google.protobuf.")):
        return part.type
    message = part.path.rpartition(".")[0]
    for file in (proto, *source.imports):
        if file in SOURCES or file == proto:
            declaring = source if file == proto else SOURCES[file]
            names = {p.path for p in declaring.parts if p.kind in ("message", "enum")}
            plain = part.type.removeprefix(f"{declaring.package}.")
            for name in (f"{message}.{plain}", plain):
                if name in names:
                    return f"{declaring.package}.{name}"
    raise AssertionError(f"{proto}:{part.line}: type {part.type} is declared in none of its imports")


def _protoc_default(written: str, kind: str) -> str:
    if kind == "string":
        return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), written[1:-1])
    if kind in ("float", "double"):
        number = float(written)
        return str(int(number)) if number.is_integer() else f"{number:g}"
    return written


@pytest.mark.parametrize("proto", SOURCES)
def test_generated_code_is_up_to_date(proto):
    pb2 = pb2_of(proto)
    assert pb2.exists(), f"{pb2.relative_to(ROOT)} is missing. Run `make protos`."
    file, source = embedded_descriptor(pb2), SOURCES[proto]
    assert (file.name, file.package, sorted(file.dependency)) == (
        proto,
        source.package,
        sorted(source.imports),
    )
    declared, described = source_parts(proto, source), described_parts(file)
    stale = sorted({str(part[1]) for part in declared ^ described})
    assert not stale, f"{pb2.relative_to(ROOT)} is stale: {', '.join(stale)}. Run `make protos`."
    stub = pb2.with_suffix(".pyi").read_text()
    names = {part.path.rpartition(".")[2] for part in source.parts if part.kind != "oneof"}
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", stub))
    assert not missing, f"{pb2.with_suffix('.pyi').relative_to(ROOT)} is stale: {missing}. Run `make protos`."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("num_steps = 1", "num_steps = 4"),
        ("num_steps = 1", "num_step = 1"),
        ("optional uint32 num_steps", "required uint32 num_steps"),
        ("optional uint32 num_steps", "optional int32 num_steps"),
        ("default = 10", "default = 11"),
        ("optional bool use_dense_ema = 3;", "optional bool use_dense_ema = 3;\noptional bool more = 4;"),
    ],
)
def test_a_changed_proto_makes_its_generated_code_stale(before, after):
    proto = "tzrec_core/protos/eval.proto"
    text = PLACES[proto].read_text()
    described = described_parts(embedded_descriptor(pb2_of(proto)))
    assert before in text
    assert source_parts(proto, scan(text)) == described
    assert source_parts(proto, scan(text.replace(before, after))) != described


def test_the_shipped_comments_of_the_core_are_up_to_date():
    written = {}
    for proto, source in SOURCES.items():
        if proto.startswith("tzrec_core/"):
            written |= source.comments()
    shipped = json.loads((ROOT / "tzrec_core" / "protos" / "comments.json").read_text())
    stale = sorted(name for name in written.keys() | shipped.keys() if written.get(name) != shipped.get(name))
    assert not stale, f"comments.json is stale: {', '.join(stale[:5])}. Run `make protos`."


def test_no_generated_file_outlives_its_proto():
    generated = {
        *ROOT.glob("tzrec_core/protos/*_pb2.py*"),
        *ROOT.glob("plugins/tzrec-*/tzrec_*/**/*_pb2.py*"),
    }
    expected = {pb2_of(proto).with_suffix(suffix) for proto in PLACES for suffix in (".py", ".pyi")}
    assert not sorted(str(path.relative_to(ROOT)) for path in generated - expected)


# The schema


def own_messages() -> dict[str, tuple[str, list[Part]]]:
    """Fields of every message of the sources, by message name, with the .proto it stands in."""
    found = {}
    for proto, source in SOURCES.items():
        for part in source.parts:
            if part.kind == "message":
                fields = [p for p in source.parts if p.kind == "field"]
                found[part.path] = (proto, [p for p in fields if p.path.rpartition(".")[0] == part.path])
    return found


MESSAGES = own_messages()
CORE_FACTS = sorted(name for name, facts in FACTS["messages"].items() if not facts["file"].startswith("models/"))
MODEL_FACTS = sorted(set(FACTS["messages"]) - set(CORE_FACTS))


def fact_of(part: Part) -> dict[str, object]:
    """A field of ours in the form of the facts file."""
    message = part.path.rpartition(".")[0]
    fact: dict[str, object] = {"name": part.path.rpartition(".")[2], "number": part.number}
    if part.type.startswith("map<"):
        key, value = re.findall(r"\w+", part.type)[1:]
        return fact | {"label": "map", "type": "map", "key_type": key, "value_type": value}
    fact["label"] = part.label or "optional"
    plain = part.type.removeprefix("tzrec_core.protos.")
    enums = {p.path for source in SOURCES.values() for p in source.parts if p.kind == "enum"}
    if plain in _TYPES.values():
        fact["type"] = plain
    elif {plain, f"{message}.{plain}"} & enums:
        fact |= {"type": "enum", "enum": plain if plain in enums else f"{message}.{plain}"}
    else:
        fact |= {"type": "message", "message": plain}
    if part.default is not None:
        fact["default"] = _fact_default(part.default, plain)
    if part.oneof:
        fact["oneof"] = part.oneof
    return fact


def _fact_default(written: str, kind: str) -> object:
    if kind == "bool":
        return written == "true"
    if kind in ("float", "double"):
        return float(written)
    if re.fullmatch(r"-?\d+", written):
        return int(written)
    return _protoc_default(written, "string") if kind == "string" else written


@pytest.mark.parametrize("name", CORE_FACTS)
def test_core_message_has_the_fields_of_torcheasyrec(name):
    compare_with_facts(name)


@pytest.mark.parametrize("name", [name for name in MODEL_FACTS if name in MESSAGES])
def test_plugin_message_has_the_fields_of_torcheasyrec(name):
    proto, _ = MESSAGES[name]
    assert not proto.startswith("tzrec_core/"), f"{name} belongs to a plugin, not to the core"
    compare_with_facts(name)


def compare_with_facts(name: str) -> None:
    assert name in MESSAGES, f"message {name} is missing"
    facts = FACTS["messages"][name]
    expected = {fact["name"]: fact for fact in facts["fields"]}
    if name == "ModelConfig":  # its oneof is assembled from the installed plugins when a config is loaded
        expected = {key: fact for key, fact in expected.items() if fact.get("oneof") != "model"}
    for owner, made_optional in MADE_OPTIONAL:
        if owner == name:
            expected[made_optional] = expected[made_optional] | {"label": "optional"}
    ours = {fact["name"]: fact for fact in map(fact_of, MESSAGES[name][1])}
    assert {key: fact for key, fact in ours.items() if key in expected} == expected
    low = [key for key, fact in ours.items() if key not in expected and fact["number"] < FIRST_OWN_NUMBER]
    assert not low, f"fields that TorchEasyRec lacks are numbered from {FIRST_OWN_NUMBER}: {low}"


@pytest.mark.parametrize("name", sorted(FACTS["enums"]))
def test_enum_has_the_values_of_torcheasyrec(name):
    ours = {
        part.path.rpartition(".")[2]: part.number
        for source in SOURCES.values()
        for part in source.parts
        if part.kind == "value" and part.path.rpartition(".")[0] == name
    }
    assert ours == FACTS["enums"][name]["values"]


def test_deepfm_and_wide_and_deep_are_among_the_compared_plugin_messages():
    assert {"DeepFM", "WideAndDeep"} <= {name for name in MODEL_FACTS if name in MESSAGES}
