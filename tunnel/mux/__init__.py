"""A yamux session over any byte transport, under Trio. It knows no WebSocket and nothing of what streams carry."""
