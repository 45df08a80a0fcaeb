"""The machine: all that lies behind the bus. It knows nothing of the guest that boots on it."""
