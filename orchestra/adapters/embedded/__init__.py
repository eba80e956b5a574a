"""A private, real PostgreSQL (with pgvector) and Redis under a data directory, for a machine that has neither.

    exit_on_sigterm()
    stores = start(data_dir)        # once, in the main process, before any worker is spawned
    try:
        serve(stores.database_url, stores.redis_url)
    finally:
        stores.stop()               # the last user of the data directory stops both servers

`exit_on_sigterm` turns SIGTERM into SystemExit, so that the `finally` runs; `start` also registers `stop` with
atexit. Sanic replaces that handler by its own while it serves, and returns from `Sanic.serve` on SIGTERM: both lead
to `stop`. After a `kill -9` nothing can stop the servers; the next `start` on the directory finds and reuses them.

The data directory holds::

    lock  users.json            who uses the servers (`ownership`)
    postgres/  redis/           the data
    postgres.lock  redis.lock   held by the servers themselves, as long as one of their processes lives (`server`)
    postgres.log  redis.log     what they say

and `users.json` names a short private directory for the sockets (`account`).

Nobody but the account that owns the servers (and root) can connect, and no password exists that could leak: both
listen on a unix socket only, in a directory of mode 0700. TCP on 127.0.0.1 was rejected: every local user reaches it,
so it takes a password, which then stands in a URL, an environment and a process list.
"""

from orchestra.adapters.embedded.errors import EmbeddedStoresError
from orchestra.adapters.embedded.stores import EmbeddedStores, embedded_stores, exit_on_sigterm, start

__all__ = ["EmbeddedStores", "EmbeddedStoresError", "embedded_stores", "exit_on_sigterm", "start"]
