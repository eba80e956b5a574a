"""Resilience: the policies around a call, one a file, and the guard that composes them."""
