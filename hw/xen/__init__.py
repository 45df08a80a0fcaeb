"""A small Xen: domains, grants, event channels, the store, and the back end of a network interface."""
