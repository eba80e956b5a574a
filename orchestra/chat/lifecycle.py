"""The life of a session: made with its first turn, active while it is in use, then idle, and expired after a day.

Each state is a function of times, so nothing has to happen for a session to become idle or to expire.
"""

from msgspec import Struct

from orchestra import limits
from orchestra.model import Profile, SessionState


class SessionView(Struct, frozen=True):
    """How a session stands.

    Parameters
    ----------
    session_id : str
    state : str
        ``active`` while a turn runs or a connection stands, and for `limits.SESSION_IDLE_SECONDS` after its last use;
        then ``idle``; ``expired`` when `limits.SESSION_TTL_SECONDS` have passed without use. An expired session's
        conversation can still be read.
    turns : int
        All turns it ever had.
    messages, tokens, bytes : int
        What the next prompt has of it: messages, an estimate of tokens (instruction and context included), and what
        it is stored in. Bounded by `limits.SESSION_*`.
    created_at, updated_at, expires_at : float
        Unix times in seconds; `updated_at` is its last use.
    profile : Profile
    """

    session_id: str
    state: SessionState
    turns: int
    messages: int
    tokens: int
    bytes: int
    created_at: float
    updated_at: float
    expires_at: float
    profile: Profile


def state_of(updated_at: float, now: float, *, held: bool) -> SessionState:
    """Return the state at `now` of a session that was last in use at `updated_at` (Unix times in seconds).

    Parameters
    ----------
    held : bool
        Whether a turn of it runs or a connection of it stands.
    """
    unused_seconds = now - updated_at
    if held or unused_seconds < limits.SESSION_IDLE_SECONDS:
        return "active"
    return "idle" if unused_seconds < limits.SESSION_TTL_SECONDS else "expired"
