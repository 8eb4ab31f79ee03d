"""Each rule about parts of a batch, broken on a copy of tzrec-deepfm, makes the check that names it fail.

That no other check fails is tested in test_breakages.py.
"""

import pytest
from breakages import Breakage, broken_copy, claims, outcome

from tzrec_core.testing.check import Outcome
from tzrec_core.testing.two_ranks import on_two_ranks

MODEL = "tzrec_deepfm/model.py"
END = "return self._output_to_prediction(output)"
PREDICT = "    def predict(self"
NUM_RANKS = "(torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)"


def before_end(*lines):
    """A change of the model: lines of code that change `output` before it becomes predictions."""
    return {MODEL: [(END, "\n        ".join([*lines, END]))]}


# check -> what breaks it; the first of each is also run against all other checks
BREAKAGES = {
    "batch_stats": [
        Breakage(claims("BATCH_STATS"), "no prediction of a row depends on the rows beside it; leave the claim out"),
    ],
    "two_ranks_step": [
        Breakage(
            {
                **claims("ROWWISE_LOSS", "SHARDED"),
                MODEL: [
                    (
                        PREDICT,
                        "    def loss(self, predictions, batch):\n"
                        "        losses = super().loss(predictions, batch)\n"
                        f"        return {{name: value / {NUM_RANKS} for name, value in losses.items()}}\n\n{PREDICT}",
                    )
                ],
            },
            "after a step of two ranks, on rank 0: 'model.embedding_group.",
        ),
    ],
    "two_ranks_predict": [
        Breakage(
            {**claims("SHARDED"), **before_end(f"output = output / {NUM_RANKS}")},
            "on rank 0 of 2: 'logits': worst at [",
        ),
    ],
    "sharded": [
        Breakage(
            {
                **claims("ROWWISE_LOSS", "SHARDED"),
                **before_end(
                    'tables = self.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags',
                    'output = output + tables["gender_emb"].weight.detach().sum()',
                ),
            },
            "with sharded tables: 'logits': worst at [",
        ),
        Breakage(
            {
                **claims("SHARDED"),
                MODEL: [
                    (
                        PREDICT,
                        "    def sparse_parameters(self):\n"
                        "        trainable, frozen = super().sparse_parameters()\n"
                        f"        return trainable[1:], [trainable[0], *frozen]\n\n{PREDICT}",
                    )
                ],
            },
            "after a step with sharded tables: 'model.embedding_group",
        ),
    ],
}
CASES = [
    pytest.param(name, b, id=f"{name}-{i}", marks=[] if name == "batch_stats" else [pytest.mark.slow])
    for name, several in BREAKAGES.items()
    for i, b in enumerate(several)
]


@pytest.mark.parametrize(("check", "breakage"), CASES)
def test_the_check_that_names_a_broken_rule_fails_and_says_what_is_wrong(check, breakage, tmp_path):
    with broken_copy(tmp_path, breakage.changes) as subject:
        found, message = outcome(subject, check)
    assert found is Outcome.FAILED
    assert breakage.words in message


@pytest.mark.slow
def test_an_error_on_one_rank_is_told_and_ends_the_other(tmp_path):
    changes = before_end(
        "if torch.distributed.is_initialized():",
        "    if torch.distributed.get_rank() == 1:",
        "        raise ValueError('not on this rank')",
        "    torch.distributed.barrier()",
    )
    with broken_copy(tmp_path, {**claims(), **changes}) as subject:
        found, message = outcome(subject, "two_ranks_predict")
    assert found is Outcome.FAILED
    assert message.startswith("on rank 1 of 2: ValueError: not on this rank\n  at tzrec_c")


def test_ranks_that_do_not_end_are_ended_and_said_to_be_late(tmp_path):
    with broken_copy(tmp_path) as subject, pytest.raises(AssertionError) as error:
        on_two_ranks(subject.models[0], print, timeout_s=0.5)
    assert str(error.value).startswith("rank 0 and 1 of 2 did not end within 0.5 s. A rank waits for ever where")


@pytest.mark.parametrize(
    ("traits", "check", "reason"),
    [
        (["ROWWISE_LOSS"], "two_ranks_predict", "two_ranks_step proves more of a model that claims Trait.ROWWISE_LOSS"),
        (["ROWWISE_LOSS", "BATCH_STATS"], "two_ranks_step", "the spec lists Trait.BATCH_STATS"),
        ([], "two_ranks_step", "the spec does not list Trait.ROWWISE_LOSS"),
        ([], "sharded", "the spec does not list Trait.SHARDED"),
        ([], "batch_stats", "the spec does not list Trait.BATCH_STATS"),
    ],
)
def test_a_model_is_held_to_what_it_claims_only(traits, check, reason, tmp_path):
    with broken_copy(tmp_path, claims(*traits)) as subject:
        found, message = outcome(subject, check)
    assert found is Outcome.NOT_CLAIMED
    assert reason in message
