"""Two small models with several tasks, and the plugin that offers them.

conftest.py makes it importable as `tzrec_toy_tasks`. Names and settings of MMoE are those of TorchEasyRec.
"""

from dataclasses import dataclass

import torch
from torch import nn

from tzrec_core.config import config_to_kwargs
from tzrec_core.models import MultiTaskRank
from tzrec_core.modules import MLP
from tzrec_core.plugins import Group, ModelSpec, Plugin, Task
from tzrec_core.protos import module_pb2, tower_pb2


@dataclass(frozen=True)
class MMoESettings:
    expert_mlp: module_pb2.MLP
    num_expert: int = 3
    task_towers: tuple[tower_pb2.TaskTower, ...] = ()


@dataclass(frozen=True)
class PlainSettings:
    task_towers: tuple[tower_pb2.TaskTower, ...] = ()


class Experts(nn.Module):
    """For each task, a mixture of experts by a gate of its own."""

    def __init__(self, in_features, mlp, num_expert, num_task):
        super().__init__()
        self.expert_mlps = nn.ModuleList(MLP(in_features, **mlp) for _ in range(num_expert))
        self.gate_finals = nn.ModuleList(nn.Linear(in_features, num_expert) for _ in range(num_task))

    def forward(self, features):
        experts = torch.stack([expert(features) for expert in self.expert_mlps], dim=1)
        return [(torch.softmax(gate(features), dim=1).unsqueeze(2) * experts).sum(1) for gate in self.gate_finals]


class MMoE(MultiTaskRank):
    """Multi-gate mixture of experts."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        settings = self._model_config
        (self.group_name,) = self.embedding_group.group_names()
        width = self.embedding_group.group_total_dim(self.group_name)
        mlp = config_to_kwargs(settings.expert_mlp)
        self.mmoe = Experts(width, mlp, settings.num_expert, len(self._task_tower_cfgs))
        self.init_towers(settings.expert_mlp.hidden_units[-1])

    def predict(self, batch):
        inputs = self.mmoe(self.build_input(batch)[self.group_name])
        names = [tower.tower_name for tower in self._task_tower_cfgs]
        outputs = {name: tower(x) for name, tower, x in zip(names, self._task_tower, inputs)}
        return self._multi_task_output_to_prediction(outputs)


class Plain(MultiTaskRank):
    """Towers on the embeddings themselves."""

    def __init__(self, model_config, features, labels, sample_weights=None, **kwargs):
        super().__init__(model_config, features, labels, sample_weights, **kwargs)
        self.init_input()
        self.init_towers(self.embedding_group.group_total_dim("all"))

    def predict(self, batch):
        features = self.build_input(batch)["all"]
        names = [tower.tower_name for tower in self._task_tower_cfgs]
        return self._multi_task_output_to_prediction(
            {name: tower(features) for name, tower in zip(names, self._task_tower)}
        )


def spec(name, target, settings):
    return ModelSpec(
        name=name,
        target=f"tzrec_toy_tasks:{target}",
        config=f"tzrec_toy_tasks:{settings}",
        task=Task.MULTITASK,
        summary="Several tasks.",
        groups=(Group("*"),),
    )


PLUGIN = Plugin(
    name="toy_tasks",
    distribution="tzrec-toy-tasks",
    version="0.1.0",
    specs=[spec("mmoe", "MMoE", "MMoESettings"), spec("plain", "Plain", "PlainSettings")],
)
