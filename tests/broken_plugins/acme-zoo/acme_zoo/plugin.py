"""The manifest."""

from tzrec_core.plugins import Group, ModelSpec, Task, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    """Offer a multi-task and a matching model."""
    return [
        ModelSpec(
            name="two_tasks",
            target="acme_zoo.model:TwoTasks",
            config="acme_zoo.config_pb2:TwoTasks",
            task=Task.MULTITASK,
            summary="One shared layer and a tower per task.",
            groups=(Group("*"),),
        ),
        ModelSpec(
            name="two_towers",
            target="acme_zoo.model:TwoTowers",
            config="acme_zoo.config_pb2:TwoTowers",
            task=Task.MATCH,
            summary="Two towers that meet in a dot product.",
            groups=(
                Group(from_field="user_tower.input"),
                Group(from_field="item_tower.input", types=("DEEP", "SEQUENCE")),
                Group(from_field="side_towers.input", required=False),
            ),
        ),
    ]
