"""The simulated world: an asyncio loop on SimPy, models around the real orchestrator, and what a run proves."""
