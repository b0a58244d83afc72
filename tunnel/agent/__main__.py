"""`python -m tunnel.agent`, and the console script `visiona-agent`."""

from tunnel.agent.cli import main

if __name__ == "__main__":
    main()
