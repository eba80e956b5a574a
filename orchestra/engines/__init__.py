"""Engines: what contributes to a turn. Sibling files share one Protocol, `engine.Engine`."""
