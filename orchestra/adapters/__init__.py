"""What meets the outside: each module implements a port on a real clock, store or provider."""
