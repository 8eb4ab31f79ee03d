"""Each rule about two ranks, broken on a copy of tzrec-deepfm, makes the check that names it fail, and no other."""

import pytest
from breakages import broken_copy, failures, outcome

from tzrec_core.testing import rank_checks
from tzrec_core.testing.check import Outcome, checks
from tzrec_core.testing.two_ranks import on_two_ranks

MODEL = "tzrec_deepfm/model.py"
MANIFEST = "tzrec_deepfm/plugin.py"
END = "return self._output_to_prediction(output)"
PREDICT = "    def predict(self"
NUM_RANKS = "(torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)"


def claims(*traits):
    """A change of the manifest: the model claims these traits and no other."""
    listed = ", ".join(f"Trait.{trait}" for trait in traits)
    return {MANIFEST: [("traits=frozenset(", f"traits=frozenset({{{listed}}}) if True else frozenset(")]}


def before_end(*lines):
    """A change of the model: lines of code that change `output` before it becomes predictions."""
    return {MODEL: [(END, "\n        ".join([*lines, END]))]}


# check -> what breaks it, words of its message
BREAKAGES = {
    "two_ranks_step": (
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
    "two_ranks_predict": (
        {**claims("SHARDED"), **before_end(f"output = output / {NUM_RANKS}")},
        "on rank 0 of 2: 'logits': worst at [",
    ),
    "sharded": (
        {
            **claims("ROWWISE_LOSS", "SHARDED"),
            **before_end(
                'tables = self.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags',
                'output = output + tables["gender_emb"].weight.detach().sum()',
            ),
        },
        "on rank ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", BREAKAGES)
def test_the_check_that_names_a_broken_rule_fails_and_no_other(check, tmp_path):
    changes, words = BREAKAGES[check]
    with broken_copy(tmp_path, changes) as subject:
        found = failures(subject, "model", slow=True)
    assert list(found) == [check]
    assert words in found[check]


def test_every_check_has_a_breakage():
    found = {check.name for check in checks("model", slow=True) if check.run.__module__ == rank_checks.__name__}
    assert found == set(BREAKAGES)


@pytest.mark.slow
def test_a_table_that_learns_otherwise_in_shards_is_named(tmp_path):
    changes = {
        **claims("SHARDED"),
        MODEL: [
            (
                PREDICT,
                "    def sparse_parameters(self):\n"
                "        trainable, frozen = super().sparse_parameters()\n"
                f"        return trainable[1:], [trainable[0], *frozen]\n\n{PREDICT}",
            )
        ],
    }
    with broken_copy(tmp_path, changes) as subject:
        found, message = outcome(subject, "sharded")
    assert found is Outcome.FAILED
    assert "after a step with sharded tables: 'model.embedding_group" in message
    assert "user_id_emb_wide.weight'" in message


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
    ],
)
def test_a_model_is_held_to_what_it_claims_only(traits, check, reason, tmp_path):
    with broken_copy(tmp_path, claims(*traits)) as subject:
        found, message = outcome(subject, check)
    assert found is Outcome.NOT_CLAIMED
    assert reason in message
