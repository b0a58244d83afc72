"""What the agent was told: by flag, by environment, by file, in this order of precedence.

Reads files and nothing else; names, kinds and defaults are those of `tunnel.contract.SETTINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dotenv import dotenv_values

from tunnel.agent.addresses import AddressError, Endpoint, LocalAddress, parse_local, parse_url
from tunnel.contract import (
    LOGIN_PREFIX,
    PAIRING_PREFIX,
    PREFIX,
    SESSION_PREFIX,
    SettingError,
    read_settings,
    token_prefix,
)

FLAGS: Final = {
    "url": "AGENT_URL",
    "local": "AGENT_LOCAL",
    "pairing_token": "AGENT_PAIRING_TOKEN",
    "credentials": "AGENT_CREDENTIALS",
    "ca_file": "AGENT_CA_FILE",
    "serial": "AGENT_SERIAL",
    "chip": "AGENT_CHIP",
    "firmware": "AGENT_FIRMWARE",
    "yamux_role": "YAMUX_ROLE",
    "log_level": "LOG_LEVEL",
}
"""Flag → setting."""

_HEADER_TEXT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?\Z")
_QUOTES: Final = "\"'`<> \t\r\n\u00ab\u00bb\u2018\u2019\u201c\u201d"
"""What comes along when a token or an address is copied, and what `docker run --env-file` leaves around a value."""
_TOKEN_NAME: Final = PREFIX + FLAGS["pairing_token"]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything the runner needs to know. `endpoint` is None when only the credential file tells the URL."""

    endpoint: Endpoint | None
    local: LocalAddress
    pairing_token: str
    credentials: Path
    ca_file: Path | None
    serial: str
    chip: str
    firmware: str
    yamux_role: Literal["client", "server"]  # the agent's own: the opposite of the daemon's
    log_level: str
    token_problem: str = ""  # why the pairing token that was given is not in `pairing_token`
    token_file: Path | None = None  # where a new pairing token may turn up while the agent runs
    exit_on_refusal: bool = False

    def __repr__(self) -> str:  # never the token
        return f"<AgentSettings {self.endpoint.url if self.endpoint else None} local={self.local}>"


def default_credentials(environ: Mapping[str, str]) -> Path:
    """systemd's StateDirectory if there is one, else the user's state folder (XDG base directory specification)."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0]) / "credentials.json"
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(home) / "visiona-agent" / "credentials.json"


def read_file(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of a settings file; a name may stand with or without `VISIONA_`. Raises SettingError."""
    try:
        with path.open(encoding="utf-8") as lines:
            found = dotenv_values(stream=lines, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    named = ((name if name.startswith(PREFIX) else PREFIX + name, value) for name, value in found.items())
    return {name: value for name, value in named if value is not None}


def read_pairing_token(path: Path) -> str:
    """The pairing token in a settings file now; "" if there is none or the file cannot be read."""
    try:
        return clean_token(_without_quotes(read_file(path)).get(_TOKEN_NAME, ""))
    except SettingError:
        return ""


def clean_token(text: str) -> str:
    """The token, without blanks and quotes around it; "" if there is none.

    Raises SettingError for what is no token of an agent's; the text never quotes it.
    """
    token = text.strip(_QUOTES)
    found = token_prefix(token)
    if not token or found in (PAIRING_PREFIX, SESSION_PREFIX):
        return token
    if found == LOGIN_PREFIX:
        raise SettingError(f"{_TOKEN_NAME}: this is a user's login token; create a pairing token (it starts with vAc_)")
    start = token[:4] if token.startswith((PAIRING_PREFIX, SESSION_PREFIX)) else ""
    seen = f"; this one starts so and has {len(token)} characters" if start else ""
    raise SettingError(f"{_TOKEN_NAME}: not a pairing token, which is vAc_ and 32 digits of 0-9 and a-f{seen}")


def _without_quotes(values: Mapping[str, str]) -> dict[str, str]:
    """The values without a pair of quotes around each: a shell takes them away, `--env-file` of Docker does not."""
    return {
        name: value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
        for name, value in ((name, value.strip()) for name, value in values.items())
    }


def load(
    flags: Mapping[str, str | None], environ: Mapping[str, str], config: Path | None
) -> tuple[AgentSettings, list[str]]:
    """The settings and the warnings to log. `flags` maps the keys of FLAGS to text or None.

    Raises SettingError with one line that names the setting and never quotes a token.
    """
    merged: dict[str, str] = {}
    path = config or (Path(environ[PREFIX + "AGENT_CONFIG"]) if environ.get(PREFIX + "AGENT_CONFIG") else None)
    if path is not None:
        merged.update(read_file(path))
    merged.update({name: value for name, value in environ.items() if name.startswith(PREFIX) and value.strip()})
    merged.update({PREFIX + FLAGS[flag]: value for flag, value in flags.items() if value})
    values, warnings = read_settings(_without_quotes(merged), "agent")
    try:
        endpoint = parse_url(values["AGENT_URL"]) if values["AGENT_URL"] else None
    except AddressError as error:
        raise SettingError(f"{PREFIX}AGENT_URL: {error}") from None
    try:
        local = parse_local(values["AGENT_LOCAL"])
    except AddressError as error:
        raise SettingError(f"{PREFIX}AGENT_LOCAL: {error}") from None
    token = problem = ""
    try:
        token = clean_token(values["AGENT_PAIRING_TOKEN"])
    except SettingError as error:
        problem = str(error)  # a box that is paired already needs no other token: whoever has none says this then
        warnings = [*warnings, problem]
    for name in ("AGENT_SERIAL", "AGENT_CHIP", "AGENT_FIRMWARE"):
        if values[name] and not _HEADER_TEXT.match(values[name]):
            raise SettingError(f"{PREFIX}{name}: 1 to 128 printable ASCII characters are needed")
    ca_file = Path(values["AGENT_CA_FILE"]) if values["AGENT_CA_FILE"] else None
    if ca_file is not None and not ca_file.is_file():
        raise SettingError(f"{PREFIX}AGENT_CA_FILE: {ca_file} is not a file")
    credentials = Path(values["AGENT_CREDENTIALS"] or default_credentials(environ)).expanduser()
    settings = AgentSettings(
        endpoint=endpoint,
        local=local,
        pairing_token=token,
        credentials=credentials,
        ca_file=ca_file,
        serial=values["AGENT_SERIAL"],
        chip=values["AGENT_CHIP"],
        firmware=values["AGENT_FIRMWARE"],
        yamux_role="server" if values["YAMUX_ROLE"] == "client" else "client",
        log_level=values["LOG_LEVEL"],
        token_problem=problem,
        token_file=None if flags.get("pairing_token") or environ.get(_TOKEN_NAME, "").strip() else path,
    )
    return settings, warnings
