"""What stands behind ``make dev``: it installs, starts, watches and stops everything (product.md, "Two commands").

``install`` runs on the machine's own Python and knows the standard library alone; the rest runs in the environment
that it made.
"""
