"""The AsyncAPI document says what the code does: every frame, each example through the codec, the route's address."""

import json
from typing import get_args

import jsonschema
import msgspec
import pytest

from orchestra.frames import ClientFrame, ServerFrame
from orchestra.gateway import asyncapi, websocket

DOCUMENT = json.loads(msgspec.json.encode(asyncapi.document()))
CLIENTS, SERVERS = get_args(ClientFrame), get_args(ServerFrame)
TAGS = {each.__struct_config__.tag: each for each in (*CLIENTS, *SERVERS)}


def resolve(reference):
    found = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def references(part):
    if isinstance(part, dict):
        for key, value in part.items():
            yield from [value] if key == "$ref" else references(value)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_every_frame_is_a_message_of_the_channel_with_an_example():
    assert len(TAGS) == len(CLIENTS) + len(SERVERS)
    assert set(DOCUMENT["components"]["messages"]) == set(TAGS)
    assert set(DOCUMENT["channels"]["session"]["messages"]) == set(TAGS)
    for tag, kind in TAGS.items():
        message = DOCUMENT["components"]["messages"][tag]
        assert message["payload"] == {"$ref": f"#/components/schemas/{kind.__name__}"}
        assert message["examples"], tag
        assert message["summary"].endswith((".", ",", ":"))


@pytest.mark.parametrize("tag", TAGS)
def test_each_example_passes_the_codec_unchanged_and_the_documents_own_schema(tag):
    schema = {"$ref": f"#/components/schemas/{TAGS[tag].__name__}", "components": DOCUMENT["components"]}
    for example in DOCUMENT["components"]["messages"][tag]["examples"]:
        union = ClientFrame if TAGS[tag] in CLIENTS else ServerFrame
        decoded = msgspec.json.decode(json.dumps(example["payload"]), type=union)
        assert type(decoded) is TAGS[tag]
        assert json.loads(msgspec.json.encode(decoded)) == example["payload"]
        jsonschema.validate(example["payload"], schema)


def test_clients_frames_are_received_and_the_services_sent_each_by_one_operation():
    operations = DOCUMENT["operations"]
    expected = {("receive", each.__struct_config__.tag) for each in CLIENTS}
    expected |= {("send", each.__struct_config__.tag) for each in SERVERS}
    found = [
        (operation["action"], message["$ref"].rpartition("/")[2])
        for operation in operations.values()
        for message in operation["messages"]
    ]
    assert sorted(found) == sorted(expected)
    assert all(operation["channel"] == {"$ref": "#/channels/session"} for operation in operations.values())


def test_every_reference_leads_somewhere():
    found = list(references(DOCUMENT))
    assert len(found) > 50
    for each in found:
        assert resolve(each)


def test_the_address_is_the_routes():
    pattern = websocket.PATH.replace(":str>", "}").replace("<", "{")
    assert DOCUMENT["channels"]["session"]["address"] == pattern
    assert set(DOCUMENT["channels"]["session"]["parameters"]) == {"client_id", "session_id"}


def test_the_service_serves_it(visit):
    async def story(client):
        answer = await client.ask("GET", "/docs/asyncapi.json")
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert json.loads(answer.text) == DOCUMENT

    async def silent(prompt):
        raise AssertionError("nobody asks")
        yield

    visit(story, silent)
