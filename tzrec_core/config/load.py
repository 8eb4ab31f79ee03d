"""From a path or a text to a checked config."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tzrec_core.config.assemble import assembled
from tzrec_core.config.edit import apply_overrides
from tzrec_core.config.json_text import parse_json
from tzrec_core.config.required import folded, missing_fields
from tzrec_core.config.text import parse_text
from tzrec_core.config.validate import find_mistakes
from tzrec_core.errors import ConfigError, PluginError, did_you_mean


def load_config(path: str | Path, *, overrides: Sequence[str] = (), validate: bool = False) -> Any:
    """Read a pipeline config, text or JSON (by its content), from a file.

    Args:
        path: the file.
        overrides: changes, see `apply_overrides`.
        validate: also look for mistakes that the schema cannot see, see `find_mistakes`.

    Returns:
        the EasyRecConfig message, with `model_config`'s oneof assembled from the installed plugins.

    Raises:
        ConfigError: the file cannot be read, or all of its mistakes at once.
        PluginError: as `parse_config`.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        near = did_you_mean(file.name, beside)
        raise ConfigError(f"config {path} does not exist.{near}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config {path} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from None
    return parse_config(text, overrides=overrides, validate=validate, source=str(path))


def parse_config(
    text: str,
    partial: bool = False,
    *,
    overrides: Sequence[str] = (),
    validate: bool = False,
    source: str = "",
) -> Any:
    """Parse a pipeline config from protobuf text or JSON.

    Args:
        text: the config; JSON when it starts with `{`.
        partial: allow missing required fields, but those of a plugin's settings in a slot.
        overrides: changes, see `apply_overrides`.
        validate: also look for mistakes that the schema cannot see.
        source: name of the text in messages, such as its path.

    Returns:
        the EasyRecConfig message.

    Raises:
        ConfigError: all of the text's mistakes at once, each with line and column or path.
        PluginError: the one mistake is that a plugin which the config uses is not usable; carries the cause.
    """
    schema = assembled()
    text = text.removeprefix("\ufeff")
    if not text.isascii() and (half := re.search(r"[\ud800-\udfff]", text)):
        raise ConfigError(f"{half[0]!r} is half a character; write the text as UTF-8", title=source)
    try:
        parsed = (parse_json if text.lstrip().startswith("{") else parse_text)(text, schema)
    except RecursionError:
        raise ConfigError("messages are nested too deeply for a config", title=source) from None
    config: Any = parsed.message
    problems = parsed.problems
    no_model = any(path.rpartition(".")[0] == "model_config" for path in parsed.set_aside)
    if parsed.complete:
        try:
            apply_overrides(config, overrides)
        except ConfigError as error:
            problems += error.problems
        missing = parsed.missing if partial else [*missing_fields(config), *parsed.missing]
        problems += _report_missing(path for path in missing if path not in parsed.set_aside)
        if validate or problems:
            problems += find_mistakes(config, partial=partial or no_model)
    if not problems:
        return config
    refusal = ConfigError(problems, title=source)
    if parsed.plugin_error is None:
        raise refusal
    if parsed.only_plugins and len(problems) == 1:
        raise PluginError(str(refusal)) from parsed.plugin_error.__cause__
    raise refusal from parsed.plugin_error.__cause__


def _report_missing(found: Iterable[str]) -> list[str]:
    paths = list(found)
    if not paths:
        return []
    many = "s are" if len(paths) > 1 else " is"
    return [f"{len(paths)} required field{many} missing: {folded(paths)}"]
