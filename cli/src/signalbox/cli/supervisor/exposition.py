"""Many processes' Prometheus pages as one: pure text work on the exposition format, version 0.0.4."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class _Family:
    comments: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def merge(pages: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """Return one page with every sample of `pages`, each marked with its page's labels.

    A family's samples stand together under one HELP and TYPE, as the format asks. Label values are names of
    processes, which need no escaping.
    """
    families: dict[str, _Family] = {}
    for labels, text in pages:
        marks = ",".join(f'{name}="{value}"' for name, value in labels.items())
        current = families.setdefault("", _Family())
        fresh = False
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if families.get(name) is not current:
                    fresh = name not in families
                    current = families.setdefault(name, _Family())
                if fresh:
                    current.comments.append(line)
            elif line and not line.startswith("#"):
                current.samples.append(_marked(line, marks))
    out = [line for family in families.values() for line in (*family.comments, *family.samples)]
    return "\n".join(out) + "\n" if out else ""


def _marked(sample: str, marks: str) -> str:
    brace, space = sample.find("{"), sample.find(" ")
    if brace != -1 and brace < space:
        rest = sample[brace + 1 :]
        return f"{sample[:brace]}{{{marks}{'' if rest.startswith('}') else ','}{rest}"
    return f"{sample[:space]}{{{marks}}}{sample[space:]}"
