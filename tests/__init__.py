"""The tests. Helpers are imported as `tests.requirements` and so on; `make test` runs everything."""
