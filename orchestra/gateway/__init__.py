"""The gateway: the Sanic app that clients talk to."""
