"""How much is measured: the sizes of a whole run and of a quick one."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of a run. Times in seconds, sizes in bytes."""

    name: str
    rounds: int  # of each side, interleaved
    seconds: float  # of one measurement
    warm_up: float  # before the first round of each side
    connections: tuple[int, ...]
    sizes: tuple[int, ...]  # of bodies, for the curve of bulk
    bulk: int  # the body of the bulk figures
    tunnels: tuple[int, ...]  # held at once, growing
    settle: float  # before memory is read
    idle: float  # of watching what the most tunnels cost by themselves
    storm: int  # agents that come back at once
    storm_rounds: int
    events: int  # first events awaited, each on a connection of its own
    sockets: tuple[int, ...]  # WebSockets held at once, growing
    micro: float  # seconds of one microbenchmark
    wire: int  # bytes of bulk between two ends, where nothing but they hold it back
    round_trips: tuple[float, ...]  # seconds
    abusers: int  # tunnels of a peer that breaks the rules, one after another
    narrow: float  # seconds of traffic on a narrow line


FULL = Effort(
    name="full",
    rounds=5,
    seconds=3.0,
    warm_up=1.5,
    connections=(1, 16, 32, 64),
    sizes=(1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    bulk=100_000_000,
    tunnels=(1, 10, 100, 1_000, 5_000),
    settle=5.0,
    idle=30.0,
    storm=5_000,
    storm_rounds=3,
    events=20,
    sockets=(10, 100, 1_000),
    micro=1.0,
    wire=1024 * MIB,
    round_trips=(0.0, 0.05, 0.1),
    abusers=200,
    narrow=75.0,
)

QUICK = Effort(
    name="quick",
    rounds=2,
    seconds=0.6,
    warm_up=0.3,
    connections=(1, 32),
    sizes=(1_000, 1_000_000),
    bulk=20_000_000,
    tunnels=(1, 100, 500),
    settle=1.0,
    idle=4.0,
    storm=500,
    storm_rounds=1,
    events=3,
    sockets=(10, 200),
    micro=0.2,
    wire=16 * MIB,
    round_trips=(0.0, 0.05),
    abusers=10,
    narrow=4.0,
)

BRIEF = Effort(
    name="brief",
    rounds=3,
    seconds=1.2,
    warm_up=0.6,
    connections=(1, 16, 32, 64),
    sizes=(1_000, 100_000, 10_000_000),
    bulk=100_000_000,
    tunnels=(1, 100, 1_000, 5_000),
    settle=2.0,
    idle=30.0,
    storm=5_000,
    storm_rounds=1,
    events=5,
    sockets=(10, 100, 1_000),
    micro=0.3,
    wire=64 * MIB,
    round_trips=(0.0, 0.05, 0.1),
    abusers=50,
    narrow=12.0,
)
