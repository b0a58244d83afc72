"""The agent that runs on a box: it dials the daemon and lets it reach one local address.

It never imports Django or prometheus: a box has 40 MB for it.
"""
