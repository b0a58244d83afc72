"""The public lane: clients' requests on port 3800, from their heads to the exchange."""
