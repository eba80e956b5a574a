"""Any OpenAI-compatible endpoint behind the `Provider` port: a thin streaming client on aiohttp.

It never retries: retries are budgeted around it, in `orchestra.resilience`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec

from orchestra import limits
from orchestra.adapters.completion import Answer, StreamedAnswer, WholeAnswer, excerpt, wire_messages
from orchestra.errors import (
    ConfigurationError,
    DeadlineExceeded,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRefused,
)
from orchestra.model import Chunk, Delta, Prompt
from orchestra.ports import Clock

ENDING_SECONDS_MAX = 1.0
"""How long the rest of a stream (token counts, ``[DONE]``, the end) is waited for once the answer is whole: a server
that holds the connection open then costs a connection, not the turn."""

ERROR_BYTES_MAX = 16_384

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_KEY = re.compile(r"[\x21-\x7e]*")


class OpenAIProvider:
    """Streams chat completions from one endpoint, over connections that are reused.

    Parameters
    ----------
    base_url : str
        Up to and including the version, such as ``http://127.0.0.1:8000/v1``.
    key : str or None
        Sent as a bearer token; None or empty sends none, as suits local servers.
    model : str
        The model's name at the endpoint.
    timeout_seconds : float
        Deadline of a whole call, from its start to the end of its answer.
    first_token_seconds : float
        Deadline of the first piece of the answer, connecting included.
    connections_max : int
        Calls in flight at once; further ones wait for a connection, within their deadlines.
    clock : Clock
        Wall time, to read a Retry-After that is a date.

    Raises
    ------
    ConfigurationError
        A parameter is impossible; the message never shows the key.
    """

    name = "openai"
    external = True

    def __init__(
        self,
        *,
        base_url: str,
        key: str | None,
        model: str,
        timeout_seconds: float,
        first_token_seconds: float,
        connections_max: int,
        clock: Clock,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigurationError("the provider's base URL must start with http:// or https://", field="base_url")
        if not _KEY.fullmatch(key or ""):
            raise ConfigurationError("the provider's key holds a space, a line end or a non-ASCII letter", field="key")
        if not model:
            raise ConfigurationError("the provider's model must be named", field="model")
        for field, value in (
            ("timeout_seconds", timeout_seconds),
            ("first_token_seconds", first_token_seconds),
            ("connections_max", connections_max),
        ):
            if not value > 0:
                raise ConfigurationError(f"the provider's {field} is {value}: it must be above 0", field=field)
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key = key or ""
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._first_token_seconds = first_token_seconds
        self._connections_max = connections_max
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def aclose(self) -> None:
        """Close every connection: calls in flight fail, and no further one is accepted."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream an answer: any number of `Delta`, then one `Finish`.

        Raises
        ------
        ProviderFailed, ProviderOverloaded, ProviderRefused, DeadlineExceeded
        """
        call = _Call(asyncio.get_running_loop().time(), self._first_token_seconds, self._timeout_seconds)
        response = await self._post(prompt, call)
        try:
            answer = await self._open(response, prompt, call)
            while not answer.ended:
                try:
                    piece = await call.read(response)
                except (ProviderFailed, DeadlineExceeded):
                    if not answer.complete:
                        raise
                    break
                for text in answer.feed(piece):
                    call.has_begun()
                    yield Delta(text)
                if answer.complete:
                    call.is_ending(asyncio.get_running_loop().time())
            yield answer.finish()
        finally:
            # A response read to its end has given its connection back already. Any other is closed at once, so that
            # the provider sees the abort and stops generating (and billing).
            response.close()

    async def _post(self, prompt: Prompt, call: "_Call") -> aiohttp.ClientResponse:
        body = {
            "model": self._model,
            "messages": wire_messages(prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
            **msgspec.to_builtins(prompt.sampling),  # without what is left to the provider
        }
        if self._closed:
            raise ProviderFailed("the provider's client is closed: the service is shutting down")
        if self._session is None:  # made on first use, because it belongs to the running loop
            self._session = _session(self._key, self._connections_max)
        async with call.within_deadline():
            # A redirect is not followed: it would turn the POST into a GET, or carry the prompt elsewhere.
            return await self._session.post(self._url, data=msgspec.json.encode(body), allow_redirects=False)

    async def _open(self, response: aiohttp.ClientResponse, prompt: Prompt, call: "_Call") -> Answer:
        """Return the answer that is about to be read, or raise what status and content type mean."""
        if response.status == 200:
            if response.content_type == "text/event-stream":
                return StreamedAnswer(prompt, self._model, self._key)
            if response.content_type == "application/json":
                return WholeAnswer(prompt, self._model, self._key)
            raise ProviderFailed(f"the provider answers with {response.content_type}, not a stream: check base_url")
        said = b""
        while len(said) < ERROR_BYTES_MAX and (piece := await call.read(response)):
            said += piece
        reason = excerpt(said[:ERROR_BYTES_MAX].decode("utf-8", "replace"), self._key)
        after = retry_after_seconds(response.headers, self._clock)
        if response.status == 429:
            raise ProviderOverloaded(f"the provider is overloaded (429): {reason}", retry_after_seconds=after)
        if response.status == 408 or response.status >= 500:
            raise ProviderFailed(f"the provider failed ({response.status}): {reason}", retry_after_seconds=after)
        if response.status < 400:
            raise ProviderRefused(f"the provider answers with status {response.status}, not 200: check base_url")
        raise ProviderRefused(f"the provider refused the request ({response.status}): {reason}")


class _Call:
    """The deadlines of one call, on the loop's clock, and reading within them."""

    def __init__(self, now: float, first_token_seconds: float, timeout_seconds: float) -> None:
        self._end = now + timeout_seconds
        self._at = min(now + first_token_seconds, self._end)
        self._missed = f"the provider gave no first token within {min(first_token_seconds, timeout_seconds):g} s"
        self._late = f"the provider did not end its answer within {timeout_seconds:g} s"

    def has_begun(self) -> None:
        """The first token is there: from now on the whole call's deadline counts."""
        self._at, self._missed = self._end, self._late

    def is_ending(self, now: float) -> None:
        """The answer is whole: what follows is waited for only shortly."""
        self._end = self._at = min(self._end, now + ENDING_SECONDS_MAX)

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return what has arrived of the body, or wait for more; nothing at its end."""
        async with self.within_deadline():
            return await response.content.readany()

    @asynccontextmanager
    async def within_deadline(self) -> AsyncIterator[None]:
        """Bound what is awaited within, and translate what goes wrong on the way to the provider."""
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(self._missed) from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # aiohttp raises a RuntimeError where its session was closed meanwhile. Addresses stay in the cause.
            raise ProviderFailed(f"the connection to the provider failed ({type(error).__name__})") from error


def _session(key: str, connections_max: int) -> aiohttp.ClientSession:
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",  # compression would hold back tokens, and a small body could inflate unbounded
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # a call's own deadlines are the only ones
        headers=headers,
    )


def retry_after_seconds(headers: Mapping[str, str], clock: Clock) -> float | None:
    """Return when the provider wants to be asked again, at most `limits.RETRY_AFTER_SECONDS_MAX`; None if unsaid.

    Source: RFC 9110, section 10.2.3 (seconds or a date); ``retry-after-ms`` is OpenAI's finer variant.
    """
    milliseconds, said = headers.get("retry-after-ms", "").strip(), headers.get("Retry-After", "").strip()
    if _DECIMAL.fullmatch(milliseconds):
        seconds = float(milliseconds) / 1000
    elif _DECIMAL.fullmatch(said):
        seconds = float(said)
    else:
        try:
            date = parsedate_to_datetime(said)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock.now()
    return min(max(seconds, 0.0), limits.RETRY_AFTER_SECONDS_MAX)
