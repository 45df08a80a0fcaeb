"""The driver half of the rings, written apart from the machine's half."""
