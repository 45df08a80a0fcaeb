"""Virtio over vhost-user: rings that another process serves, or that another process's driver fills."""
