import pytest

HUGE = ["--set", "feature_configs[0].id_feature.num_buckets=2000000000"]  # of 4 floats, with Adam 89.4 GiB


def test_plan_prints_the_tables_and_how_evenly_memory_is_used(tiny, config_file):
    result = tiny("plan", str(config_file), "--world-size", "2", "--hbm", "1GB")
    assert result.code == 0
    assert "2 cuda processes on 1 machine\n" in result.out
    lines = [line.split() for line in result.out.splitlines()]
    assert ["table", "kind", "rows", "dim", "MiB", "sharding", "kernel", "ranks"] in lines
    (user,) = (line for line in lines if line and line[0] == "user_emb")
    assert user[1:4] == ["pooled", "20", "4"]
    assert "MiB per rank, with optimizer state: " in result.out


def test_a_plan_for_billions_of_rows_needs_no_memory_for_them(tiny, config_file):
    result = tiny("plan", str(config_file), "--world-size", "64", "--hbm", "80GB", *HUGE, "--json").json
    assert set(result) == {"world_size", "local_world_size", "device", "tables", "ranks"}
    assert (result["world_size"], result["local_world_size"], result["device"]) == (64, 8, "cuda")
    user = result["tables"][0]
    assert set(user) == {"table", "kind", "rows", "dim", "mib", "sharding", "kernel", "ranks"}
    assert (user["table"], user["rows"], user["dim"], user["kernel"]) == ("user_emb", 2_000_000_000, 4, "fused")
    assert user["mib"] == 2_000_000_000 * 4 * 4 / 2**20
    assert set(result["ranks"][0]) == {"device_bytes", "host_bytes"}
    used = sum(rank["device_bytes"] for rank in result["ranks"])
    assert used == (2_000_000_000 + 10) * 4 * 4 * 3  # Adam has two moments


def test_constraints_of_the_config_are_kept(tiny, config_file):
    limit = 'train_config.global_embedding_constraints={ sharding_types: "row_wise" compute_kernels: "fused_uvm" }'
    arguments = ["--world-size", "4", "--hbm", "1GB", "--ddr", "8GB", "--set", limit, "--json"]
    result = tiny("plan", str(config_file), *arguments).json
    assert {(row["sharding"], row["kernel"], tuple(row["ranks"])) for row in result["tables"]} == {
        ("row_wise", "fused_uvm", (0, 1, 2, 3))
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--world-size", "1", "--hbm", "80GB", *HUGE],
            "89.4 GiB, and 1 process has 63.3 GiB each for tables (74.5 GiB less 15%",
        ),
        (["--world-size", "1", "--hbm", "80GiB", *HUGE], "(80.0 GiB less 15%"),
        (["--world-size", "2", "--hbm", "80000 MB", *HUGE, "--set", "train_config.global_embedding_constraints={ "
          'sharding_types: "table_wise" }'], "'user_emb', split table_wise, does not fit"),
        (["--world-size", "2"], "--hbm is missing"),
        (["--world-size", "2", "--hbm", "80 bytes"], "--hbm '80 bytes' is not a size; write one such as 80GB"),
        (["--world-size", "2", "--device", "cpu"], "--ddr is missing"),
        (["--world-size", "2", "--device", "cpu", "--ddr", "1GB", "--hbm", "1GB"], "--hbm is the memory of GPUs"),
        (["--world-size", "2", "--device", "cuba"], "--device 'cuba' is not one of cuda, cpu. Did you mean 'cuda'?"),
        (["--world-size", "2", "--device", "cpu", "--ddr", "1GB"], "adam_optimizer runs on one process only"),
        (["--world-size", "1", "--device", "cpu", "--ddr", "1GB"], "there is nothing to plan"),
        (["--world-size", "12", "--hbm", "1GB"], "--world-size 12 is not a multiple of --local-world-size 8"),
        (["--hbm", "1GB"], "Missing option '--world-size'"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_ends_with_exit_code_2_and_the_reason(tiny, config_file, arguments, words):
    result = tiny("plan", str(config_file), *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in " ".join(result.err.replace("│", " ").split())
    assert "Traceback" not in result.err
