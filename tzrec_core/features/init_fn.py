"""The strings that say how an embedding table starts: `nn.init.uniform_,a=-0.01,b=0.01`."""

import ast
import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError, did_you_mean

_PREFIX = "nn.init."
_NAMES = sorted(_PREFIX + name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_"))


def parse_init_fn(spec: str) -> Callable[[Tensor], Tensor]:
    """Turn a config's `init_fn` into a function that fills a tensor in place.

    Args:
        spec: an initialiser of torch.nn.init, then its keyword arguments with literal values, separated by
            commas: `"nn.init.normal_,mean=0.0,std=0.01"`.

    Returns:
        A picklable function of the tensor to fill.

    Raises:
        ConfigError: the name is not an initialiser, or the arguments do not fit it.
    """
    path, _, arguments = spec.partition(",")
    name = path.strip().removeprefix("torch.")
    if name not in _NAMES:
        near = did_you_mean(name, _NAMES) or did_you_mean(f"{_PREFIX}{name}", _NAMES)
        raise ConfigError(
            f"init_fn = {spec!r}: {path.strip()!r} is not an initialiser of torch.{near} "
            f"Initialisers are: {', '.join(_NAMES)}."
        )
    kwargs = _parse_arguments(spec, arguments)
    function = getattr(nn.init, name.removeprefix(_PREFIX))
    parameters = inspect.signature(function).parameters
    for key in kwargs:
        if key not in list(parameters)[1:]:
            raise ConfigError(
                f"init_fn = {spec!r}: torch.{name} has no argument {key!r}.{did_you_mean(key, parameters)} "
                f"Its arguments are: {', '.join(list(parameters)[1:]) or 'none'}."
            )
    missing = [k for k, p in list(parameters.items())[1:] if p.default is p.empty and k not in kwargs]
    if missing:
        raise ConfigError(f"init_fn = {spec!r}: torch.{name} needs {', '.join(f'{k}=...' for k in missing)}.")
    return functools.partial(function, **kwargs)


def _parse_arguments(spec: str, arguments: str) -> dict[str, object]:
    """Read `"a=-0.01,b=0.01"`."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("an argument has no name")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"init_fn = {spec!r}: the arguments {arguments.strip()!r} cannot be read. "
            "Name each one and give it a literal value: 'nn.init.uniform_,a=-0.01,b=0.01'."
        ) from error
