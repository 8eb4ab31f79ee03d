"""The manifest of a DLRM-shaped model, for benchmarks; used with `--plugin`, not installed."""

from tzrec_core.plugins import Group, ModelSpec, Task, hookimpl


@hookimpl
def tzrec_specs() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="dlrm_shaped",
            target="dlrm_shaped_model:DLRMShaped",
            config="dlrm_shaped_config:DLRMShapedConfig",
            task=Task.RANK,
            summary="A bottom net over numbers, dot products of all pairs of vectors, a top net.",
            groups=(Group("dense"), Group("sparse")),
        )
    ]
