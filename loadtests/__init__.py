"""Load from outside: Locust users that chat with a running service, and the gates that judge what they saw."""
