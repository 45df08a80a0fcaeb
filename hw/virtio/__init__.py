"""Virtio devices: transport registers, the device half of the queues, the network card."""
