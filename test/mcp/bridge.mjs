// Puts a stdio server behind streamable HTTP, for the conformance suite, which
// speaks nothing else. A message passes as it is: each session has a server of
// its own, and what is on either side is on the other.
//
// Usage: node bridge.mjs OPTIONS, with {command, args, env, cwd}. Prints the URL.

import { createServer } from "node:http";
import { randomUUID } from "node:crypto";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";

const { command, args, env, cwd } = JSON.parse(process.argv[2]);
const sessions = new Map();

async function session() {
  const server = new StdioClientTransport({ command, args, env, cwd, stderr: "ignore" });
  const http = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    onsessioninitialized: (id) => sessions.set(id, http),
  });
  http.onmessage = (message) => server.send(message);
  server.onmessage = (message) =>
    http.send(message, message.method === undefined ? { relatedRequestId: message.id } : undefined).catch(() => {});
  http.onclose = () => server.close();
  server.onclose = () => http.close();
  await server.start();
  await http.start();
  return http;
}

const listener = createServer(async (request, response) => {
  try {
    const known = sessions.get(request.headers["mcp-session-id"]);
    await (known ?? await session()).handleRequest(request, response);
  } catch (e) {
    if (!response.headersSent) response.writeHead(500);
    response.end(String(e?.message ?? e));
  }
});
listener.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${listener.address().port}/mcp`));
process.stdin.resume().on("end", () => process.exit(0));
