"""What all stores check and say alike, so that a modelled store cannot be told from a real one by its refusals."""

import math

from orchestra import limits
from orchestra.errors import ConfigurationError, SessionUnknown, StaleSession, StoreUnavailable
from orchestra.model import Session, Turn

WINDOW_BUCKETS = 10
"""Parts that a window of the fleet's calls is counted in, and forgotten by."""


def unavailable(cause: Exception, store: str = "a store") -> StoreUnavailable:
    """Say that a store is away; which one, and why, is for the log, unless the `store` is named."""
    error = StoreUnavailable(f"{store} cannot be reached or does not answer in time: try again", retry_after_seconds=1)
    error.__cause__ = cause
    return error


def stale_session(session: Session, expected: Session | None) -> StaleSession:
    """Say that another writer saved this session first."""
    then = "absent" if expected is None else f"at version {expected.version}.{expected.revision}"
    return StaleSession(f"session {session.id} is no longer {then}: another request changed it; send it again")


def stale_turn(turn: Turn) -> StaleSession:
    """Say that another writer appended a turn of this number first."""
    return StaleSession(
        f"session {turn.session_id} already has a turn {turn.number}: another request changed it; send it again"
    )


def stale_profile(session_id: str, revision: int) -> StaleSession:
    """Say that another writer changed this session's profile first."""
    return StaleSession(
        f"the profile of session {session_id} is no longer at revision {revision - 1}: another request changed it; "
        "send it again"
    )


def session_gone(session_id: str) -> SessionUnknown:
    """Say that a session was deleted, or is another's, which must not be told apart."""
    return SessionUnknown(
        f"there is no session {session_id!r} (any more): leave session_id out to start a new one", field="$.session_id"
    )


def check_embedding(embedding: tuple[float, ...]) -> None:
    """Refuse an embedding that the stores' schema has no room for."""
    if len(embedding) != limits.EMBEDDING_DIMENSIONS:
        raise ConfigurationError(
            f"the embedding has {len(embedding)} components and the memory store holds {limits.EMBEDDING_DIMENSIONS}: "
            f"configure an embedder of {limits.EMBEDDING_DIMENSIONS} dimensions"
        )


def similarity(cosine: float) -> float:
    """Clear a computed cosine of rounding beyond [-1, 1], and of the NaN that a zero vector gives."""
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else 0.0
