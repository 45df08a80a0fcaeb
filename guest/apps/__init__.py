"""Programs that run as guest processes; each is a file with a `main`."""
