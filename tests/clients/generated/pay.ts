// Pays with the client that OpenAPI Generator makes, follows the payment, and reads two refusals.
//
//     NODE_EXTRA_CA_CERTS=CA_FILE node pay.js URL TOKEN_FILE DEVICE_KEY_FILE

import { createHash, randomUUID, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { Configuration, DefaultApi, ProblemFromJSON, ResponseError, SendRequestToJSON, Status } from "./client/index.js";
import type { SendRequest } from "./client/index.js";

const [url, tokenFile, keyFile] = process.argv.slice(2) as [string, string, string];
const token = readFileSync(tokenFile, "utf8").trim();
const api = new DefaultApi(new Configuration({ basePath: url, accessToken: token }));

const refused = async (call: () => Promise<unknown>, status: number, code: string): Promise<void> => {
  try {
    await call();
  } catch (refusal) {
    if (!(refusal instanceof ResponseError)) throw refusal;
    const problem = ProblemFromJSON(await refusal.response.json());
    if (refusal.response.status === status && problem.code === code) return;
    throw new Error(`${refusal.response.status} ${problem.code}, not ${status} ${code}`);
  }
  throw new Error(`not refused: ${code}`);
};

const payment: SendRequest = {
  fromVPA: "alice@torana",
  toVPA: "bob@torana",
  amount: 1.25,
  txnNote: "Lunch",
  deviceId: "device-alice-1",
  idempotencyKey: randomUUID(),
};
const digest = createHash("sha256").update(JSON.stringify(SendRequestToJSON(payment))).digest("base64");
const covered = {
  "@method": "POST",
  "@path": "/v1/transactions/send",
  "@query": "?",
  "content-digest": `sha-256=:${digest}:`,
  authorization: `Bearer ${token}`,
  "idempotency-key": payment.idempotencyKey,
};
const names = Object.keys(covered).map((name) => `"${name}"`).join(" ");
const created = Math.floor(Date.now() / 1000);
const parameters = `(${names});created=${created};nonce="${randomUUID()}";keyid="device-alice-1";alg="ecdsa-p256-sha256"`;
const lines = Object.entries(covered).map(([name, value]) => `"${name}": ${value}\n`);
const base = Buffer.from(`${lines.join("")}"@signature-params": ${parameters}`, "latin1");
const signature = sign("sha256", base, { key: readFileSync(keyFile), dsaEncoding: "ieee-p1363" }).toString("base64");

const { txnId: id } = await api.send({
  idempotencyKey: payment.idempotencyKey,
  contentDigest: covered["content-digest"],
  signatureInput: `sig1=${parameters}`,
  signature: `sig1=:${signature}:`,
  sendRequest: payment,
});
const until = Date.now() + 60_000;
while ((await api.find({ id })).status !== Status.Completed) {
  if (Date.now() > until) throw new Error("the payment did not complete");
  await new Promise((resolve) => setTimeout(resolve, 50));
}

const nonsense = new DefaultApi(new Configuration({ basePath: url, accessToken: "nonsense" }));
await refused(() => nonsense.find({ id }), 401, "token_malformed");
await refused(() => api.find({ id: `TOR${"0".repeat(32)}` }), 404, "transaction_not_found");
console.log("COMPLETED");
