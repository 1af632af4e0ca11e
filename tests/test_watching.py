"""The alerts and the dashboard that come with pawsort ask for figures that it serves, and promtool finds them right."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from daemon.metrics import Metrics


@pytest.fixture(scope="module")
def served():
    """Names of all series, as Prometheus stores them."""
    names = set()
    with Metrics("127.0.0.1:0") as metrics:
        found = list(metrics._registry.collect())
    for metric in found:
        name, kind = metric.name, metric.type
        endings = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "info": ("_info",),
        }.get(kind, ("",))
        names |= {name + ending for ending in endings}
    return names


def asked_for(expression):
    return set(re.findall(r"\bpawsort_[a-z_]+", expression))


def test_every_alert_asks_for_figures_that_are_served(root, served):
    (group,) = yaml.safe_load((root / "docs" / "alerts.yaml").read_text())["groups"]
    assert len(group["rules"]) == 3
    for rule in group["rules"]:
        assert asked_for(rule["expr"])
        assert asked_for(rule["expr"]) <= served


def test_every_panel_asks_for_figures_that_are_served(root, served):
    board = json.loads((root / "docs" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = set().union(*map(asked_for, expressions))
    assert asked <= served
    assert served - asked <= {"pawsort_build_info"}, "a figure that nobody looks at"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)")
@pytest.mark.parametrize("command", ["check rules docs/alerts.yaml", "test rules docs/alerts.test.yaml"])
def test_promtool_finds_the_alerts_right(root, command):
    answer = subprocess.run(
        ["promtool", *command.split()], cwd=root, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)")
def test_promtool_understands_every_panel(root, tmp_path):
    board = json.loads((root / "docs" / "grafana-dashboard.json").read_text())
    expressions = [
        target["expr"].replace("$__rate_interval", "5m") for p in board["panels"] for target in p["targets"]
    ]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    answer = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
