"""What a reply must be, seen from outside. Apart from `loadtests.users`, since importing Locust patches the process."""

from typing import Any

CHAT_PATH = "/chat/v2/chat"


def reply_fault(reply: Any, session_id: str | None) -> str | None:
    """Say what is wrong with the decoded body of a 200, or None where nothing is."""
    if not isinstance(reply, dict):
        return "the reply is no JSON object"
    if not isinstance(reply.get("reply"), str) or not reply["reply"]:
        return "the reply has no text"
    if not isinstance(reply.get("session_id"), str) or not reply["session_id"]:
        return "the reply names no session"
    if session_id is not None and reply["session_id"] != session_id:
        return "the reply is of another session"
    return None
