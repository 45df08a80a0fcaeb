"""What runs programs and serves them: processes and their scheduler, descriptors, the system calls."""
