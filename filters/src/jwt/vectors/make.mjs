// Makes tokens, key sets and an introspection answer with npm packages, for the test in ../vectors.rs.
//
//     npm install jose oidc-provider && node make.mjs
//
// Writes jose.json and oidc-provider.json beside this file. Every run makes new keys. Private keys are not kept.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as jose from "jose";
import Provider from "oidc-provider";

const require = createRequire(import.meta.url);
const ISSUER = "https://issuer.test";
const ALGORITHMS = ["ES256", "ES384", "RS256", "PS256", "EdDSA", "Ed25519"];

function version(name) {
  const path = require.resolve.paths(name).map((folder) => `${folder}/${name}/package.json`);
  for (const file of path) {
    try {
      return JSON.parse(readFileSync(file)).version;
    } catch {}
  }
  throw new Error(`${name} is not installed`);
}

function write(library, rest) {
  const made = { library, version: version(library), ...rest };
  writeFileSync(new URL(`${library}.json`, import.meta.url), `${JSON.stringify(made, null, 2)}\n`);
}

async function key(alg) {
  const { publicKey, privateKey } = await jose.generateKeyPair(alg, { extractable: true });
  const named = { kid: alg, alg, use: "sig" };
  return {
    privateKey,
    publicJwk: { ...(await jose.exportJWK(publicKey)), ...named },
    privateJwk: { ...(await jose.exportJWK(privateKey)), ...named },
  };
}

async function ofJose() {
  const keys = [];
  const tokens = [];
  for (const alg of ALGORITHMS) {
    const made = await key(alg);
    keys.push(made.publicJwk);
    const token = await new jose.SignJWT({ scope: "payments:read payments:write", jti: "t-1" })
      .setProtectedHeader({ alg, kid: alg, typ: "at+jwt" })
      .setIssuer(ISSUER)
      .setAudience("torana")
      .setSubject("user-1")
      .setIssuedAt(1700000000)
      .setExpirationTime(4102444800)
      .sign(made.privateKey);
    tokens.push({ alg, token });
  }
  write("jose", { jwks: { keys }, tokens });
}

// Access tokens as a provider issues them for `client_credentials`: JWTs, and an opaque one with its introspection.
async function ofProvider() {
  const algorithms = ["ES256", "RS256", "PS256", "EdDSA", "Ed25519"];
  const keys = await Promise.all(algorithms.map(key));
  const resource = (alg) => `https://${alg.toLowerCase()}.torana.test`;
  const provider = new Provider(ISSUER, {
    jwks: { keys: keys.map((made) => made.privateJwk) },
    clients: [{
      client_id: "batch", client_secret: "a client's secret for tests alone", grant_types: ["client_credentials"],
      redirect_uris: [], response_types: [],
    }],
    ttl: { ClientCredentials: 2_000_000_000 },
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, indicator) => {
          const alg = algorithms.find((alg) => resource(alg) === indicator);
          const form = alg ? { accessTokenFormat: "jwt", jwt: { sign: { alg } } } : { accessTokenFormat: "opaque" };
          return { scope: "payments:read", audience: "torana", ...form };
        },
      },
    },
  });
  const server = provider.listen(0, "127.0.0.1");
  await new Promise((ready) => server.once("listening", ready));
  const post = async (path, form) => {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}${path}`, {
      method: "POST",
      headers: { authorization: `Basic ${btoa(`batch:${encodeURIComponent("a client's secret for tests alone")}`)}` },
      body: new URLSearchParams(form),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${JSON.stringify(body)}`);
    return body;
  };
  const ask = (indicator) =>
    post("/token", { grant_type: "client_credentials", scope: "payments:read", resource: indicator });
  const tokens = [];
  for (const alg of algorithms) {
    try {
      tokens.push({ alg, token: (await ask(resource(alg))).access_token });
    } catch (why) {
      console.log(`oidc-provider: no ${alg}: ${why.message}`);
    }
  }
  const opaque = (await ask("https://opaque.torana.test")).access_token;
  const introspection = await post("/token/introspection", { token: opaque });
  const jwks = await (await fetch(`http://127.0.0.1:${server.address().port}/jwks`)).json();
  server.close();
  write("oidc-provider", { jwks, tokens, introspection });
}

await ofJose();
await ofProvider();
