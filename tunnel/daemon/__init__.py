"""The tunnel daemon: agents come in, clients are carried to them. `node` starts and ends it."""
