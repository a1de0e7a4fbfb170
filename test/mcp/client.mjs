// A client of an MCP server over stdio, driven by lines of JSON.
//
// Usage: node client.mjs OPTIONS
//
//   sdk       "v1": @modelcontextprotocol/sdk; "v2": @modelcontextprotocol/client
//             at protocol 2026-07-28, where the server asks by answering
//   command, args, env, cwd   the server
//   elicit    what to answer when asked: "accept", "decline", "cancel"; absent:
//             the client cannot be asked
//
// A line of input is {id, op, …}; a line of output is {id, result}, {id, error}
// or {event, …}. Operations may run at once.

import { createInterface } from "node:readline";
import Ajv from "ajv/dist/2020.js";

const options = JSON.parse(process.argv[2]);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const v2 = options.sdk === "v2";
const { Client } = await import(v2 ? "@modelcontextprotocol/client" : "@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await import(
  v2 ? "@modelcontextprotocol/client/stdio" : "@modelcontextprotocol/sdk/client/stdio.js");

const client = new Client({ name: "ov-test", version: "1" }, {
  capabilities: options.elicit ? { elicitation: {} } : {},
  ...(v2 ? { versionNegotiation: { mode: { pin: "2026-07-28" } } } : {}),
});

// content says yes to all that a form asks.
function content(schema) {
  const filled = {};
  for (const [name, p] of Object.entries(schema?.properties ?? {})) {
    filled[name] = p.type === "boolean" ? true : (p.enum ?? p.oneOf?.map((o) => o.const) ?? ["yes"])[0];
  }
  return filled;
}

async function elicit(request) {
  say({ event: "elicit", params: request.params });
  if (options.elicit !== "accept") return { action: options.elicit };
  return { action: "accept", content: content(request.params.requestedSchema) };
}
if (options.elicit) {
  if (v2) {
    client.setRequestHandler("elicitation/create", elicit);
  } else {
    const { ElicitRequestSchema } = await import("@modelcontextprotocol/sdk/types.js");
    client.setRequestHandler(ElicitRequestSchema, elicit);
  }
}
client.onclose = () => say({ event: "close" });
client.onerror = (e) => say({ event: "error", message: String(e?.message ?? e) });

const running = new Map();

const operations = {
  async connect() {
    const { command, args, env, cwd } = options;
    await client.connect(new StdioClientTransport({ command, args, env, cwd, stderr: "ignore" }));
    return {
      server: client.getServerVersion(),
      capabilities: client.getServerCapabilities(),
      instructions: client.getInstructions(),
      protocol: client.getNegotiatedProtocolVersion?.(),
    };
  },
  async list() {
    return client.listTools();
  },
  // compile returns what a validator says against the schemas.
  async compile() {
    const faults = [];
    for (const tool of (await client.listTools()).tools) {
      for (const which of ["inputSchema", "outputSchema"]) {
        try {
          const ajv = new Ajv({ strict: true, allowUnionTypes: true, validateFormats: false });
          if (!ajv.validateSchema(tool[which])) throw new Error(ajv.errorsText());
          ajv.compile(tool[which]);
        } catch (e) {
          faults.push(`${tool.name}.${which}: ${e.message}`);
        }
      }
    }
    return { faults };
  },
  // call has the SDK check the result against the tool's output schema.
  async call({ id, name, arguments: args, timeout }) {
    const abort = new AbortController();
    running.set(id, abort);
    try {
      const how = { signal: abort.signal, timeout: timeout ?? 60000 };
      const params = { name, arguments: args };
      return v2 ? await client.callTool(params, how) : await client.callTool(params, undefined, how);
    } finally {
      running.delete(id);
    }
  },
  async cancel({ of }) {
    if (!running.has(of)) throw new Error("no such call");
    running.get(of).abort("the test cancels it");
    return {};
  },
  async ping() {
    return client.ping();
  },
  async close() {
    await client.close();
    return {};
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  operations[request.op](request).then(
    (result) => say({ id: request.id, result }),
    (e) => say({ id: request.id, error: { code: e?.code, message: String(e?.message ?? e) } }));
}
await client.close().catch(() => {});
process.exit(0);
