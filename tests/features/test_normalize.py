import math

import numpy as np
import pytest

from tzrec_core.errors import ConfigError
from tzrec_core.features.normalize import parse_normalizer


def _apply(text, *numbers):
    return parse_normalizer(text)(np.array(numbers, np.float64)).tolist()


def test_log10_takes_the_default_at_and_below_the_threshold():
    assert _apply("method=log10,threshold=0.1,default=-7", 100.0, 0.1, 0.0, -3.0) == [2.0, -7.0, -7.0, -7.0]


def test_log10_of_zero_is_minus_ten_by_default():
    assert _apply("method=log10", 0.0, 10.0) == [-10.0, 1.0]


def test_zscore_shifts_by_the_mean_and_scales_by_the_deviation():
    assert _apply("method=zscore,mean=1.0,standard_deviation=10.0", 1.0, 11.0) == [0.0, 1.0]


def test_minmax_maps_the_range_to_0_and_1():
    assert _apply("method=minmax,min=2,max=4", 2.0, 3.0, 4.0, 6.0) == [0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("expression", "by_hand"),
    [
        ("sign(x)", lambda x: math.copysign(1, x)),
        ("x", lambda x: x),
        ("3", lambda x: 3.0),
        ("-x + 2*x/4 - 1", lambda x: -x + x / 2 - 1),
        ("pow(abs(x), 0.5)", lambda x: math.sqrt(abs(x))),
        ("min(max(x, 0), 1)", lambda x: min(max(x, 0.0), 1.0)),
        ("log1p(x**2)", lambda x: math.log1p(x * x)),
    ],
)
def test_an_expression_is_arithmetic_over_x(expression, by_hand):
    numbers = [-2.5, 0.25, 3.0]
    assert _apply(f"method=expression,expr={expression}", *numbers) == pytest.approx([by_hand(x) for x in numbers])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("log10", "method=log10"),
        ("method=robust", "'method=robust' is not a normalizer"),
        ("method=zscore,mean=1", "zscore needs standard_deviation"),
        ("method=zscore,mean=1,std=2", "zscore has no 'std'"),
        ("method=minmax,min=a,max=2", "min is 'a', not a number"),
        ("method=minmax,min=2,max=2", "divides by zero"),
        ("method=expression,expr=y+1", "'y' is not understood"),
        ("method=expression,expr=__import__('os')", "not understood"),
        ("method=expression,expr=x.real", "not understood"),
        ("method=expression,expr=x+", "not an expression"),
        ("method=expression,expr=", "not an expression"),
    ],
)
def test_a_normalizer_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_normalizer(text)
    assert words in str(caught.value)
