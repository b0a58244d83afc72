"""gunicorn's worker as the API needs it: heads and bodies without a thread, sockets lent, connections shared evenly."""
