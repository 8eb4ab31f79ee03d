"""Normalizers of numbers: `method=log10,threshold=1e-10,default=-10` and its siblings."""

import ast
from collections.abc import Callable
from functools import partial

import numpy as np

from tzrec_core.errors import ConfigError, did_you_mean

Normalizer = Callable[[np.ndarray], np.ndarray]

_PARAMETERS = {
    "log10": {"threshold": 1e-10, "default": -10.0},
    "zscore": {"mean": None, "standard_deviation": None},
    "minmax": {"min": None, "max": None},
}
_FUNCTIONS = {
    **{
        name: getattr(np, name)
        for name in ("abs", "sign", "sqrt", "exp", "log", "log2", "log10", "log1p", "tanh", "floor")
    },
    **{name: getattr(np, name) for name in ("ceil", "sin", "cos")},
    "round": np.round,
    "pow": np.power,
    "min": np.minimum,
    "max": np.maximum,
}
_OPERATORS = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}


def parse_normalizer(text: str) -> Normalizer:
    """The function that a normalizer string describes; float64 in and out.

    `method=log10,threshold=1e-10,default=-10`: log10(x) where x > threshold, else default.
    `method=zscore,mean=0.0,standard_deviation=10.0`: (x - mean) / standard_deviation.
    `method=minmax,min=2.1,max=2.2`: (x - min) / (max - min).
    `method=expression,expr=sign(x)`: arithmetic over x with + - * / ** and abs, sign, sqrt, exp, log, log2,
    log10, log1p, tanh, floor, ceil, sin, cos, round, pow, min, max.

    Raises:
        ConfigError: the method or a parameter is unknown, missing or not a number.
    """
    method, _, rest = text.partition(",")
    key, _, method = method.partition("=")
    method = method.strip()
    if key.strip() != "method" or method not in (*_PARAMETERS, "expression"):
        known = ", ".join(f"method={name}" for name in (*_PARAMETERS, "expression"))
        raise ConfigError(
            f"{text!r} is not a normalizer. It starts with one of {known}.{did_you_mean(method, _PARAMETERS)}"
        )
    if method == "expression":
        return _expression(text, rest.partition("=")[2])
    values = _parameters(text, method, rest)
    if method == "log10":
        return partial(_log10, threshold=values["threshold"], default=values["default"])
    shift, scale = (
        (values["mean"], values["standard_deviation"])
        if method == "zscore"
        else (values["min"], values["max"] - values["min"])
    )
    if not scale:
        raise ConfigError(f"{text!r} divides by zero.")
    return partial(_rescale, shift=shift, scale=scale)


def _log10(x: np.ndarray, *, threshold: float, default: float) -> np.ndarray:
    return np.where(x > threshold, np.log10(np.maximum(x, 1e-300)), default)


def _rescale(x: np.ndarray, *, shift: float, scale: float) -> np.ndarray:
    return (x - shift) / scale


def _parameters(text: str, method: str, rest: str) -> dict[str, float]:
    values = dict(_PARAMETERS[method])
    for part in filter(None, rest.split(",")):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in values:
            raise ConfigError(
                f"{text!r}: {method} has no {name!r}, only {', '.join(values)}.{did_you_mean(name, values)}"
            )
        try:
            values[name] = float(number)
        except ValueError:
            raise ConfigError(f"{text!r}: {name} is {number!r}, not a number.") from None
    for name, value in values.items():
        if value is None:
            raise ConfigError(f"{text!r}: {method} needs {name}.")
    return values


def _expression(text: str, expr: str) -> Normalizer:
    try:
        tree = ast.parse(expr.strip(), mode="eval").body
        _evaluate(tree, np.ones(1))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{text!r}: {expr!r} is not an expression of x and {', '.join(_FUNCTIONS)} ({error})."
        ) from None
    return partial(_express, expr=expr.strip())


def _express(x: np.ndarray, *, expr: str) -> np.ndarray:
    return np.broadcast_to(_evaluate(ast.parse(expr, mode="eval").body, x), x.shape)


def _evaluate(node: ast.AST, x: np.ndarray) -> np.ndarray:
    match node:
        case ast.Name(id="x"):
            return x
        case ast.Constant(value=int() | float() as value):
            return np.float64(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, x)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, x), _evaluate(right, x))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(arg, x) for arg in args))
    raise ValueError(f"{ast.unparse(node)!r} is not understood")
