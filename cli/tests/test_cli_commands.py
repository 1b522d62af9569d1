"""Commands that need no running instance, run as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from signalbox.core.keys import has_valid_check, hash_key

pytestmark = pytest.mark.slow

SIGNALBOX = str(Path(sys.executable).parent / "signalbox")
GOOD = """
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {name: ada}   # keep me
spec:
  owner: ada@example.com
  keyHash: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"""


def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNALBOX_", "ANTHROPIC_", "XDG_"))}
    return subprocess.run(
        [SIGNALBOX, *arguments], env={**clean, "HOME": "/nonexistent", **(env or {})}, input=stdin,
        capture_output=True, text=True, timeout=30, check=False,
    )


def test_check_passes_good_documents(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(GOOD)
    done = run("check", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_file_line_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(GOOD + "  concurency: 5\n")
    done = run("check", str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(rf"{tmp_path}/k\.yaml:8: spec\.concurency: .+\n", done.stdout)
    as_json = run("check", str(tmp_path), "-o", "json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)[0] | {"reason": ""} == {
        "file": f"{tmp_path}/k.yaml", "line": 8, "path": "spec.concurency", "reason": "",
    }


def test_check_warns_of_what_would_not_be_ready_without_failing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("""
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {name: a}
spec:
  provider: Anthropic
  credential: {apiKey: {secretRef: {name: elsewhere, key: k}}}
""")
    done = run("check", str(tmp_path))
    assert done.returncode == 0
    assert "SecretNotFound" in done.stderr


@pytest.mark.parametrize(("arguments", "code"), [
    (["check", "/nowhere"], 1), (["nonsense"], 2), (["usage", "--by"], 2), (["status"], 1),
    (["requests", "--last", "0"], 2), (["keys", "create", "ada", "--expires", "2020-01-01"], 2),
    (["keys", "pause", "ada"], 1), (["up", "--manifests", "/nowhere", "--data", "/tmp/never"], 2),
])
def test_what_goes_wrong_is_one_clear_line_and_a_status(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    assert done.stdout == ""


@pytest.mark.parametrize("lines", [1, 5000], ids=["in the buffer", "beyond it"])
def test_an_output_that_takes_nothing_is_told_and_no_defect(tmp_path: Path, lines: int) -> None:
    (tmp_path / "k.yaml").write_text(GOOD + "".join(f"  x{n}: 1\n" for n in range(lines)))
    with open("/dev/full", "w") as full:
        done = subprocess.run([SIGNALBOX, "check", str(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "signalbox: No space left on device"
    assert "Traceback" not in done.stderr
    closed = subprocess.run(["sh", "-c", f"exec {SIGNALBOX} check {tmp_path} >&-"], capture_output=True, text=True, check=False)
    assert closed.returncode == 1
    assert "Traceback" not in closed.stderr


def test_an_address_of_an_unknown_form_is_named() -> None:
    done = run("status", env={"SIGNALBOX_ADDR": "http://x"})
    assert done.returncode == 2
    assert "SIGNALBOX_ADDR=http://x" in done.stderr


def test_help_and_check_do_not_load_grpc(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = {argv}\nfrom signalbox.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        "sys.stderr.write(' '.join({{'grpc', 'uvicorn', 'rich', 'google.protobuf'}} & sys.modules.keys()))"
    )
    (tmp_path / "k.yaml").write_text(GOOD)
    for argv in (["signalbox", "--help"], ["signalbox", "check", str(tmp_path)]):
        command = [sys.executable, "-c", code.format(argv=argv)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_init_writes_documents_that_pass_and_shows_the_key_once(tmp_path: Path) -> None:
    made = run("init", str(tmp_path / "d"), "--owner", "ada: the first", stdin="sk-ant-0123456789abcdef\n")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert has_valid_check(key)
    texts = {p.name: p.read_text() for p in (tmp_path / "d").iterdir()}
    assert not any(key in text for text in texts.values())
    documents = [d for text in texts.values() for d in yaml.safe_load_all(text)]
    spec = next(d["spec"] for d in documents if d["kind"] == "RelayKey")
    assert (spec["keyHash"], spec["owner"]) == (hash_key(key), "ada: the first")
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "d").iterdir()} == {0o600}
    assert run("check", str(tmp_path / "d")).returncode == 0
    again = run("init", str(tmp_path / "d"), stdin="x\n")
    assert again.returncode == 1
    assert {p.name: p.read_text() for p in (tmp_path / "d").iterdir()} == texts


def test_init_refers_to_the_variable_where_it_is_set(tmp_path: Path) -> None:
    env = {"ANTHROPIC_API_KEY": "sk-ant-very-secret-0123"}
    made = run("init", str(tmp_path / "d"), env=env)
    assert made.returncode == 0
    text = "".join(p.read_text() for p in (tmp_path / "d").iterdir()) + made.stdout + made.stderr
    assert "${ANTHROPIC_API_KEY}" in text
    assert "very-secret" not in text
    assert run("check", str(tmp_path / "d"), env=env).returncode == 0


def test_init_without_a_key_writes_nothing(tmp_path: Path) -> None:
    made = run("init", str(tmp_path / "d"))
    assert made.returncode == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("owner", "api_key", "words"), [
    ("", "sk-ant-0123", "spec.owner: is empty"), ("o" * 257, "sk-ant-0123", "spec.owner: is longer"),
    ("ada", "sk-\u00fc", "no API key"), ("ada", "sk-${HOME}", "no API key"),
])
def test_init_writes_nothing_that_check_refuses(tmp_path: Path, owner: str, api_key: str, words: str) -> None:
    made = run("init", str(tmp_path / "d"), "--owner", owner, stdin=api_key + "\n")
    assert made.returncode in (1, 2)
    assert words in made.stderr
    assert made.stdout == ""
    assert not (tmp_path / "d").exists()


def test_keys_create_writes_only_the_hash(tmp_path: Path) -> None:
    made = run("keys", "create", "bob", "--owner", "bob@example.com", "--manifests", str(tmp_path), "-o", "json",
               "--limit", "minute:requests=60", "--limit", "day:cost=20.00,strict", "--expires", "2030-01-01")
    assert made.returncode == 0, made.stderr
    row = json.loads(made.stdout)[0]
    text = Path(row["file"]).read_text()
    assert row["key"] not in text
    document = yaml.safe_load(text)
    assert document["spec"]["keyHash"] == hash_key(row["key"])
    assert document["spec"]["limits"] == [
        {"per": "Minute", "requests": 60}, {"per": "Day", "costUSD": "20.00", "admission": "Strict"},
    ]
    assert run("check", str(tmp_path)).returncode == 0
    again = run("keys", "create", "bob", "--owner", "x", "--manifests", str(tmp_path))
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_keys_create_with_a_secret_and_a_namespace(tmp_path: Path) -> None:
    made = run("keys", "create", "team/bob", "--owner", "bob", "--secret", "--manifests", str(tmp_path))
    assert made.returncode == 0, made.stderr
    secret, key = yaml.safe_load_all((tmp_path / "key-team.bob.yaml").read_text())
    assert secret["stringData"] == {"relay-key": made.stdout.strip()}
    assert {secret["metadata"]["namespace"], key["metadata"]["namespace"]} == {"team"}
    assert run("check", str(tmp_path)).returncode == 0


@pytest.mark.parametrize("limits", [["day:cost=9000001"], ["day:requests=1", "day:tokens=2"], ["day:tokens=99999999999999999999"]])
def test_keys_create_refuses_what_the_rules_refuse(tmp_path: Path, limits: list[str]) -> None:
    options = [part for limit in limits for part in ("--limit", limit)]
    made = run("keys", "create", "bob", "--owner", "bob", "--manifests", str(tmp_path), *options)
    assert made.returncode == 1
    assert list(tmp_path.iterdir()) == []
    assert made.stdout == ""


def test_keys_rotate_keeps_the_former_key_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(GOOD)
    made = run("keys", "rotate", "ada", "--overlap", "24h", "--manifests", str(tmp_path))
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "k.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]
    assert spec["keyHash"] == hash_key(made.stdout.strip())
    assert [h["keyHash"] for h in spec["alsoAccept"]] == ["sha256:" + "a" * 64]
    assert "# keep me" in text
    assert run("check", str(tmp_path)).returncode == 0


def test_pause_and_resume_edit_the_document(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(GOOD)
    assert run("keys", "pause", "ada", "--manifests", str(tmp_path)).returncode == 0
    assert yaml.safe_load((tmp_path / "k.yaml").read_text())["spec"]["state"] == "Paused"
    assert run("keys", "resume", "ada", "--manifests", str(tmp_path)).returncode == 0
    assert yaml.safe_load((tmp_path / "k.yaml").read_text())["spec"]["state"] == "Active"
    missing = run("keys", "pause", "nobody", "--manifests", str(tmp_path))
    assert missing.returncode == 1
    assert "default/nobody" in missing.stderr
