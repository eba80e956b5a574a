"""What version 1 of the API can say survives the way through version 2 and back."""

from hypothesis import given
from hypothesis import strategies as st

from orchestra import errors, limits
from orchestra.gateway.problems import problem_of
from orchestra.gateway.versions import (
    ReplyV1,
    RequestV1,
    error_to_v1,
    reply_to_v1,
    request_to_v2,
)
from orchestra.model import ChatReply, ChatRequest, Usage

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,20}", fullmatch=True)
TEXTS = st.text(max_size=50)
COUNTS = st.integers(0, limits.TOKENS_COUNTED_MAX)
REQUESTS_V1 = st.builds(RequestV1, text=TEXTS, conversation_id=st.none() | IDS, user=st.none() | IDS)
REPLIES_V1 = st.builds(
    ReplyV1,
    id=IDS,
    conversation_id=IDS,
    response=TEXTS,
    status=st.sampled_from(("complete", "incomplete")),
    tokens=COUNTS,
)
REQUESTS_V2 = st.builds(ChatRequest, TEXTS, st.none() | IDS, st.none() | IDS, st.booleans())
REPLIES_V2 = st.builds(
    ChatReply,
    turn_id=IDS,
    session_id=IDS,
    correlation_id=IDS,
    reply=TEXTS,
    engine=IDS,
    model=IDS,
    finish_reason=st.sampled_from(("stop", "length", "content_filter")),
    usage=st.builds(Usage, COUNTS, COUNTS),
)
KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.OrchestraError)]


def request_to_v1(request: ChatRequest) -> RequestV1:
    """Return a request of version 2 as version 1 says it, which cannot ask for a stream."""
    return RequestV1(text=request.message, conversation_id=request.session_id, user=request.user_id)


def reply_to_v2(reply: ReplyV1) -> ChatReply:
    """Return a reply of version 1 as version 2 says it; of what version 1 does not say, nothing is made up."""
    return ChatReply(
        turn_id=reply.id,
        session_id=reply.conversation_id,
        correlation_id="",
        reply=reply.response,
        engine="",
        model="",
        finish_reason="stop" if reply.status == "complete" else "length",
        usage=Usage(completion_tokens=reply.tokens),
    )


@given(REQUESTS_V1)
def test_a_request_comes_back_as_it_was(request: RequestV1) -> None:
    assert request_to_v1(request_to_v2(request)) == request


@given(REPLIES_V1)
def test_a_reply_comes_back_as_it_was(reply: ReplyV1) -> None:
    assert reply_to_v1(reply_to_v2(reply)) == reply


@given(REQUESTS_V2)
def test_of_a_request_of_version_2_only_the_stream_is_lost(request: ChatRequest) -> None:
    back = request_to_v2(request_to_v1(request))
    assert (back.message, back.session_id, back.user_id) == (request.message, request.session_id, request.user_id)
    assert not back.stream


@given(REPLIES_V2)
def test_what_version_1_says_of_a_reply_stays_the_same_however_often_it_goes_around(reply: ChatReply) -> None:
    once = reply_to_v1(reply)
    assert reply_to_v1(reply_to_v2(once)) == once
    assert (once.response, once.id, once.conversation_id) == (reply.reply, reply.turn_id, reply.session_id)


@given(
    st.sampled_from(KINDS),
    TEXTS,
    st.sampled_from((None, "$.message", "$.session_id", "$.user_id", "$.text", "API-Version")),
    st.none() | st.floats(0, 3600),
)
def test_an_error_keeps_status_kind_and_when_to_come_back(
    kind: type[errors.OrchestraError], detail: str, field: str | None, seconds: float | None
) -> None:
    problem = problem_of(kind(detail, field=field, retry_after_seconds=seconds), "c-1")
    error = error_to_v1(problem)
    assert (error.status, error.error, error.request_id) == (kind.status, kind.kind, "c-1")
    assert error.retry_after == problem.retry_after_seconds
    assert (error.field is None) == (field is None)
    assert error.field not in {"$.message", "$.session_id", "$.user_id"}
