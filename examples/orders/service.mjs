// A service of the shop in JavaScript. It knows the HTTP API of stepfold, and has no package of it.
//
// node service.mjs http://127.0.0.1:8080 42 250000          starts order-42, approves it if it waits for that, and prints the outcome
//
// Each request may be sent again: the run id, or the idempotency key, makes a repeat harmless.

const [server, orderId, totalCents = "12900"] = process.argv.slice(2);
const token = process.env.STEPFOLD_TOKEN; // for a server with tokens

async function ask(method, path, body, headers = {}) {
  const answer = await fetch(`${server}/v1/runs/${encodeURIComponent(`order-${orderId}`)}${path}`, {
    method,
    headers: {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(`${said.code}: ${said.detail}`); // a problem detail, RFC 9457
  return { status: answer.status, said };
}

const order = { order_id: orderId, customer: "ada", items: ["lamp"], total_cents: Number(totalCents) };
const { status } = await ask("PUT", "", { workflow: "process-order", input: order, why: "checkout" });
console.log(status === 201 ? "started" : "was started before");

for (;;) {
  const { status: now, said } = await ask("GET", "/result", undefined, { Prefer: "wait=2" });
  if (now === 200) {
    console.log(said.result.status, said.result.tracking ?? "");
    break;
  }
  const { said: run } = await ask("GET", "");
  if (run.waits.some((wait) => wait.kind === "wait" && wait.step_id === "approval")) {
    const approval = { data: { granted: true, by: "service.mjs" }, why: "small enough" };
    await ask("POST", "/signals/approve", approval, { "Idempotency-Key": `approve-order-${orderId}` });
    console.log("approved");
  }
}
