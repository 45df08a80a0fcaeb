"""Tests with real counterparts that take too long for `make test`; `make interop` runs them."""
