"""What happens inside a running board, told as it happens."""
