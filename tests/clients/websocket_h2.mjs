// Follows a payment on a WebSocket over HTTP/2 (RFC 8441) until it is COMPLETED.
//
//     node websocket_h2.mjs URL CA_FILE TOKEN
//
// Node's own HTTP/2 client opens the stream. The server's frames are shorter than 64 KiB and have no mask (RFC 6455
// section 5.2).

import { readFileSync } from "node:fs";
import { connect } from "node:http2";

const [url, caFile, token] = process.argv.slice(2);
const { origin, pathname } = new URL(url);

const fail = (why) => {
  console.error(why);
  process.exit(1);
};
setTimeout(() => fail("the payment did not complete in time"), 60_000).unref();

const session = connect(origin, { ca: readFileSync(caFile) });
session.on("error", fail);
session.once("remoteSettings", ({ enableConnectProtocol }) => {
  if (!enableConnectProtocol) fail("the edge does not offer extended CONNECT");
  const stream = session.request(
    {
      ":method": "CONNECT",
      ":protocol": "websocket",
      ":scheme": "https",
      ":path": pathname,
      "sec-websocket-version": "13",
      authorization: `Bearer ${token}`,
    },
    { endStream: false },
  );
  stream.on("error", fail);
  stream.on("response", (fields) => {
    if (fields[":status"] !== 200) fail(`status ${fields[":status"]}`);
  });
  let read = Buffer.alloc(0);
  stream.on("data", (bytes) => {
    read = Buffer.concat([read, bytes]);
    for (;;) {
      if (read.length < 4) return;
      const [start, length] = read[1] < 126 ? [2, read[1]] : [4, read.readUInt16BE(2)];
      if (read.length < start + length) return;
      const [opcode, payload] = [read[0] & 0x0f, read.subarray(start, start + length)];
      read = read.subarray(start + length);
      if (opcode === 1 && JSON.parse(payload).status === "COMPLETED") {
        session.destroy();
        console.log("COMPLETED");
        process.exit(0);
      }
      if (opcode === 8) fail("the server closed the WebSocket");
    }
  });
  stream.on("end", () => fail("the stream ended before the payment did"));
});
