"""User-mode networking: a guest reaches the outside through the host's own sockets, which needs no right at all."""
