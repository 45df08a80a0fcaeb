"""The simulated outside: `--wire sim`, an Internet of a few hosts in this process."""
