"""One HTTP server process."""
