#!/usr/bin/env python3
"""Generate what the Helm chart carries from its sources, or with --check fail where the committed files differ.

values.yaml (its comments) -> values.schema.json and docs/values.md; deploy/crds -> the chart's copy; the dashboards'
code in deploy/grafana -> the chart's JSON files.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/signalbox"
HINT = "@schema "
# Kubernetes' own objects: passed on as they are, checked by the API server.
OPEN = re.compile(
    r"(^|\.)(resources|affinity|nodeSelector|\w*[aA]nnotations|\w*[lL]abels|podSecurityContext)$",
)
TYPES = {
    "tag:yaml.org,2002:str": "string", "tag:yaml.org,2002:int": "integer", "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:seq": "array", "tag:yaml.org,2002:map": "object",
}


def comment_above(lines: list[str], line: int, indent: int) -> tuple[str, dict[str, Any]]:
    """Return the description and the schema hint in the comment block that ends just above `line`."""
    block: list[str] = []
    prefix = " " * indent + "#"
    while line > 0 and lines[line - 1].startswith(prefix):
        line -= 1
        block.insert(0, lines[line][len(prefix) :].strip())
    hint: dict[str, Any] = {}
    text = []
    for entry in block:
        if entry.startswith(HINT):
            hint |= json.loads(entry.removeprefix(HINT))
        else:
            text.append(entry)
    return " ".join(text), hint


def schema_of(node: yaml.MappingNode, lines: list[str], path: str, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Return the schema of a mapping of values.yaml; append a row (path, default, description) for each leaf."""
    properties: dict[str, Any] = {}
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        description, hint = comment_above(lines, key.start_mark.line, key.start_mark.column)
        if not description:
            raise SystemExit(f"values.yaml:{key.start_mark.line + 1}: {name} has no comment")
        properties[key.value] = {"description": description}
        if isinstance(value, yaml.MappingNode) and not OPEN.search(name):
            properties[key.value] |= schema_of(value, lines, name, rows)
        else:
            properties[key.value] |= {"type": TYPES[value.tag], **hint}
            default = json.dumps(yaml.safe_load(yaml.serialize(value)), ensure_ascii=False)
            rows.append((name, default, description))
    return {"type": "object", "additionalProperties": False, "properties": properties}


def values() -> dict[Path, str]:
    """Return values.schema.json and docs/values.md."""
    text = (CHART / "values.yaml").read_text()
    rows: list[tuple[str, str, str]] = []
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    schema = {"$schema": "https://json-schema.org/draft-07/schema#", **schema_of(root, text.splitlines(), "", rows)}
    # Helm itself puts `global` there for every chart.
    schema["properties"]["global"] = {"description": "Values shared with parent charts.", "type": "object"}
    page = [
        "# Values of the chart", "",
        "`helm install` refuses a name that is not here. Generated from `deploy/helm/signalbox/values.yaml` by",
        "`make docs`.", "", "| Value | Default | Meaning |", "|---|---|---|",
    ]
    page += [f"| `{name}` | `{default.replace('|', chr(92) + '|')}` | {text.replace('|', chr(92) + '|')} |"
             for name, default, text in rows]
    return {
        CHART / "values.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        ROOT / "docs/values.md": "\n".join(page) + "\n",
    }


def crds() -> dict[Path, str]:
    """Return the chart's copy of the definitions."""
    return {CHART / "files/crds" / p.name: p.read_text() for p in sorted((ROOT / "deploy/crds").glob("*.yaml"))}


def dashboards() -> dict[Path, str]:
    """Return the chart's dashboards."""
    code = ROOT / "deploy/grafana/generate.py"
    if not code.exists():
        return {}
    made = json.loads(subprocess.run([sys.executable, str(code)], check=True, capture_output=True, text=True).stdout)
    return {
        CHART / "files/dashboards" / f"{name}.json": json.dumps(board, indent=1, sort_keys=True) + "\n"
        for name, board in made.items()
    }


def main() -> int:
    """Return the exit status."""
    wanted = values() | crds() | dashboards()
    kept = {path for folder in ("crds", "dashboards") for path in (CHART / "files" / folder).glob("*")}
    if "--check" in sys.argv:
        drift = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
        for path in (*drift, *sorted(kept - set(wanted))):
            print(f"{path.relative_to(ROOT)}: differs from what it is generated from; run `make docs`")
        return 1 if drift or kept - set(wanted) else 0
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in kept - set(wanted):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
