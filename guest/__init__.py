"""The guest: a kernel, its drivers and its programs, which boot on whatever serves `guest.platform.Platform`."""
