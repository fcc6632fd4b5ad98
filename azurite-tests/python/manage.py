"""Drives a served management API with the released Durable Functions client, unmodified.

    python manage.py     standard input: what `taskhub serve --output json` prints

The client calls the local address of the binding. The hub needs a worker with the sample functions. It
encodes inputs and event data twice: what arrives is a string that holds JSON. Ends with code 0 when
everything was as it should be.
"""

import asyncio
import json
import re
import sys
import time
from datetime import datetime, timedelta, timezone

from azure.durable_functions import DurableOrchestrationClient, EntityId, OrchestrationRuntimeStatus as Status

HELLO = ["Hello Tokyo!", "Hello Seattle!", "Hello London!"]


class Request:
    """As much of a request to a function as the client looks at."""

    def __init__(self, url):
        self.url = url


async def until(client, instance_id, wanted):
    """Asks until the status is as wanted."""
    end = time.monotonic() + 60
    while True:
        status = await client.get_status(instance_id, show_history=True, show_input=True)
        if wanted(status):
            return status
        assert time.monotonic() < end, f"{instance_id} is not as wanted: {status.to_json()}"
        await asyncio.sleep(0.1)


async def until_state(client, entity, wanted):
    """Reads an entity until its state is as wanted; None: until it has none."""
    end = time.monotonic() + 60
    while True:
        read = await client.read_entity_state(entity)
        if (read.entity_exists, read.entity_state) == (wanted is not None, wanted):
            return
        assert time.monotonic() < end, f"{entity.name} {entity.key} is not {wanted}: {read.entity_state}"
        await asyncio.sleep(0.1)


def in_status(name):
    return lambda status: status.runtime_status == name


def waits_for_event(status):
    return any(event["EventType"] == "TimerCreated" for event in getattr(status, "historyEvents", []))


async def fails(call, text):
    try:
        await call
    except Exception as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")


async def drive(binding):
    client = DurableOrchestrationClient(json.dumps(binding))
    began = datetime.now(timezone.utc) - timedelta(hours=1)

    # Start, status with history, an id of its own.
    assert await client.start_new("HelloSequence", "py-hello", {"city": "Lyon"}) == "py-hello"
    hello = await until(client, "py-hello", in_status(Status.Completed))
    assert (hello.name, hello.instance_id, hello.output) == ("HelloSequence", "py-hello", HELLO), hello.to_json()
    assert json.loads(hello.input_) == {"city": "Lyon"}, hello.input_
    assert hello.created_time <= hello.last_updated_time
    events = [event["EventType"] for event in hello.historyEvents]
    assert events == ["ExecutionStarted"] + 3 * ["TaskCompleted"] + ["ExecutionCompleted"], events
    random = await client.start_new("EchoInput", client_input="x y")
    assert re.fullmatch("[0-9a-f]{32}", random), random
    assert json.loads((await until(client, random, in_status(Status.Completed))).output) == "x y"
    assert not await client.get_status("py-nobody")
    await fails(client.start_new("NoSuchFunction"), "doesn't exist")

    # Events; an id in use.
    await client.start_new("Approval", "py-approval")
    await until(client, "py-approval", waits_for_event)
    await fails(client.start_new("Approval", "py-approval"), "already exists")
    await client.raise_event("py-approval", "ApprovalEvent", True)
    approval = await until(client, "py-approval", in_status(Status.Completed))
    assert approval.output == 'approved:"true"', approval.output
    await fails(client.raise_event("py-approval", "ApprovalEvent", True), "gone")
    await fails(client.raise_event("py-nobody", "ApprovalEvent", True), "No instance")

    # Suspend, resume, terminate.
    await client.start_new("Approval", "py-paused")
    await until(client, "py-paused", waits_for_event)
    await client.suspend("py-paused", "a while")
    assert (await until(client, "py-paused", in_status(Status.Suspended))).output == "a while"
    await client.raise_event("py-paused", "ApprovalEvent", {"by": "me"})
    await client.resume("py-paused", "go on")
    await until(client, "py-paused", in_status(Status.Completed))
    await client.start_new("Approval", "py-doomed")
    await until(client, "py-doomed", waits_for_event)
    await client.terminate("py-doomed", "not wanted & more")
    assert (await until(client, "py-doomed", in_status(Status.Terminated))).output == "not wanted & more"
    await client.terminate("py-doomed", "twice")
    await fails(client.terminate("py-nobody", "x"), "No instance")

    # Rewind: what failed runs again, what completed does not. Restart: under a new id.
    await client.start_new("RewindMe", "py-rewound")
    await until(client, "py-rewound", in_status(Status.Failed))
    await client.rewind("py-rewound", "fixed")
    await until(client, "py-rewound", in_status(Status.Completed))
    await fails(client.rewind("py-rewound", "again"), "only supported on failed")
    restarted = await client.restart("py-hello")
    assert restarted["id"] != "py-hello", restarted
    assert (await until(client, restarted["id"], in_status(Status.Completed))).output == HELLO

    # Entities: signals and states, names in any case, keys in their own; an orchestration that calls one.
    steps = EntityId("Counter", "py-steps")
    assert not (await client.read_entity_state(steps)).entity_exists
    for _ in range(3):
        await client.signal_entity(steps, "add")
    await until_state(client, EntityId("counter", "py-steps"), 3)
    assert not (await client.read_entity_state(EntityId("counter", "PY-steps"))).entity_exists
    await client.signal_entity(steps, "reset")
    await until_state(client, steps, 0)
    await client.signal_entity(steps, "delete")
    await until_state(client, steps, None)
    await client.start_new("CallEntity", "py-caller")
    called = await until(client, "py-caller", in_status(Status.Completed))
    assert called.output == {"before": "5", "after": "12", "bad": "no operation nonsense"}, called.output
    await until_state(client, EntityId("Counter", "c1"), 12)

    # Wait for completion, or an answer with the addresses.
    request = Request(binding["baseUrl"])
    await client.start_new("HelloSequence", "py-fast")
    fast = await client.wait_for_completion_or_create_check_status_response(request, "py-fast", 60000, 200)
    assert (fast.status_code, json.loads(fast.get_body())) == (200, HELLO)
    await client.start_new("Approval", "py-slow")
    slow = await client.wait_for_completion_or_create_check_status_response(request, "py-slow", 300, 100)
    assert slow.status_code == 202
    assert slow.headers["Location"] == json.loads(slow.get_body())["statusQueryGetUri"]
    payload = client.create_http_management_payload("py-slow")
    assert "/instances/py-slow/terminate?" in payload["terminatePostUri"], payload

    # Lists, and the end of everything.
    everything = [status.instance_id for status in await client.get_status_all()]
    assert {"py-hello", "py-approval", "py-doomed", "py-slow", random} <= set(everything), everything
    terminated = await client.get_status_by(began, None, [Status.Terminated])
    assert [status.instance_id for status in terminated] == ["py-doomed"]
    prefixed = await client.get_status_by(instance_id_prefix="py-pa")
    assert [status.instance_id for status in prefixed] == ["py-paused"]
    assert (await client.purge_instance_history("py-hello")).instances_deleted == 1
    assert (await client.purge_instance_history("py-hello")).instances_deleted == 0
    purged = await client.purge_instance_history_by(began, datetime.now(timezone.utc), [Status.Terminated])
    assert purged.instances_deleted == 1, purged.instances_deleted


if __name__ == "__main__":
    asyncio.run(drive(json.load(sys.stdin)["clientBinding"]))
    print("python: all as it should be")
