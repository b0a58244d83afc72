"""Every figure of the project beside its peers, in one run on one machine: ``make bench`` (docs/performance.md)."""
