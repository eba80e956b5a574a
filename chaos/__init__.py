"""Chaos: the same scenarios on real servers and sockets."""
