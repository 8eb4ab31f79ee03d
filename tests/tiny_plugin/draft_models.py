from dataclasses import dataclass

import torch
from torch import nn

from tzrec_core.models import MultiTaskRank, RankModel
from tzrec_core.protos.tower_pb2 import TaskTower


@dataclass(frozen=True)
class Plain:
    """No settings."""


@dataclass(frozen=True)
class Tower:
    input: str


@dataclass(frozen=True)
class Towers:
    user_tower: Tower | None = None
    others: list[Tower] | None = None


@dataclass(frozen=True)
class Fussy:
    width: int


@dataclass(frozen=True)
class Tasks:
    task_towers: tuple[TaskTower, ...] = ()


class AnyGroups(RankModel):
    """A linear layer on all that the groups give; sequences are summed over their steps."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        width = 0
        for group in self._base_model_config.feature_groups:
            name = group.group_name
            parts = [name] if group.group_type < 2 else [f"{name}.query", f"{name}.sequence"]
            width += sum(self.embedding_group.group_total_dim(part) for part in parts)
        self.output = nn.Linear(width, self._num_class)

    def predict(self, batch):
        grouped = self.build_input(batch)
        rows = [self._per_row(key, value, grouped) for key, value in grouped.items() if "sequence_length" not in key]
        return self._output_to_prediction(self.output(torch.cat(rows, dim=1)))

    def _per_row(self, key, value, grouped):
        if not key.endswith(".sequence"):
            return value
        if value.dim() == 3:
            return value.sum(1)
        lengths = grouped[f"{key}_length"]
        return torch.zeros(len(lengths), value.shape[1]).index_add(
            0, torch.repeat_interleave(torch.arange(len(lengths)), lengths), value
        )


class AnyTasks(MultiTaskRank):
    """A tower for each task on the only group."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        (self.group,) = self.embedding_group.group_names()
        self.init_towers(self.embedding_group.group_total_dim(self.group))

    def predict(self, batch):
        rows = self.build_input(batch)[self.group]
        names = [tower.tower_name for tower in self._task_tower_cfgs]
        return self._multi_task_output_to_prediction({n: tower(rows) for n, tower in zip(names, self._task_tower)})
