"""What the embedded stores raise."""

from orchestra.errors import ConfigurationError

INSTALL = "pip install 'ai-orchestra[embedded]'"


class EmbeddedStoresError(ConfigurationError):
    """The private PostgreSQL or Redis cannot be started or stopped; the message names the part and the cure."""

    kind, title = "embedded-stores", "Embedded stores unavailable"
