"""A model's upload to the local storage, PUT alone, against `cp` and then `sha256sum` of the same file."""

import http.client
import secrets
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.bench import Bench
from benchmarks.figures import against, alone
from benchmarks.outcome import Outcome, Sample, at_least, at_most
from benchmarks.processes import BenchError, cpu_seconds, memory, reset_peak
from benchmarks.sides import MB, interleaved
from benchmarks.system import System
from cloud.supervisor.demo import call

NAME, TITLE = "upload", "A model's upload to the local storage"


def run(bench: Bench) -> Outcome:
    """Speed and memory of uploads of one file, beside the tools that a person would copy and check it with."""
    outcome = Outcome(NAME, TITLE)
    system = bench.system
    source = bench.var / "model.bin"
    with source.open("wb") as file:
        for _ in range(bench.effort.bulk // 1_000_000):
            file.write(secrets.token_bytes(1_000_000))
    size = source.stat().st_size
    acts = {"upload": partial(_upload, system, source, size), "cp, sha256sum": partial(_tools, source, size)}
    for act in acts.values():
        act()
    found = interleaved(bench.effort.rounds, acts)
    mine, tools = found["upload"], found["cp, sha256sum"]
    outcome.samples |= found
    outcome.figures += [
        against(f"upload of {size / 1e6:.0f} MB by cp, then sha256sum", mine, tools, "mb_s", "MB/s", at_least(0.5)),
        alone("memory that grew in the API", [sample["grown_mb"] for sample in mine], "MB", at_most(8.0)),
        alone("CPU of the API", [sample["cpu_s"] for sample in mine], "s"),
    ]
    outcome.notes.append("The upload is on the disk when it is answered (fsync); what cp wrote is not.")
    return outcome


def _upload(system: System, source: Path, size: int) -> Sample:
    """One PUT, from its first byte to its answer. The next one's `init` removes its bytes."""
    body: dict[str, Any] = {"name": "bench", "version": "1", "filename": "a.bin", "size": size, "chips": []}
    begun = call(system.port, "POST", "/api/models/init", system.token, body)
    url = urlsplit(begun["upload"]["url"])
    workers = system.workers()
    before = {pid: memory(pid) for pid in workers}
    for pid in workers:
        reset_peak(pid)
    cpu = cpu_seconds(workers)
    link = http.client.HTTPConnection("127.0.0.1", system.port, timeout=120)
    started = time.monotonic()
    try:
        link.putrequest("PUT", url.path)
        link.putheader("Content-Length", str(size))
        link.endheaders()
        with source.open("rb") as file:
            link.sock.sendfile(file)
        status = link.getresponse().status
    finally:
        link.close()
    seconds = time.monotonic() - started
    if status != 201:
        raise BenchError(f"the upload was answered {status}")
    grown = sum(max(0, memory(pid, "VmHWM") - before[pid]) for pid in workers)
    return {"mb_s": size / 1e6 / seconds, "grown_mb": grown / MB, "cpu_s": cpu_seconds(workers) - cpu}


def _tools(source: Path, size: int) -> Sample:
    target = source.with_suffix(".copy")
    started = time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True, timeout=120)
    subprocess.run(["sha256sum", str(target)], check=True, timeout=120, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    target.unlink()
    return {"mb_s": size / 1e6 / seconds}
