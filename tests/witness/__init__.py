"""Software that is not ours, and how the tests make it meet our device or our driver."""
