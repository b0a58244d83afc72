"""docs/webhooks.md: its three ways to check a signature do what they say; its table of waits is the one in force."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from apps.webhooks import delivery
from apps.webhooks.models import PING, Event
from apps.webhooks.signing import LEEWAY_SECONDS, sign

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "webhooks.md").read_text()
SECRET, BODY = "whsec_" + "5" * 64, '{"id": "é"}'.encode()

MAIN_GO = """package main

import (
	"encoding/json"
	"os"
)

func main() {
	cases := [][2]string{%s}
	var answers []bool
	for _, c := range cases {
		answers = append(answers, IsSigned(c[0], []byte(%s), c[1]))
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
"""


def block(language: str) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)[0]


def cases() -> list[tuple[str, str, bool]]:
    """(header, secret, whether it is good): made now, since each has its time."""
    now = int(time.time())
    good = sign([SECRET], BODY, now)
    return [
        (good, SECRET, True),
        (sign(["other", SECRET], BODY, now), SECRET, True),
        (sign([SECRET], BODY, now - LEEWAY_SECONDS + 60), SECRET, True),
        (sign([SECRET], BODY, now - LEEWAY_SECONDS - 10), SECRET, False),
        (sign([SECRET], BODY, now + LEEWAY_SECONDS + 60), SECRET, False),
        (sign([SECRET], BODY + b" ", now), SECRET, False),
        (good, "other", False),
        (good.replace("v1=", "v0="), SECRET, False),
        (good.replace(f"t={now}", f"t={now - 1}"), SECRET, False),
        (good.partition(",")[2], SECRET, False),
        (f"t={now},v1=zz", SECRET, False),
        (f"t={now}", SECRET, False),
        ("t=x,v1=00", SECRET, False),
        ("", SECRET, False),
    ]


def test_python():
    names: dict = {}
    exec(block("python"), names)  # noqa: S102 - the document's own code is what is tried
    for header, secret, good in cases():
        assert names["is_signed"](header, BODY, secret) is good, header


def run(*argv: str, cwd: Path) -> list[bool]:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[bool] = json.loads(done.stdout)
    return answers


def test_javascript(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    (tmp_path / "webhook.mjs").write_text(block("js"))
    (tmp_path / "main.mjs").write_text(
        'import { isSigned } from "./webhook.mjs";\n'
        f"const cases = {json.dumps([case[:2] for case in cases()])};\n"
        f"const body = Buffer.from({json.dumps(BODY.decode())});\n"
        "console.log(JSON.stringify(cases.map(([header, secret]) => isSigned(header, body, secret))));\n"
    )
    assert run(node, "main.mjs", cwd=tmp_path) == [good for *_, good in cases()]


@pytest.mark.interop
def test_go(tmp_path):
    go = shutil.which("go")
    if go is None:
        pytest.skip("the Go toolchain is not installed")
    (tmp_path / "go.mod").write_text("module example.com/webhook\n\ngo 1.21\n")
    (tmp_path / "webhook.go").write_text(block("go").replace("package webhook", "package main"))
    listed = ", ".join(f"{{{json.dumps(header)}, {json.dumps(secret)}}}" for header, secret, _ in cases())
    (tmp_path / "main.go").write_text(MAIN_GO % (listed, json.dumps(BODY.decode(), ensure_ascii=False)))
    assert run(go, "run", ".", cwd=tmp_path) == [good for *_, good in cases()]


def test_the_table_of_waits():
    told = re.search(r"\| next one in \| (.*) \|", TEXT)
    assert told is not None
    seconds = {"s": 1, "min": 60, "h": 3600}
    waits = [float(number) * seconds[unit] for number, unit in re.findall(r"([\d.]+) (s|min|h)", told[1])]
    assert len(waits) == delivery.ATTEMPTS - 1
    for tries, wait in enumerate(waits, 1):
        plain = min(delivery.FIRST_DELAY_SECONDS * delivery.FACTOR ** (tries - 1), delivery.LONGEST_DELAY_SECONDS)
        assert wait == pytest.approx(plain, rel=0.02)


def test_each_event_is_told_of():
    assert set(re.findall(r"^\| `([a-z.]+)` \|", TEXT, re.MULTILINE)) == {*Event.values, PING}
