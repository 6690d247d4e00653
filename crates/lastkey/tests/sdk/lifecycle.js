// The life cycle of keys through the official npm clients.
//
// usage: NODE_PATH=… NODE_EXTRA_CA_CERTS=ca.pem node lifecycle.js kms|pop CREDENTIALS_FILE
'use strict';

const assert = require('assert');
const fs = require('fs');

const [flavour, credentialsFile] = process.argv.slice(2);
const credentials = JSON.parse(fs.readFileSync(credentialsFile, 'utf8'));

/// @alicloud/pop-core: RPC v1, everything in the form body.
function pop() {
  const Client = require('@alicloud/pop-core').RPCClient;
  const client = new Client({
    accessKeyId: credentials.access_key_id,
    accessKeySecret: credentials.access_key_secret,
    endpoint: credentials.url,
    apiVersion: '2016-01-20',
    opts: { timeout: 60000 },
  });
  return (action, params) => client.request(action, params, { method: 'POST' });
}

/// @alicloud/kms20160120: RPC v1 with typed requests.
function kms() {
  const sdk = require('@alicloud/kms20160120');
  const { Config } = require('@alicloud/rpc-client');
  const lower = (name) => name[0].toLowerCase() + name.slice(1);
  const client = new sdk.default(new Config({
    accessKeyId: credentials.access_key_id,
    accessKeySecret: credentials.access_key_secret,
    endpoint: credentials.url.replace('https://', ''),
    protocol: 'https',
    regionId: 'cn-local',
    readTimeout: 60000,
  }));
  return async (action, params) => {
    const Request = sdk[`${action}Request`];
    const typed = Object.entries(params).map(([name, value]) => [lower(name), value]);
    const answer = await client[lower(action)](new Request(Object.fromEntries(typed)));
    return upper(answer);
  };
}

/// The wire's names again, which the typed answers spell in lower case.
function upper(value) {
  if (Array.isArray(value)) return value.map(upper);
  if (value === null || typeof value !== 'object') return value;
  const entries = Object.entries(value).filter(([, v]) => typeof v !== 'function');
  return Object.fromEntries(entries.map(([k, v]) => [k[0].toUpperCase() + k.slice(1), upper(v)]));
}

const call = flavour === 'pop' ? pop() : kms();
let checks = 0;

function same(left, right, what) {
  checks += 1;
  assert.deepStrictEqual(left, right, what);
}

async function refused(code, action, params) {
  checks += 1;
  try {
    await call(action, params);
  } catch (error) {
    const text = `${error.code} ${error.message} ${JSON.stringify(error.data || {})}`;
    assert.ok(text.includes(code), `${action}: wanted ${code}, got ${text}`);
    return;
  }
  assert.fail(`${action} should be refused with ${code}`);
}

async function describe(id) {
  return (await call('DescribeKey', { KeyId: id })).KeyMetadata;
}

async function lifecycle() {
  // 1. A key and an alias.
  const made = (await call('CreateKey', { Description: 'npm ~ 密钥' })).KeyMetadata;
  const id = made.KeyId;
  same(made.KeyState, 'Enabled', 'KeyState');
  same(made.Description, 'npm ~ 密钥', 'Description');
  const alias = `alias/npm-${flavour}-${process.pid}`;
  await call('CreateAlias', { AliasName: alias, KeyId: id });
  same((await describe(alias)).KeyId, id, 'described by alias');
  await refused('AliasAlreadyExists', 'CreateAlias', { AliasName: alias, KeyId: id });
  // 2. Cryptography, with an encryption context.
  const context = JSON.stringify({ purpose: 'test', key: '密钥 + & ~' });
  const plaintext = Buffer.from('a secret').toString('base64');
  const request = { KeyId: alias, Plaintext: plaintext, EncryptionContext: context };
  const sealed = await call('Encrypt', request);
  const open = { CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: context };
  same((await call('Decrypt', open)).Plaintext, plaintext, 'opened');
  await refused('InvalidParameter', 'Decrypt', { CiphertextBlob: sealed.CiphertextBlob });
  const dataKey = await call('GenerateDataKey', { KeyId: id, NumberOfBytes: 48 });
  same(Buffer.from(dataKey.Plaintext, 'base64').length, 48, 'a data key of 48 bytes');
  const opened = await call('Decrypt', { CiphertextBlob: dataKey.CiphertextBlob });
  same(opened.Plaintext, dataKey.Plaintext, 'the data key opens');
  // 3. A new version; what the old one encrypted still opens.
  const version = (await call('CreateKeyVersion', { KeyId: id })).KeyVersion.KeyVersionId;
  same((await describe(id)).PrimaryKeyVersion, version, 'the new version is primary');
  same((await call('Decrypt', open)).Plaintext, plaintext, 'old ciphertext opens');
  // 4. Pages.
  const page = await call('ListKeyVersions', { KeyId: id, PageNumber: 2, PageSize: 1 });
  same([page.TotalCount, page.KeyVersions.KeyVersion.length], [2, 1], 'the second page');
  // 5. States.
  await call('DisableKey', { KeyId: id });
  await refused('Rejected.Disabled', 'Encrypt', { KeyId: id, Plaintext: plaintext });
  await call('EnableKey', { KeyId: id });
  await call('DeleteAlias', { AliasName: alias });
  await refused('NotFound', 'DescribeKey', { KeyId: alias });
  await call('ScheduleKeyDeletion', { KeyId: id, PendingWindowInDays: 7 });
  same((await describe(id)).KeyState, 'PendingDeletion', 'KeyState');
  await call('CancelKeyDeletion', { KeyId: id });
  same((await describe(id)).KeyState, 'Enabled', 'KeyState');
  console.log(`${flavour}: ${checks} checks`);
}

lifecycle().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
