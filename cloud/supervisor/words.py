"""What ``make dev`` says to a newcomer."""

from pathlib import Path

from cloud.supervisor.bringup import Login

_JSON = "-H 'Content-Type: application/json'"


def welcome(url: str, login: Login, log: Path, seconds: float) -> str:
    """All that one needs to go on; each curl line works by itself when it is pasted."""
    bearer = f"-H 'Authorization: Bearer {login.token}'"
    body = f"""-d '{{"email":"{login.email}","password":"{login.password}"}}'"""
    return f"""
VisionA Cloud is ready ({seconds:.1f} s). Ctrl-C stops it.

  Console    {url}/
  API docs   {url}/api/docs/
  Admin      {url}/admin/
  Log in as  {login.email} with the password {login.password}
  Logs       {log}/*.log

Try it (log in, see the box, scan its USB bus through the tunnel):

  curl -s {url}/api/auth/login {_JSON} {body}
  curl -s {url}/api/pairing/status {bearer}
  curl -s {url}/api/devices/scan {bearer}
"""
