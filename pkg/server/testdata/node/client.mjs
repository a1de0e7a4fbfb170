// A TLS client that is not Go's: node client.mjs GROUP VERSION HOST PORT CA [PATH BODY [KEY]]
// It prints, as JSON, what was agreed and what the server answered to POST PATH.
import https from 'node:https';
import fs from 'node:fs';

const [group, version, host, port, ca, path = '/', body = '', key] = process.argv.slice(2);
const req = https.request({
  host, port, path, method: 'POST', ca: fs.readFileSync(ca),
  ecdhCurve: group, minVersion: version, maxVersion: version,
  headers: { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) },
}, (res) => {
  const { socket } = res;
  const agreed = {
    protocol: socket.getProtocol(), cipher: socket.getCipher().name,
    group: socket.getEphemeralKeyInfo(), authorized: socket.authorized,
  };
  let text = '';
  res.on('data', (chunk) => { text += chunk; });
  res.on('end', () => console.log(JSON.stringify({ ...agreed, status: res.statusCode, body: text })));
});
req.on('error', (err) => {
  console.log(JSON.stringify({ error: err.message, code: err.code }));
  process.exitCode = 1;
});
req.end(body);
