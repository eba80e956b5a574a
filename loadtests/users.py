"""What a user does: opens a conversation over HTTP, goes on with it for some turns, then opens another.

A closed loop: a user waits for its answer, so a stalled service also slows down those who measure it. That suffices to
tell whether a service works; how it fares under the public's own rate is for the open loop of `sim.workload`.
"""

from itertools import count
from typing import Any

from locust import FastHttpUser, between, task

from loadtests.replies import CHAT_PATH, reply_fault
from sim.workload import SUBJECTS

TURNS_PER_SESSION = 5


class ChatUser(FastHttpUser):
    """Chats with thinking time; every reply must be a whole one, in the session that was asked for."""

    wait_time = between(0.1, 0.5)
    connection_timeout = 10.0
    network_timeout = 30.0
    numbers = count(1)

    def on_start(self) -> None:
        """Take a name, so that memories are recalled across this user's sessions."""
        self.name = f"load-{next(self.numbers)}"
        self.session_id: str | None = None
        self.turns = 0

    @task
    def chat(self) -> None:
        """Hold one turn."""
        asked = self.session_id
        body = {
            "message": f"{SUBJECTS[self.turns % len(SUBJECTS)]}, please",
            "session_id": asked,
            "user_id": self.name,
        }
        with self.client.post(CHAT_PATH, json=body, name=CHAT_PATH, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                self.session_id = None
                return
            reply = _json(response)
            if fault := reply_fault(reply, asked):
                response.failure(fault)
                self.session_id = None
                return
        self.turns += 1
        self.session_id = reply["session_id"] if self.turns % TURNS_PER_SESSION else None


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
