"""AI Orchestra: a chat orchestrator that can be rehearsed."""

__version__ = "0.1.0"
