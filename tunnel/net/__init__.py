"""What both ends need of Trio and the system: sockets, waiting, pooling of places. It knows no frames and no HTTP."""
