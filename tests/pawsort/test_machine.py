import os

import pytest

from pawsort import machine

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def tree(tmp_path):
    """Writes files under a root of our own: {path: text}."""

    def tree(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return tree


def test_without_control_groups_the_cores_we_may_run_on_count(tmp_path):
    assert machine.usable_cores(tmp_path) == CORES


def test_this_machine_answers_with_a_number_that_can_be_used():
    assert 1 <= machine.usable_cores() <= CORES


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("150000 100000", 2), ("20000 100000", 1)])
def test_a_quota_of_version_2_counts_rounded_up(tree, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    root = tree({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": f"{quota}\n"})
    assert machine.usable_cores(root) == cores


def test_the_tightest_quota_of_all_groups_above_counts(tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    root = tree(
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        }
    )
    assert machine.usable_cores(root) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 64), ("400000", 4)])
def test_a_quota_of_version_1_counts(tree, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    root = tree(
        {
            "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": f"{quota}\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        }
    )
    assert machine.usable_cores(root) == cores
