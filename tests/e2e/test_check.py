"""`tzrec check` on the official plugins, as a user runs it."""

import json
import os
import subprocess
import sys
import time

import pytest

CHECK = """
import sys
sys.modules["pytest"] = None  # a user need not have it
from tzrec_core.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["tzrec-deepfm", "tzrec-wide-and-deep"])
def test_an_official_plugin_passes_from_any_folder_without_pytest_in_under_a_minute(tmp_path, plugin):
    start = time.monotonic()
    command = [sys.executable, "-c", CHECK, "check", plugin, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert [row for row in report["checks"] if row["outcome"] in ("failed", "skipped")] == []
    assert (done.returncode, report["ok"]) == (0, True)
    assert time.monotonic() - start < 60
    assert list(tmp_path.iterdir()) == []
