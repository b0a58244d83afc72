"""Both embedded servers as one thing: what of them is needed, how they are prepared, where they are reached."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from cloud.embedded import account as accounts
from cloud.embedded import postgres, state, valkey
from cloud.embedded.program import Program
from cloud.embedded.state import ServerState, State

LOCK = "embedded.lock"


@dataclass(frozen=True, slots=True)
class Needs:
    """Which of the two servers no setting names."""

    postgres: bool
    valkey: bool

    def __bool__(self) -> bool:
        return self.postgres or self.valkey


def needs(environ: Mapping[str, str]) -> Needs:
    """What has to be embedded (product.md, "The embedded default is the real thing").

    In production nothing is; a database that is named in part is not either: the settings refuse it with their own
    line. An empty value counts as unset.
    """
    if environ.get("VISIONA_ENV", "").strip().lower() == "production":
        return Needs(postgres=False, valkey=False)
    named = any(environ.get(f"VISIONA_DB_{name}", "").strip() for name in ("HOST", "USER", "NAME"))
    return Needs(postgres=not named, valkey=not environ.get("VISIONA_REDIS_URL", "").strip())


def addresses(current: State, wanted: Needs, database: str = postgres.DATABASE) -> dict[str, str]:
    """The settings that lead to the embedded servers."""
    found: dict[str, str] = {}
    if wanted.postgres:
        found |= {
            "VISIONA_DB_HOST": "127.0.0.1",
            "VISIONA_DB_PORT": str(current.postgres.port),
            "VISIONA_DB_USER": postgres.USER,
            "VISIONA_DB_PASSWORD": current.postgres.password,
            "VISIONA_DB_NAME": database,
            "VISIONA_DB_SSLMODE": "disable",
        }
    if wanted.valkey:
        found["VISIONA_REDIS_URL"] = f"redis://:{current.valkey.password}@127.0.0.1:{current.valkey.port}/0"
    return found


@dataclass(slots=True)
class Servers:
    """The servers below one ``var/`` folder, for the one process that holds its lock.

    ``programs`` is what has to run, in this order; ``started`` must be told of each process.
    """

    folder: Path
    wanted: Needs
    durable: bool
    current: State
    programs: tuple[Program, ...]

    def started(self, name: str, pid: int) -> None:
        """Remember the process, so that the next start can end it should it outlive us."""
        entry: ServerState = getattr(self.current, name)
        self.current = replace(self.current, **{name: entry.with_process(pid)})
        state.save(self.folder, self.current)

    def addresses(self) -> dict[str, str]:
        """The settings that lead here."""
        return addresses(self.current, self.wanted)

    def hand_on(self, environ: MutableMapping[str, str]) -> None:
        """Put the settings that lead here into an environment."""
        environ.update(self.addresses())


def prepare(folder: Path, wanted: Needs, say: Callable[[str], None], *, durable: bool = True) -> Servers:
    """Make both data folders ready to be served. The caller holds the lock. Raises EmbeddedError."""
    folder = folder.resolve()
    logs = folder / "log"
    current = state.load(folder)
    account = accounts.server_account(folder / "postgres")
    programs = []
    if wanted.postgres:
        entry = postgres.prepare(folder / "postgres", current.postgres, account, say, durable=durable)
        entry = replace(entry, port=state.free_port(entry.port))
        current = replace(current, postgres=entry)
        programs.append(postgres.program(folder / "postgres", entry, account, logs / "postgres.log", durable=durable))
    if wanted.valkey:
        entry = replace(current.valkey, port=state.free_port(current.valkey.port))
        entry = valkey.prepare(folder / "valkey", entry, account, say, durable=durable)
        current = replace(current, valkey=entry)
        programs.append(valkey.program(folder / "valkey", entry, account, logs / "valkey.log"))
    state.save(folder, current)
    return Servers(folder, wanted, durable, current, tuple(programs))


def failure(program: Program) -> str:
    """Why a server did not start, in one line."""
    return postgres.failure(program.log) if program.name == "postgres" else valkey.failure(program.log)
