"""The Python API as a page, read from the source: what each `__all__` holds, with signatures and docstrings."""

import logging
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

from pages.markdown import ROOT, anchor, docstring, generated

EXAMPLES = Path(__file__).with_name("api_examples.md")
# The order to read them in; others that have an `__all__` follow.
MODULES = (
    "api", "plugins", "config", "features", "data", "modules", "models", "losses", "metrics", "engine.callbacks",
    "testing", "errors",
)  # fmt: skip
# Stable for subclasses of models: what has no docstring, and names that begin with an underscore.
STABLE = {
    "_base_model_config": "the whole ModelConfig.",
    "_model_config": "the model's own message.",
    "_features": "features of the whole config.",
    "_feature_groups": "the config's feature groups.",
    "_labels": "names of the labels.",
    "_num_class": "width of the output.",
    "_label_name": "the first label.",
    "_loss_modules": "losses by name.",
    "_metric_modules": "metrics by name.",
    "_train_metric_modules": "decayed train metrics by name.",
    "embedding_group": "the EmbeddingGroup that `init_input` builds.",
    "_output_to_prediction": "",
    "_init_loss_impl": "Builds the module of one loss.",
    "_loss_impl": "Computes one loss.",
    "_init_metric_impl": "Builds the module of one metric.",
    "_update_metric_impl": "Adds a batch to one metric.",
}
_WIDTH = 110
_LINE, _PARAGRAPH = "\n", "\n\n"


def page() -> str:
    """api.md."""
    modules = {module.path: module for module in _modules()}
    shown: dict[str, str] = {}
    parts = [
        generated("the docstrings of tzrec_core and scripts/pages/api_examples.md"),
        "# The Python API\n",
        "Four examples, and then each module:\n",
        "".join(
            f"- [`{path}`](#{anchor(path)}): {_doc(module).partition(_PARAGRAPH)[0]}\n"
            for path, module in modules.items()
        ),
        EXAMPLES.read_text(encoding="utf-8"),
    ]
    for path, module in modules.items():
        parts += [f"## {path}\n", f"{_doc(module)}\n"]
        for name in _public_names(module):
            found = _definition(module, name)
            where = shown.setdefault(found.path, path)
            again = f"### {name}\n\nThat of [`{where}`](#{anchor(name)}).\n"
            parts.append(_symbol(name, found) if where == path else again)
    return "\n".join(parts)


@cache
def core() -> griffe.Module:
    """The source of tzrec_core, of which nothing is imported."""
    logging.getLogger("griffe").setLevel(logging.CRITICAL)  # two names that are one, which it can do without
    found = griffe.load("tzrec_core", search_paths=[ROOT], allow_inspection=False)
    assert isinstance(found, griffe.Module)
    return found


def _modules() -> list[griffe.Module]:
    first = [core()[name] for name in MODULES]
    others = [module for module in _inside(core()) if module.exports is not None and module not in first]
    return [*first, *sorted(others, key=lambda module: module.path)]


def _inside(module: griffe.Module) -> Iterator[griffe.Module]:
    for inner in module.modules.values():
        if not inner.is_alias:
            yield inner
            yield from _inside(inner)


def _public_names(module: griffe.Module) -> list[str]:
    """The names in a module's `__all__`, or without one all that it defines and that have no underscore."""
    if module.exports is not None:
        return [str(name) for name in module.exports]
    return [n for n, o in module.members.items() if not n.startswith("_") and not o.is_alias and not o.is_attribute]


def _definition(module: griffe.Module, name: str) -> griffe.Object:
    found = module[name]
    if found.is_module:  # a function whose module has its name
        found = found[name]
    return found.final_target if found.is_alias else found


def is_for_subclasses(member: griffe.Object) -> bool:
    """Whether a method or property of a base class is for subclasses to write."""
    return "abstractmethod" in member.labels or member.source.rstrip().endswith("raise NotImplementedError")


def _doc(found: griffe.Object) -> str:
    return docstring(found.docstring.value) if found.docstring else ""


def _symbol(name: str, found: griffe.Object) -> str:
    if found.is_attribute:
        return f"### {name}\n\n{_code(found.source)}"
    head = "class" if found.is_class else "def"
    parts = [f"### {name}\n", _code(f"{head} {_signature(found)}")]
    if found.is_class and found.bases:
        parts.append(f"Bases: {', '.join(f'`{base}`' for base in found.bases)}.\n")
    parts.append(f"{_doc(found)}\n")
    if found.is_class and (members := _members(found)):
        parts += ["Members:\n", "".join(map(_member, members))]
    return "\n".join(part for part in parts if part.strip())


def _members(found: griffe.Class) -> list[griffe.Object]:
    """The methods and properties of a class, and its values if it is an Enum: what is public, or in `STABLE`."""
    is_enum = any(str(base).endswith("Enum") for base in found.bases)
    return [
        member
        for name, member in found.members.items()
        if name in STABLE or (not name.startswith("_") and (is_enum or not _is_plain_attribute(member)))
    ]


def _is_plain_attribute(member: griffe.Object) -> bool:
    return member.is_attribute and "property" not in member.labels


def _member(member: griffe.Object) -> str:
    """An item of a list: the signature of a method, the type of a property, the value of an Enum's member."""
    says = _doc(member) or STABLE.get(member.name, "")
    if is_for_subclasses(member):
        says += " **For subclasses to write.**"
    if member.is_function:
        bound = [label for label in ("classmethod", "staticmethod") if label in member.labels]
        code = " ".join([*bound, member.signature()])
    elif _is_plain_attribute(member) and member.name not in STABLE:
        code = f"{member.name} = {member.value}"
    else:
        code = f"{member.name}: {member.annotation}" if member.annotation else member.name
    return f"- `{code}`{': ' if says else ''}{textwrap.indent(says, '  ').lstrip()}\n"


def _signature(found: griffe.Class | griffe.Function) -> str:
    """A signature, in one line or with a line per argument; of a class that takes none, its name."""
    parts = list(_arguments(found))
    if found.is_class and not parts:
        return found.name
    returns = f" -> {found.returns}" if found.is_function and found.returns else ""
    line = f"{found.name}({', '.join(parts)}){returns}"
    if len(line) <= _WIDTH:
        return line
    return f"{found.name}(\n{textwrap.indent(''.join(f'{part},{_LINE}' for part in parts), '    ')}){returns}"


def _arguments(found: griffe.Class | griffe.Function) -> Iterator[str]:
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    by_keyword = False
    for parameter in found.parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not by_keyword:
            yield "*"
        by_keyword |= parameter.kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        is_optional = parameter.default is not None and parameter.kind not in stars
        default = f" = {parameter.default}" if is_optional else ""
        yield f"{stars.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}{default}"


def _code(text: str) -> str:
    return f"```py\n{text}\n```\n"
