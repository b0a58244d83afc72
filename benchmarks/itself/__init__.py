"""The control plane with one more view, which answers by itself: what the DRF lane is measured against."""
