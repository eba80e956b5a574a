"""The client of an AI Orchestra, in three lines, also in a notebook:

    from orchestra.sdk import Client
    chat = Client("http://127.0.0.1:8000").session()
    print(chat.say("hello").reply)

`Client` waits, `AsyncClient` is for an event loop; else they are the same. A session says whole turns (`say`), turns in
pieces (`stream`), or is connected to (`connect`): a WebSocket over which everybody in the session is heard, and which
comes back by itself. Whatever is cut where, a message is one turn, and each piece of its text comes once.

Every error is an `OrchestraError`: the service's own, by its class (`Overloaded`, `TurnCancelled`, ...), with `status`,
`field`, `detail`, `correlation_id`, `retryable` and `retry_after_seconds`; or `Unreachable`, where none answers.
"""

from orchestra.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Maintenance,
    OrchestraError,
    Overloaded,
    SessionUnknown,
    TurnCancelled,
)
from orchestra.model import ChatReply, History, Profile, SessionStatus, Turn
from orchestra.sdk.asyncclient import AsyncClient, AsyncConversation, AsyncSession, AsyncTurnStream
from orchestra.sdk.client import Client, Conversation, Session, TurnStream
from orchestra.sdk.events import Answered, Began, Connected, Disconnected, Event, Failed, Level, Restarted, Text
from orchestra.sdk.failures import UnexpectedAnswer, Unreachable
from orchestra.sdk.retries import Retries

__all__ = [
    "Answered",
    "AsyncClient",
    "AsyncConversation",
    "AsyncSession",
    "AsyncTurnStream",
    "Began",
    "ChatReply",
    "Client",
    "Connected",
    "Conversation",
    "DeadlineExceeded",
    "Disconnected",
    "Event",
    "Failed",
    "History",
    "InvalidRequest",
    "Level",
    "Maintenance",
    "OrchestraError",
    "Overloaded",
    "Profile",
    "Restarted",
    "Retries",
    "Session",
    "SessionStatus",
    "SessionUnknown",
    "Text",
    "Turn",
    "TurnCancelled",
    "TurnStream",
    "UnexpectedAnswer",
    "Unreachable",
]
