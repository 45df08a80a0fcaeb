"""Views: the state of rings, cards and counters as tables for people, and as values for tests.

`decode.py` and `names.py` know only the data sheet; the others draw with rich, which loads with them.
"""
