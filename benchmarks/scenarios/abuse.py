"""What a peer that breaks the rules costs before a limit stops it, beside as much honest traffic (yamux.md §14, 10)."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import against, alone
from benchmarks.outcome import Outcome, Sample
from benchmarks.processes import BenchError
from benchmarks.sides import MB, interleaved
from benchmarks.wire.parts import Part, listening
from benchmarks.wire.rogue import Rogue, chopped, ends, ids, messages, rapid_resets, short_lives

NAME, TITLE = "abuse", "Abuse of the wire"
WINDOW = 256 * 1024
FLOOD = 2_000  # streams opened and reset at once: ten times what any limit allows
HONEST = 200  # streams of an honest tunnel: about as many as a flood gets through
PIECE = 16 * 1024  # a data frame of honest bulk
_BULK_STREAMS = 64
_SECONDS = 60.0


def flood(daemon: Part, port: int, tunnels: int) -> Sample:
    """`tunnels` times as many SYN and RST as the socket takes. Raises BenchError unless a limit ended each."""
    data = messages(rapid_resets(FLOOD))
    ended = []
    for _ in range(tunnels):
        with Rogue(port) as rogue:
            rogue.send(data)
            rogue.until_gone()
        ended.append(daemon.ask(_SECONDS, do="ended"))
        if ended[-1]["kind"] != "ABUSE":
            raise BenchError(f"no limit ended a flood of resets, but: {ended[-1]['text']}")
    streams = sum(end["opened"] + end["refused"] for end in ended)
    return _sample(ended, 2 * streams) | {"streams": streams / tunnels}


def visit(daemon: Part, port: int, tunnels: int) -> Sample:
    """The same number of tunnels, each with `HONEST` short streams that are opened, used and ended."""
    data = messages(short_lives(HONEST, bytes(32)))
    ended = []
    for _ in range(tunnels):
        with Rogue(port) as rogue:
            rogue.send(data)
            _all_ended(rogue, HONEST)
        ended.append(daemon.ask(_SECONDS, do="ended"))
    return _sample(ended, sum(end["frames_in"] for end in ended)) | {"streams": float(HONEST)}


def crumbs(daemon: Part, port: int, size: int) -> Sample:
    """One stream's whole window in frames of a byte, read by the application; messages of `size` bytes."""
    streams = ids(1)
    return _poured(daemon, port, messages(chopped(streams, WINDOW, 1) + ends(streams), size), 1)


def whole(daemon: Part, port: int) -> Sample:
    """The windows of many streams in frames of honest size."""
    streams = ids(_BULK_STREAMS)
    return _poured(daemon, port, messages(chopped(streams, WINDOW, PIECE) + ends(streams)), _BULK_STREAMS)


def unread(folder: Path) -> Sample:
    """A window of frames of a byte that nobody reads, and one more. Raises BenchError unless that ends the tunnel.

    In a process of its own: one that has held as much before has the memory for it already.
    """
    with listening(folder, flags=("--accept", "--no-read")) as (daemon, port):
        with Rogue(port) as rogue:
            rogue.send(messages(chopped(ids(1), 1024, 1024)))
        daemon.ask(_SECONDS, do="ended")
        with Rogue(port) as rogue:
            rogue.send(messages(chopped(ids(1), WINDOW + 1, 1)))
            rogue.until_gone()
        end = daemon.ask(_SECONDS, do="ended")
    if end["kind"] != "PROTOCOL":
        raise BenchError(f"a byte beyond the window did not end the tunnel, but: {end['text']}")
    return {"grown_mb": end["grown"] / MB, "cpu_us": end["cpu"] / WINDOW * 1e6}


def _poured(daemon: Part, port: int, data: bytes, streams: int) -> Sample:
    with Rogue(port) as rogue:
        rogue.send(data)
        _all_ended(rogue, streams)
    end = daemon.ask(_SECONDS, do="ended")
    moved = streams * WINDOW
    return _sample([end], end["frames_in"]) | {"grown_mb": end["grown"] / MB, "cpu_ns_byte": end["cpu"] / moved * 1e9}


def _all_ended(rogue: Rogue, streams: int) -> None:
    if (ended := rogue.until_ended(streams)) != streams:
        raise BenchError(f"of {streams} honest streams {ended} came to their end")


def _sample(ended: Sequence[dict[str, Any]], frames: int) -> Sample:
    cpu = sum(end["cpu"] for end in ended)
    return {"cpu_us": cpu / frames * 1e6, "tunnel_cpu_ms": cpu / len(ended) * 1e3, "frames": frames / len(ended)}


def run(bench: Bench) -> Outcome:
    """The daemon's end with its own limits, under a peer that needs next to nothing for what it sends."""
    outcome, folder, tunnels = Outcome(NAME, TITLE), bench.var / "log", bench.effort.abusers
    with (
        listening(folder) as (refusing, at_refusing),
        listening(folder, flags=("--accept",)) as (taking, at_taking),
    ):
        jobs: dict[str, Callable[[], Sample]] = {
            "streams opened and reset, as the daemon is (it takes none)": partial(
                flood, refusing, at_refusing, tunnels
            ),
            "streams opened and reset, where they are taken": partial(flood, taking, at_taking, tunnels),
            "honest streams": partial(visit, taking, at_taking, tunnels),
            "frames of a byte": partial(crumbs, taking, at_taking, 64 * 1024),
            "frames of a byte, each in a message": partial(crumbs, taking, at_taking, 13),
            "frames of 16 KiB": partial(whole, taking, at_taking),
            "frames of a byte that nobody reads": partial(unread, folder),
        }
        for job in jobs.values():
            job()  # the first time is dearer
        outcome.samples = interleaved(bench.effort.rounds, jobs)
    _tell(outcome)
    return outcome


def _tell(outcome: Outcome) -> None:
    seen = outcome.samples
    honest, bulk, deaf = seen["honest streams"], seen["frames of 16 KiB"], seen["frames of a byte that nobody reads"]
    for name, samples in seen.items():
        outcome.figures.append(alone(f"{name}: CPU a frame", [s["cpu_us"] for s in samples], "µs"))
        if name.startswith("streams opened"):
            outcome.figures += [
                alone(f"{name}: streams until a limit ends the tunnel", [s["streams"] for s in samples], "streams"),
                against(
                    f"{name}: CPU of a tunnel, by one of {HONEST} honest streams",
                    samples,
                    honest,
                    "tunnel_cpu_ms",
                    "ms",
                ),
            ]
        elif name.startswith("frames of a byte") and samples is not deaf:
            outcome.figures.append(
                against(f"{name}: CPU a byte, by frames of 16 KiB", samples, bulk, "cpu_ns_byte", "ns")
            )
    grown = [sample["grown_mb"] for sample in deaf]
    outcome.figures.append(alone("a window of them that nobody reads: memory that grew", grown, "MB"))
    outcome.notes.append(
        "The CPU is that of the process which holds the tunnel, from behind the handshake to its end. A flood is"
        f" {FLOOD} streams in one go; every tunnel of one was ended by a limit, and so was every byte beyond a window."
    )
