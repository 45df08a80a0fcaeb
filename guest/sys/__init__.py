"""What runs programs: processes, mailboxes, the scheduler."""
