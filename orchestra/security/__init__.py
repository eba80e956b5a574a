"""Security: one step of the layered defence a file."""
