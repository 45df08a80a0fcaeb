"""Drivers for the cards a machine may have, and the registry that probes for them."""
