"""A conversion through a whole system: api, worker and the reference converter, each a process of its own."""

import hashlib
import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cloud.supervisor import plan as plans
from tests.apps.converter.kit import SECRET, read_quantized, tensors
from tests.conftest import StartProcess
from tests.system.stack import Stack, eventually, run_stack

pytestmark = pytest.mark.system
REFERENCE = Path(__file__).resolve().parents[1] / "apps" / "converter" / "reference.py"


@pytest.fixture
def system(tmp_path: Path, free_port: Callable[[], int], converter_port: int) -> Iterator[Stack]:
    """The API and a worker that know of a converter, which does not run yet."""
    settings = {
        "VISIONA_CONVERTER_URL": f"http://127.0.0.1:{converter_port}/orders",
        "VISIONA_CONVERTER_SECRET": SECRET,
    }
    with run_stack(tmp_path / "var", (free_port(), free_port(), free_port()), settings) as stack:
        stack.start(plans.api(stack.plan))
        stack.start(plans.worker(stack.plan))
        stack.log_in()
        yield stack


@pytest.fixture
def converter_port(free_port: Callable[[], int]) -> int:
    return free_port()


def transfer(method: str, url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """A signed URL, as whoever was given it calls it."""
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        link.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, data, headers or {})
        answer = link.getresponse()
        body = answer.read()
        assert answer.status in (200, 201), body
        return body
    finally:
        link.close()


def uploaded(system: Stack, name: str, data: bytes) -> str:
    """The id of a ready model."""
    body = {"name": name, "version": "1", "filename": f"{name}.vtf", "size": len(data), "chips": []}
    begun = system.call("POST", "/api/models/init", body | {"sha256": hashlib.sha256(data).hexdigest()})
    assert begun.status == 201, begun.body
    upload = begun.data["upload"]
    transfer("PUT", upload["url"], data, upload["headers"])
    model = str(begun.data["model"]["id"])
    assert system.call("POST", f"/api/models/{model}/finalize").status == 200
    return model


def ordered(system: Stack, model: str) -> str:
    answer = system.call("POST", "/api/conversions", {"model_id": model, "chip": "KL720"})
    assert answer.status == 201, answer.body
    return f"/api/conversions/{answer.data['id']}"


def ended(system: Stack, path: str) -> dict:
    return dict(
        eventually(
            lambda: (seen := system.call("GET", path).data)["status"] not in ("queued", "running") and seen,
            60,
            "the conversion ends",
        )
    )


@pytest.mark.timeout(300)
def test_a_file_becomes_another(system: Stack, start_process: StartProcess, converter_port: int) -> None:
    weights = {"conv1": [0.5, -1.0, 0.25, 0.0] * 1000, "bias": [3.0, -0.125], "none": []}
    good, bad = uploaded(system, "yolo", tensors(**weights)), uploaded(system, "text", b"no tensors at all")
    path = ordered(system, good)
    eventually(lambda: "converter_did_not_take_order" in system.log("worker"), 30, "the converter is missed")
    converter = start_process(
        ["python", str(REFERENCE), "--port", str(converter_port), "--secret", SECRET], ready="listening"
    )

    seen = ended(system, path)
    assert (seen["status"], seen["error"]) == ("done", ""), converter.text()
    model = system.call("GET", f"/api/models/{seen['result_model_id']}").data
    assert (model["status"], model["source"], model["chips"], model["filename"]) == (
        "ready", "converted", ["KL720"], "yolo.vtq",
    )  # fmt: skip
    result = transfer("GET", system.call("GET", f"/api/models/{model['id']}/download").data["url"])
    assert hashlib.sha256(result).hexdigest() == model["sha256"]
    assert len(result) < len(tensors(**weights)) / 3
    chip, values = read_quantized(result)
    assert chip == "KL720"
    assert values.keys() == weights.keys()
    for name, numbers in weights.items():
        assert values[name] == pytest.approx(numbers, abs=max(map(abs, numbers), default=0) / 127)

    seen = ended(system, ordered(system, bad))
    assert (seen["status"], seen["error"], seen["result_model_id"]) == ("failed", "not a VTF1 file", None)
    for name in ("api", "worker"):
        assert SECRET not in system.log(name)
