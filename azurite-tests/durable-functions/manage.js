// Drives a served management API with the released Durable Functions client, unmodified.
//
//   node manage.js urls|rpc     standard input: what `taskhub serve --output json` prints
//
// `urls` uses the management URLs of the binding, `rpc` its local address. The hub needs a worker with the
// sample functions. Ends with code 0 when everything was as it should be.
"use strict";

const assert = require("node:assert/strict");
const df = require("durable-functions");

const Status = df.OrchestrationRuntimeStatus;
const HELLO = ["Hello Tokyo!", "Hello Seattle!", "Hello London!"];

function clientOf(binding) {
  // Without it the client takes the host for the Functions host at its usual port.
  process.env.WEBSITE_HOSTNAME = new URL(binding.baseUrl).host;
  const input = df.input.durableClient();
  return df.getClient({ options: { extraInputs: [input] }, extraInputs: { get: () => binding } });
}

/** Asks until the status is as wanted. */
async function until(client, id, wanted) {
  let status;
  for (const end = Date.now() + 60000; Date.now() < end; await new Promise((ok) => setTimeout(ok, 100))) {
    status = await client.getStatus(id);
    if (await wanted(status)) return status;
  }
  assert.fail(`${id} is not as wanted: ${JSON.stringify(status)}`);
}

/** Reads an entity until its state is as wanted; undefined: until it has none. */
async function untilState(client, entity, wanted) {
  let read;
  for (const end = Date.now() + 60000; Date.now() < end; await new Promise((ok) => setTimeout(ok, 100))) {
    read = await client.readEntityState(entity);
    if (read.entityExists === (wanted !== undefined) && read.entityState === wanted) return;
  }
  assert.fail(`${entity} is not ${wanted}: ${JSON.stringify(read)}`);
}

const inStatus = (name) => (status) => status.runtimeStatus === name;

/** The client itself looks for a member `history`, and the extension has never sent one. */
async function historyOf(client, id) {
  const { statusQueryGetUri } = client.createHttpManagementPayload(id);
  const reply = await fetch(`${statusQueryGetUri}&showHistory=true&showHistoryOutput=true`);
  return (await reply.json()).historyEvents ?? [];
}

const waitsForEvent = (client) => async (status) =>
  (await historyOf(client, status.instanceId)).some((e) => e.EventType === "TimerCreated");

async function drive(binding, prefix) {
  const client = clientOf(binding);
  const id = (name) => `${prefix}-${name}`;
  const began = new Date(Date.now() - 3600000);

  // Start, status with history, an id of its own.
  assert.equal(await client.startNew("HelloSequence", { instanceId: id("hello"), input: { city: "Lyon" } }), id("hello"));
  const hello = await until(client, id("hello"), inStatus(Status.Completed));
  assert.deepEqual([hello.name, hello.instanceId, hello.input, hello.output], ["HelloSequence", id("hello"), { city: "Lyon" }, HELLO]);
  assert.equal(hello.customStatus, null);
  assert.ok(hello.createdTime <= hello.lastUpdatedTime, `${hello.createdTime} ${hello.lastUpdatedTime}`);
  const events = (await historyOf(client, id("hello"))).map((e) => [e.EventType, e.FunctionName ?? null, e.Result ?? null]);
  assert.deepEqual(events, [
    ["ExecutionStarted", "HelloSequence", null],
    ...HELLO.map((greeting) => ["TaskCompleted", "SayHello", greeting]),
    ["ExecutionCompleted", null, HELLO],
  ]);
  const random = await client.startNew("EchoInput", { input: "x y" });
  assert.match(random, /^[0-9a-f]{32}$/);
  assert.equal((await until(client, random, inStatus(Status.Completed))).output, "x y");
  await assert.rejects(client.getStatus(id("nobody")), /404/);
  await assert.rejects(client.startNew("NoSuchFunction"), /doesn't exist/);

  // Events; an id in use.
  await client.startNew("Approval", { instanceId: id("approval"), input: 3600 });
  await until(client, id("approval"), waitsForEvent(client));
  await assert.rejects(client.startNew("Approval", { instanceId: id("approval") }), /already exists/);
  await client.raiseEvent(id("approval"), "ApprovalEvent", true);
  assert.equal((await until(client, id("approval"), inStatus(Status.Completed))).output, "approved:true");
  await client.raiseEvent(id("approval"), "ApprovalEvent", true);
  await assert.rejects(client.raiseEvent(id("nobody"), "ApprovalEvent", true), /No instance/);

  // Suspend, resume, terminate.
  await client.startNew("Approval", { instanceId: id("paused"), input: 3600 });
  await until(client, id("paused"), waitsForEvent(client));
  await client.suspend(id("paused"), "a while");
  assert.equal((await until(client, id("paused"), inStatus(Status.Suspended))).output, "a while");
  await client.raiseEvent(id("paused"), "ApprovalEvent", { by: "me" });
  await client.resume(id("paused"), "go on");
  await until(client, id("paused"), inStatus(Status.Completed));
  await client.startNew("Approval", { instanceId: id("doomed"), input: 3600 });
  await until(client, id("doomed"), waitsForEvent(client));
  await client.terminate(id("doomed"), "not wanted");
  assert.equal((await until(client, id("doomed"), inStatus(Status.Terminated))).output, "not wanted");
  await client.terminate(id("doomed"), "twice");
  await assert.rejects(client.terminate(id("nobody"), "x"), /No instance/);

  // Rewind: what failed runs again, what completed does not.
  await client.startNew("RewindMe", { instanceId: id("rewound") });
  await until(client, id("rewound"), inStatus(Status.Failed));
  await client.rewind(id("rewound"), "fixed");
  await until(client, id("rewound"), inStatus(Status.Completed));
  await assert.rejects(client.rewind(id("rewound"), "again"), /410/);

  // Entities: signals and states, names in any case, keys in their own; an orchestration that calls one.
  const steps = new df.EntityId("Counter", id("steps"));
  assert.equal((await client.readEntityState(steps)).entityExists, false);
  for (const amount of [5, undefined, 36]) await client.signalEntity(steps, "add", amount);
  await untilState(client, new df.EntityId("counter", id("steps")), 42);
  assert.equal((await client.readEntityState(new df.EntityId("counter", id("STEPS")))).entityExists, false);
  await client.signalEntity(steps, "reset");
  await untilState(client, steps, 0);
  await client.signalEntity(steps, "delete");
  await untilState(client, steps, undefined);
  await client.startNew("CallEntity", { instanceId: id("caller"), input: `@counter@${id("called")}` });
  const called = await until(client, id("caller"), inStatus(Status.Completed));
  assert.deepEqual(called.output, { before: "5", after: "12", bad: "no operation nonsense" });
  await untilState(client, new df.EntityId("Counter", id("called")), 12);

  // Wait for completion, or an answer with the addresses.
  const request = { url: new URL("/api/anything", binding.baseUrl).href };
  await client.startNew("HelloSequence", { instanceId: id("fast") });
  const fast = await client.waitForCompletionOrCreateCheckStatusResponse(request, id("fast"), {
    timeoutInMilliseconds: 60000,
    retryIntervalInMilliseconds: 200,
  });
  assert.deepEqual([fast.status, await fast.json()], [200, HELLO]);
  await client.startNew("Approval", { instanceId: id("slow"), input: 3600 });
  const slow = await client.waitForCompletionOrCreateCheckStatusResponse(request, id("slow"), {
    timeoutInMilliseconds: 300,
    retryIntervalInMilliseconds: 100,
  });
  const addresses = await slow.json();
  assert.equal(slow.status, 202);
  assert.equal(slow.headers.get("Location"), addresses.statusQueryGetUri);
  // The addresses are plain data, and work for whoever has them.
  const status = await fetch(addresses.statusQueryGetUri);
  assert.deepEqual([status.status, (await status.json()).instanceId], [202, id("slow")]);
  const terminated = await fetch(addresses.terminatePostUri.replace("{text}", "over"), { method: "POST" });
  assert.equal(terminated.status, 202);
  assert.equal((await until(client, id("slow"), inStatus(Status.Terminated))).output, "over");

  // Lists, and the end of everything.
  const all = (await client.getStatusAll()).map((s) => s.instanceId);
  for (const name of ["hello", "approval", "doomed", "slow"]) assert.ok(all.includes(id(name)), name);
  const by = async (filter) => (await client.getStatusBy(filter)).map((s) => s.instanceId).filter((i) => i.startsWith(prefix));
  assert.deepEqual(await by({ createdTimeFrom: began, runtimeStatus: [Status.Terminated] }), [id("doomed"), id("slow")]);
  assert.deepEqual(await by({ createdTimeFrom: new Date(Date.now() + 3600000) }), []);
  assert.equal((await client.purgeInstanceHistory(id("hello"))).instancesDeleted, 1);
  assert.equal((await client.purgeInstanceHistory(id("hello"))).instancesDeleted, 0);
  const filter = { createdTimeFrom: began, createdTimeTo: new Date(), runtimeStatus: [Status.Terminated] };
  assert.equal((await client.purgeInstanceHistoryBy(filter)).instancesDeleted, 2);
  assert.equal((await client.purgeInstanceHistoryBy(filter)).instancesDeleted, 0);
}

async function main() {
  const mode = process.argv[2];
  const binding = JSON.parse(require("node:fs").readFileSync(0, "utf8")).clientBinding;
  if (mode === "urls") delete binding.rpcBaseUrl;
  else assert.ok(mode === "rpc" && binding.rpcBaseUrl, "urls or rpc, with an address for rpc");
  await drive(binding, mode);
  console.log(`${mode}: all as it should be`);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
