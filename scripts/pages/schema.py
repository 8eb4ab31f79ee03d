"""The ledger of the config schema as a page."""

import json
from collections import Counter

from pages.markdown import ROOT, anchor, generated, table
from pages.sources import read_toml

LEDGER = ROOT / "tests" / "schema_coverage.toml"
SCHEMA = ROOT / "tests" / "goldens" / "config_schema.json"
STATES = ("works", "refused", "later")


def page() -> str:
    """schema.md: what becomes of every field of TorchEasyRec's schema, and of our own."""
    ledger = read_toml(LEDGER)
    own = ledger.pop("own")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))["messages"]
    sizes = {message: len(facts["fields"]) for message, facts in schema.items()}
    files: dict[str, list[str]] = {}
    for message in ledger:
        files.setdefault(schema[message]["file"], []).append(message)
    counts = {file: _count(ledger, sizes, messages) for file, messages in files.items()}
    total = sum(counts.values(), Counter[str]())
    rows = [[f"[{file}](#{anchor(file)})", *(str(c[state]) for state in STATES)] for file, c in counts.items()]
    parts = [
        generated("tests/schema_coverage.toml"),
        "# The config schema, field by field\n",
        f"Every TorchEasyRec config parses. Of the {total.total()} fields of its schema, {total['works']} work, "
        f"{total['refused']} are refused and {total['later']} wait for what is still to come:\n",
        "- *works*: the test beside it sets the field, and fails without it.\n"
        "- *refused*: the field parses; running it is an error with these words.\n"
        "- *later*: what it waits for; setting it today is refused, or changes nothing for the reason given.\n",
        "`tests/test_schema_coverage.py` holds each line of this page.\n",
        table(["file", *STATES], [*rows, ["all", *(str(total[state]) for state in STATES)]]),
    ]
    for file, messages in files.items():
        whole = [message for message in messages if "*" in ledger[message]]
        parts.append(f"## {file}\n")
        parts += [_message(message, ledger[message]) for message in messages if message not in whole]
        if whole:
            rows = [[message, str(sizes[message]), *_entry(ledger[message]["*"])] for message in whole]
            parts.append(f"Messages that nothing reads yet:\n\n{table(['message', 'fields', 'state', 'why'], rows)}")
    parts.append("## Fields of our own\n\nThey are numbered from 1000, or stand in messages of our own.\n")
    parts += [_message(message, entries) for message, entries in own.items()]
    return "\n".join(parts)


def _count(ledger: dict[str, dict[str, dict[str, str]]], sizes: dict[str, int], messages: list[str]) -> Counter[str]:
    states: Counter[str] = Counter()
    for message in messages:
        for name, entry in ledger[message].items():
            states.update(dict.fromkeys(entry, sizes[message] if name == "*" else 1))
    return states


def _message(message: str, entries: dict[str, dict[str, str]]) -> str:
    rows = [[f"`{name}`", *_entry(entry)] for name, entry in entries.items()]
    return f"### {message}\n\n{table(['field', 'state', 'test or reason'], rows)}"


def _entry(entry: dict[str, str]) -> tuple[str, str]:
    ((state, text),) = entry.items()
    file, _, name = text.partition("::")
    return state, f"[`{name}`](../{file})" if state == "works" else text
