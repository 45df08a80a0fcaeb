"""The network stack: sans-I/O, no globals; it knows no driver, ring, bus or system call."""
