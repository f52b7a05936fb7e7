"""What Helm makes of the chart, and manifests as JSON, for tests/tests/manifests.rs.

    manifests.py chart FOLDER VALUES    the objects that the chart renders to with these values (JSON)
    manifests.py lint FOLDER            what Helm's linter says
    manifests.py objects FILE           the objects of a file of YAML
"""

import json
import sys

import helm_python
import yaml


def objects(text):
    return [it for it in yaml.safe_load_all(text) if it is not None]


def chart(folder, values):
    rendered = helm_python.Chart.load(folder).render(
        json.loads(values), name="spanprof", namespace="spanprof"
    )
    files = sorted(name for name in rendered if name.endswith(".yaml"))
    return [it for name in files for it in objects(rendered[name])]


def main(command, path, *more):
    if command == "chart":
        return chart(path, *more)
    if command == "lint":
        return helm_python.lint(path)
    if command == "objects":
        with open(path, encoding="utf-8") as file:
            return objects(file.read())
    raise SystemExit(__doc__)


try:
    json.dump(main(*sys.argv[1:]), sys.stdout)
except helm_python.HelmError as error:
    sys.exit(str(error))
