"""What tests of models assert, with messages that name the tensor or parameter, the place and both values."""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from tzrec_core.data.batch import Batch
from tzrec_core.models import BaseModel


def assert_same_tensor(got: Tensor, want: Tensor, *, rtol: float, atol: float, what: str) -> None:
    """Two tensors agree in shape and values; the message names the worst element.

    Args:
        got: what came out.
        want: what should have.
        rtol, atol: as in torch.allclose, both 0 for bit by bit; NaN equals NaN.
        what: what the message starts with.
    """
    assert got.shape == want.shape, f"{what}: shape is {tuple(got.shape)}, but should be {tuple(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    if torch.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
        return
    excess = ((got - want).abs() - (atol + rtol * want.abs())).nan_to_num(nan=torch.inf)
    excess[(got == want) | (got.isnan() & want.isnan())] = -torch.inf
    worst = int(excess.flatten().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape)] if got.dim() else []
    raise AssertionError(
        f"{what}: worst at {index}: is {got.flatten()[worst].item():.9g}, but should be "
        f"{want.flatten()[worst].item():.9g} ({int((excess > 0).sum())} of {got.numel()} differ)"
    )


def assert_same_predictions(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], *, rtol: float, atol: float, what: str
) -> None:
    """Two dicts of tensors have the same keys, dtypes and shapes, and agree.

    Args:
        got: what came out.
        want: what should have.
        rtol, atol: as in torch.allclose, both 0 for bit by bit; NaN equals NaN.
        what: what the message starts with.
    """
    assert sorted(got) == sorted(want), f"{what}: keys are {sorted(got)}, but should be {sorted(want)}"
    for name, wanted in want.items():
        found = got[name]
        assert found.dtype == wanted.dtype, f"{what} {name!r}: dtype is {found.dtype}, but should be {wanted.dtype}"
        assert_same_tensor(found, wanted, rtol=rtol, atol=atol, what=f"{what} {name!r}")


def assert_grad_flows(model: BaseModel, batch: Batch, *, except_: Collection[str] = ()) -> None:
    """The losses of a batch have a gradient that is not zero in every parameter that trains.

    Gradients that the parameters hold already are lost.

    Args:
        model: with its losses, see `BaseModel.init_loss`; in the mode that is to be looked at.
        batch: with labels; of enough rows that no ReLU is off for all of them.
        except_: names, or glob patterns such as `*.attention.bias`, of parameters that have no gradient by design;
            a name that all the same has one, or that fits no parameter, is a mistake too.
    """
    model.zero_grad(set_to_none=True)
    total_loss = torch.stack([loss.float() for loss in model.loss(model.predict(batch), batch).values()]).sum()
    if total_loss.requires_grad:
        total_loss.backward()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum()]
    model.zero_grad(set_to_none=True)
    unexpected = [name for name in without if not any(fnmatchcase(name, pattern) for pattern in except_)]
    assert not unexpected, (
        f"no gradient reaches {', '.join(unexpected)}: what is made of it does not reach the losses, or is detached"
    )
    needless = [pattern for pattern in except_ if not any(fnmatchcase(name, pattern) for name in without)]
    assert not needless, f"{', '.join(needless)} should have no gradient, but every parameter of that name has one"
