"""Configs: reading, assembling with the installed models, changing and checking. Never imports torch."""

from tzrec_core.config.assemble import model_name, model_offer, spec_of
from tzrec_core.config.defaults import config_to_kwargs
from tzrec_core.config.edit import apply_overrides
from tzrec_core.config.features import (
    BASE_DATA_GROUP,
    ENCODINGS,
    NEG_DATA_GROUP,
    FeatureEntry,
    data_group,
    feature_entries,
    fg_mode,
    sampled_columns,
)
from tzrec_core.config.groups import data_group_problems, member_problems
from tzrec_core.config.load import load_config, parse_config
from tzrec_core.config.ranges import range_mistakes
from tzrec_core.config.tasks import reference_problems, task_problems
from tzrec_core.config.unsupported import reader_problem, refuse_unsupported, refused_settings
from tzrec_core.config.used import used_plugins
from tzrec_core.config.validate import find_mistakes, negatives_problem, validate

__all__ = [
    "BASE_DATA_GROUP",
    "ENCODINGS",
    "NEG_DATA_GROUP",
    "FeatureEntry",
    "apply_overrides",
    "config_to_kwargs",
    "data_group",
    "data_group_problems",
    "feature_entries",
    "fg_mode",
    "find_mistakes",
    "load_config",
    "member_problems",
    "model_name",
    "model_offer",
    "negatives_problem",
    "parse_config",
    "range_mistakes",
    "reader_problem",
    "reference_problems",
    "refuse_unsupported",
    "refused_settings",
    "sampled_columns",
    "spec_of",
    "task_problems",
    "used_plugins",
    "validate",
]
