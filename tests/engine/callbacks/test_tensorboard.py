import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tzrec_core.config.validate import SUMMARIES
from tzrec_core.engine.callbacks.tensorboard import TensorBoard

VALUES = {"loss": 0.5, "binary_cross_entropy": 0.5, "auc": 0.7, "samples_per_second": 10.0}
DENSE = ["hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias"]


def events(run, split="train"):
    found = EventAccumulator(str(run.model_dir / "tensorboard" / split))
    found.Reload()
    return found


def scalars(found, tag):
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def write(run, output, *summaries):
    """A log step in which every parameter has a gradient of twos."""
    board = TensorBoard(summaries)
    board.on_train_start(run)
    for parameter in run.model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    board.on_before_step(run)
    for parameter in run.model.parameters():
        parameter.grad.zero_()  # as a clipped or freed gradient is no longer what it was
    run.step += 1
    run.output = output
    board.on_log(run, VALUES)
    board.on_train_end(run)
    return events(run)


def test_by_default_loss_learning_rates_and_metrics_are_shown(make_run, make_output):
    run = make_run(step=4)
    found = write(run, make_output(run))
    assert set(found.Tags()["scalars"]) == {*VALUES, "learning_rate/sparse", "learning_rate/dense"}
    assert found.Tags()["histograms"] == []
    assert scalars(found, "loss") == [(5, 0.5)]
    assert scalars(found, "learning_rate/sparse") == [(5, 0.02)]


def test_metrics_and_speed_are_shown_whatever_is_asked_for(make_run, make_output):
    run = make_run()
    found = write(run, make_output(run), "learning_rate")
    assert set(found.Tags()["scalars"]) == {
        "auc", "samples_per_second", "learning_rate/sparse", "learning_rate/dense",
    }  # fmt: skip


def test_parameters_are_histograms_of_what_is_not_in_a_table(make_run, make_output):
    run = make_run()
    found = write(run, make_output(run), "parameter")
    assert sorted(found.Tags()["histograms"]) == sorted(f"parameter/{name}" for name in DENSE)
    (event,) = found.Histograms("parameter/hidden.weight")
    weight = run.model.hidden.weight.detach()
    assert (event.step, event.histogram_value.num) == (1, weight.numel())
    assert event.histogram_value.min == pytest.approx(weight.min().item())
    assert event.histogram_value.sum == pytest.approx(weight.sum().item(), abs=1e-5)


def test_gradients_are_those_before_the_step(make_run, make_output):
    run = make_run()
    found = write(run, make_output(run), "gradient", "gradient_norm", "global_gradient_norm")
    assert sorted(found.Tags()["histograms"]) == sorted(f"gradient/{name}" for name in DENSE)
    (event,) = found.Histograms("gradient/norm.bias")
    assert (event.histogram_value.min, event.histogram_value.num) == (2.0, 8)
    # n twos have the norm 2 sqrt(n)
    assert scalars(found, "gradient_norm/norm.bias") == [(1, 2 * math.sqrt(8))]
    num_dense = sum(dict(run.model.named_parameters())[name].numel() for name in DENSE)
    assert scalars(found, "global_gradient_norm") == [(1, pytest.approx(2 * math.sqrt(num_dense)))]


def test_an_overflown_gradient_does_not_stop_the_run(make_run):
    run, board = make_run(), TensorBoard(["gradient", "gradient_norm"])
    board.on_train_start(run)
    run.model.norm.bias.grad = torch.full((8,), math.inf)
    run.model.norm.weight.grad = torch.tensor([1.0] * 7 + [math.inf])
    board.on_before_step(run)
    board.on_log(run, {})
    board.on_train_end(run)
    found = events(run)
    assert found.Tags()["histograms"] == ["gradient/norm.weight"]
    assert found.Scalars("gradient_norm/norm.bias")[0].value == math.inf


def test_evaluations_go_to_their_own_split(make_run):
    run, board = make_run(step=3), TensorBoard(["gradient"])
    board.on_train_start(run)
    board.on_evaluate(run, {"auc": 0.75, "binary_cross_entropy": 0.5})
    found = events(run, "eval")  # readable before the end
    assert scalars(found, "auc") == [(3, 0.75)]
    assert scalars(found, "binary_cross_entropy") == [(3, 0.5)]
    board.on_error(run, ValueError())


def test_a_continued_run_replaces_the_points_of_steps_that_come_again(make_run, make_output):
    for first, loss in ((0, 1.0), (2, 2.0)):  # killed after step 4, continued from step 2
        run, board = make_run(step=first), TensorBoard()
        board.on_train_start(run)
        for step in range(first + 1, 5):
            run.step = step
            board.on_log(run, {"loss": loss})
        board.on_error(run, KeyboardInterrupt())
    assert scalars(events(run), "loss") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_other_ranks_write_nothing(make_run, make_output):
    run = make_run(rank=1)
    board = TensorBoard(SUMMARIES)
    board.on_train_start(run)
    board.on_before_step(run)
    board.on_log(run, VALUES)
    board.on_evaluate(run, {"auc": 0.5})
    board.on_train_end(run)
    assert not run.model_dir.exists()
