"""The run on a Ray cluster of this machine: the same result as in one process, a worker killed in its midst."""

import json
import subprocess
import sys

import pytest
import yaml
from refvie_runs import environment, found, settings

pytest.importorskip("ray")
SCRIPT = """
import sys, ray
from training.refvie import config, pipeline
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
table, folder, given = sys.argv[1:]
pipeline.run([table], folder, config.read(given), ray="local").close()
"""


def test_two_workers_of_a_cluster_find_the_same_though_one_is_killed(pairs, finished, tmp_path):
    words = json.loads(pairs.read_text().splitlines()[6])["prompt"]
    (tmp_path / "marks").mkdir()
    given = settings(score={"options": {"kills": words, "marks": str(tmp_path / "marks")}, "workers": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(pairs), str(tmp_path / "run"), str(tmp_path / "config.yaml")],
        env=environment(), cwd=tmp_path, check=True, timeout=400,
    )  # fmt: skip
    assert (tmp_path / "marks" / "died").exists()
    assert found(tmp_path / "run") == found(finished)
