"""A pytest plugin that notes which config fields each test sets: `pytest -p schema_recorder`.

Every message that a test parses from text or JSON is walked. `TZREC_SCHEMA_CLAIMS` names a JSON file, test id ->
["Message.field", ...]. Each of these tests then runs once more per claimed field, with that field taken out of
whatever the test parses: a test that shows what the field does fails without it. The claim "" takes nothing out.
`TZREC_SCHEMA_RECORD` names the JSON file to write:
    set       test id -> the fields that it sets to something else than their default.
    unmoved   [test id, field] of each claim whose test passed without the field.
"""

import functools
import json
import os
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from google.protobuf import json_format, text_format

_seen: dict[str, set[str]] = {}
_unmoved: list[tuple[str, str]] = []
_now = {"test": "", "taken_out": ""}
_claims: dict[str, list[str]] = json.loads(Path(os.environ["TZREC_SCHEMA_CLAIMS"]).read_text())


def fields_set(message):
    """`Message.field` of each field that stands in `message` and, for a scalar, is not as unset."""
    for field, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        if field.is_repeated or field.message_type or field.is_required or value != field.default_value:
            yield name
        for inner in _messages(field, value):
            yield from fields_set(inner)


def _messages(field, value):
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return []
    return value if field.is_repeated else [value]


def _take_out(message, name):
    kind, _, wanted = name.partition(".")
    if message.DESCRIPTOR.name == kind and wanted in message.DESCRIPTOR.fields_by_name:
        message.ClearField(wanted)
    for field, value in message.ListFields():
        for inner in _messages(field, value):
            _take_out(inner, name)


def _watch(module, name):
    parse = getattr(module, name)

    @functools.wraps(parse)
    def watched(text, message, *args, **kwargs):
        parse(text, message, *args, **kwargs)
        if _now["test"]:
            _seen.setdefault(_now["test"], set()).update(fields_set(message))
        if _now["taken_out"]:
            _take_out(message, _now["taken_out"])
        return message

    setattr(module, name, watched)


for _module, _name in ((text_format, "Parse"), (text_format, "Merge"), (json_format, "ParseDict")):
    _watch(_module, _name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Run a test as usual while recording, then without each field that is claimed for it."""
    _now["test"] = item.nodeid
    claims = _claims.get(item.nodeid, [])
    result = yield
    _now["test"] = ""
    for name in claims:
        _now["taken_out"] = name
        item._initrequest()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        _now["taken_out"] = ""
        if all(report.passed for report in reports):
            _unmoved.append((item.nodeid, name))
    return result


def pytest_sessionfinish():
    """Write down what was seen."""
    record = {"set": {test: sorted(names) for test, names in _seen.items()}, "unmoved": _unmoved}
    Path(os.environ["TZREC_SCHEMA_RECORD"]).write_text(json.dumps(record))
