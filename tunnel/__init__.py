"""The tunnel: what the daemon, the agent and the control plane's side of the seam are made of."""

__version__ = "0.1.0"
"""The one version: of the wheel (read from here by its build), the agent, the daemon and `/api/system/info`."""
