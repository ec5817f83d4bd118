"""The Grafana dashboard and the console ask only for metrics that a server has."""

import json
import re
import subprocess
import urllib.request

import pytest
from nereid import BINARY, ROOT, Nereid, identity_config, torchscript, write_model
from traffic import infer

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "nereid.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
CONSOLE = sorted((ROOT / "src" / "protocol" / "http" / "console").glob("*.js"))


def metrics_of(expression):
    """The metrics that a PromQL expression names: what is left without texts, labels, ranges and functions."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - {"by", "and", "or", "unless"}


def labels_of(expression):
    """The labels that an expression groups by or selects."""
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    return {label.strip() for group in grouped for label in group.split(",")} | set(selected)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that has everything that is shown: a response cache and a model that holds memory, too."""
    folder = tmp_path_factory.mktemp("shown")
    extra = "dynamic_batching { }\nresponse_cache { enable: true }"
    write_model(folder, "echo", identity_config(["FP32"], dims="4", extra=extra))
    tensors = " ".join(f'{way} {{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }}' for way, name in (("input", "x"), ("output", "y")))
    torchscript(folder, "weighs", "def forward(self, x):\n    return x + self.w\n", tensors, {"w": [1.0] * 4})
    with Nereid(folder, "--cache-config", "local,size=65536", "--metrics-interval-ms=100") as running:
        yield running


@pytest.fixture(scope="module")
def samples(server):
    """The labels that the series of each metric have, once requests were answered, refused and not routed."""
    assert subprocess.run([BINARY, "health", "--grpc", server.grpc], check=False).returncode == 0
    assert infer(server, "echo") == 200
    assert infer(server, "nobody") == 404
    assert infer(server, "echo", rows=1000) == 400
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        text = response.read().decode()
    found = {}
    for line in text.splitlines():
        series = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", line)
        if series:
            found.setdefault(series[1], set()).update(re.findall(r'(\w+)="', series[2] or ""))
    return found


def test_the_reader_of_expressions_sees_what_is_named():
    expression = 'sum by (le, model) (rate(a_bucket{model=~"$model"}[5m])) / sum(b:c) > 0 or d{reason="by"}'
    assert metrics_of(expression) == {"a_bucket", "b:c", "d"}
    assert labels_of(expression) == {"le", "model", "reason"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_of_a_panel_exists(samples, expression):
    named = metrics_of(expression)
    assert named
    for metric in named:
        assert metric in samples, metric
    labels = set().union(*(samples[metric] for metric in named))
    assert labels_of(expression) <= labels


def test_the_choice_of_models_is_made_from_a_metric_that_exists(samples):
    (variable,) = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
    assert label in samples[metric]


def test_every_metric_of_the_console_exists(samples):
    families = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in samples} | set(samples)
    named = {name for file in CONSOLE for name in re.findall(r'"((?:nv|nereid|process)_\w+)"', file.read_text())}
    assert len(named) > 10
    assert named <= families


def test_panels_use_the_source_that_is_provisioned():
    text = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    uid = re.search(r"uid: (\S+)", text)[1]
    sources = {panel["datasource"]["uid"] for panel in PANELS}
    assert sources == {uid}


def test_panels_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
