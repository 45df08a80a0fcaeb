"""Figures, each beside a yardstick that is measured in the same run.

`make bench` runs all of it. The machine under a benchmark is shared and noisy, so rounds of ours and of the yardstick
take turns, medians are compared, and the ratio is the result; an absolute figure means little away from its run.

Read: `harness.py` (rounds and ratios), `yardsticks.py` (the minimal loops), then one file for each figure.
"""
