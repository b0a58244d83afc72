"""Two ends of a tunnel by themselves, a slow link between them, and a client that breaks the rules."""
