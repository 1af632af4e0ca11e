"""What the machine lets this process use."""

import math
import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may keep busy, at least 1.

    The smallest of: the cores it may be scheduled on, and the processor-time quota of its control group and of
    every group above it, rounded up. A container with a quota of 1.5 on 64 cores has 2. `root` is where /proc
    and /sys are found.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(root):
        cores = min(cores, quota)
    return max(1, math.ceil(cores))


def _quotas(root: Path) -> list[float]:
    """Cores' worth of processor time that each control group over this process may spend; unlimited ones left out."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is hidden: then nothing limits us that we could know of
        return []
    quotas = []
    for membership in memberships:
        number, controllers, group = membership.split(":", 2)
        if number == "0" and not controllers:  # version 2: one tree for all controllers
            tree, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            tree, read = root / "sys/fs/cgroup" / controllers, _quota_v1
        else:
            continue
        folder = tree / group.lstrip("/")
        for candidate in (folder, *folder.parents):
            if not candidate.is_relative_to(tree):
                break
            try:
                quota = read(candidate)
            except (
                OSError,
                ValueError,
            ):  # no such file: the group has no such controller, or lies outside our view
                continue
            if quota is not None:
                quotas.append(quota)
    return quotas


def _quota_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
    period = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return None if quota <= 0 else quota / period
