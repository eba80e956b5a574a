"""Chat: one turn, and the sessions that turns belong to."""
