// Makes tests/trust/bundles with the packages that npm signs with, and their imitations of Sigstore's services.
//
//   npm install --prefix DIR @sigstore/sign @sigstore/mock @sigstore/bundle @sigstore/protobuf-specs
//   NODE_PATH=DIR/node_modules node tests/support/make_bundles.mjs DIGEST FOLDER
//
// DIGEST is that of tests/sample. The files stay valid: what counts is the time in the log, not that of today.
import { createRequire } from 'node:module';
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';

const require = createRequire(path.join(process.env.NODE_PATH, 'x.js'));
const mock = require('@sigstore/mock');
const { DSSEBundleBuilder, MessageSignatureBundleBuilder, FulcioSigner, RekorWitness } = require('@sigstore/sign');
const { bundleToJSON } = require('@sigstore/bundle');
const { HashAlgorithm, PublicKeyDetails, TrustedRoot } = require('@sigstore/protobuf-specs');

const [digest, folder] = process.argv.slice(2);
const issuer = 'https://token.actions.githubusercontent.com';
const identity = 'https://github.com/acme/app/.github/workflows/release.yml@refs/tags/v1';
const pair = () => crypto.generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const ago = (days) => new Date(Date.now() - days * 86_400_000);

async function services() {
  const keys = { ca: pair(), ct: pair(), log: pair() };
  const ct = await mock.initializeCTLog(keys.ct);
  const ca = await mock.initializeCA(keys.ca, ct);
  let url = '';
  const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', (part) => (body += part));
    request.on('end', async () => {
      const handler = handlers.find((one) => request.url === one.path);
      const answer = await handler.fn(body);
      response.writeHead(answer.statusCode, { 'Content-Type': answer.contentType ?? 'text/plain' });
      response.end(answer.response);
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  url = `http://127.0.0.1:${server.address().port}`;
  const log = await mock.initializeTLog('https://rekor.example.com', keys.log);
  const late = await mock.initializeTLog('https://rekor.example.com', keys.log, ago(-1));
  const at = { log };
  const handlers = [mock.fulcioHandler(ca), { ...mock.rekorHandler(log), fn: (body) => record(at.log, JSON.parse(body)) }];
  const key = (der) => ({
    rawBytes: Buffer.from(der), keyDetails: PublicKeyDetails.PKIX_ECDSA_P256_SHA_256, validFor: { start: ago(1) },
  });
  const instance = (der) => ({
    baseUrl: 'https://log.example.com', hashAlgorithm: HashAlgorithm.SHA2_256, publicKey: key(der),
    logId: { keyId: crypto.createHash('sha256').update(der).digest() },
  });
  const authority = (certificates) => ({
    subject: { organization: 'sigstore.mock', commonName: 'sigstore' }, uri: 'https://ca.example.com',
    certChain: { certificates: certificates.map((raw) => ({ rawBytes: Buffer.from(raw) })) }, validFor: { start: ago(1) },
  });
  const root = {
    mediaType: 'application/vnd.dev.sigstore.trustedroot+json;version=0.1',
    tlogs: [instance(log.publicKey)], ctlogs: [instance(ct.publicKey)],
    certificateAuthorities: [authority([ca.rootCertificate])],
    timestampAuthorities: [],
  };
  return Object.assign(at, { url, server, late, root: TrustedRoot.toJSON(root) });
}

// What the real log makes of an entry: hashes and signatures in place of the envelope. The imitation keeps it as it came.
async function record(log, proposed) {
  const { envelope, verifiers } = proposed.spec.proposedContent ?? {};
  const canonical = (pem) => Buffer.from(`${new crypto.X509Certificate(Buffer.from(pem, 'base64')).toString().trim()}\n`);
  const hash = (data) => ({ algorithm: 'sha256', value: crypto.createHash('sha256').update(data).digest('hex') });
  if (envelope !== undefined) {
    const { payload, signatures } = JSON.parse(envelope);
    proposed.spec = {
      envelopeHash: hash(envelope), payloadHash: hash(Buffer.from(payload, 'base64')),
      signatures: signatures.map(({ sig }, number) => ({ signature: sig, verifier: canonical(verifiers[number]).toString('base64') })),
    };
  }
  return { statusCode: 201, contentType: 'application/json', response: JSON.stringify(await log.log(proposed)) };
}

function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  return `${part({ alg: 'none' })}.${part({ iss: issuer, sub: identity, ...claims })}.`;
}

function statement(fields = {}) {
  const [algorithm, value] = digest.split(':');
  return Buffer.from(JSON.stringify({
    _type: 'https://in-toto.io/Statement/v1', subject: [{ digest: { [algorithm]: value }, annotations: {} }],
    predicateType: 'https://sigstore.dev/cosign/sign/v1', predicate: {}, ...fields,
  }));
}

async function sign(at, data, claims = {}, Builder = DSSEBundleBuilder, type = 'application/vnd.in-toto+json') {
  const signer = new FulcioSigner({
    fulcioBaseURL: at.url, identityProvider: { getToken: async () => token(claims) },
  });
  const witnesses = [new RekorWitness({ rekorBaseURL: at.url, entryType: 'dsse' })];
  const builder = new Builder({ signer, witnesses });
  const made = bundleToJSON(await builder.create({ data, type }));
  // The log of the imitation has one entry; protobuf leaves zeros and empty lists out, which Python's package wants.
  for (const entry of made.verificationMaterial.tlogEntries) Object.assign(entry.inclusionProof, { logIndex: '0', hashes: [] });
  return made;
}

const payload = (of) => Buffer.from(JSON.stringify({
  critical: {
    identity: { 'docker-reference': 'registry.example.com/acme/app' }, image: { 'docker-manifest-digest': of },
    type: 'cosign container image signature',
  },
  optional: null,
}));

// As cosign 2 wrote it: document and annotations, with the log's promise.
async function annotated(at, data, claims = {}) {
  const { messageSignature, verificationMaterial } = await sign(at, data, claims, MessageSignatureBundleBuilder);
  const [entry] = verificationMaterial.tlogEntries;
  const raw = verificationMaterial.x509CertificateChain?.certificates[0] ?? verificationMaterial.certificate;
  const certificate = new crypto.X509Certificate(Buffer.from(raw.rawBytes, 'base64'));
  const log = {
    SignedEntryTimestamp: entry.inclusionPromise.signedEntryTimestamp,
    Payload: {
      body: entry.canonicalizedBody, integratedTime: Number(entry.integratedTime), logIndex: Number(entry.logIndex),
      logID: Buffer.from(entry.logId.keyId, 'base64').toString('hex'),
    },
  };
  return {
    document: data.toString(),
    annotations: {
      'dev.cosignproject.cosign/signature': messageSignature.signature,
      'dev.sigstore.cosign/certificate': `${certificate.toString().trim()}\n`,
      'dev.sigstore.cosign/bundle': JSON.stringify(log),
    },
  };
}

const write = (name, value) => fs.writeFileSync(path.join(folder, name), `${JSON.stringify(value, null, 1)}\n`);
const [own, foreign] = [await services(), await services()];
write('trusted_root.json', own.root);
write('foreign_root.json', foreign.root);
write('good.json', await sign(own, statement()));
write('again.json', await sign(own, statement()));
write('foreign.json', await sign(foreign, statement()));
write('other-digest.json', await sign(own, statement({ subject: [{ digest: { sha256: '5'.repeat(64) } }] })));
write('provenance.json', await sign(own, statement({ predicateType: 'https://slsa.dev/provenance/v1' })));
write('other-workflow.json', await sign(own, statement(), { sub: identity.replace('release', 'test') }));
write('other-owner.json', await sign(own, statement(), { sub: identity.replace('acme', 'evil') }));
write('other-issuer.json', await sign(own, statement(), { iss: 'https://accounts.example.com' }));
write('file.json', await sign(own, statement(), {}, MessageSignatureBundleBuilder));
write('other-type.json', await sign(own, statement(), {}, DSSEBundleBuilder, 'application/json'));
write('annotated.json', await annotated(own, payload(digest)));
write('annotated-again.json', await annotated(own, payload(digest)));
write('annotated-foreign.json', await annotated(foreign, payload(digest)));
write('annotated-other-digest.json', await annotated(own, payload(`sha256:${'5'.repeat(64)}`)));
write('annotated-other-owner.json', await annotated(own, payload(digest), { sub: identity.replace('acme', 'evil') }));
own.log = own.late;
write('expired.json', await sign(own, statement()));
write('annotated-expired.json', await annotated(own, payload(digest)));
own.server.close();
foreign.server.close();
