// The behaviours in e2e/cases.json through Node's @grpc/grpc-js.
//
//     NODE_PATH=…/node_modules node run_cases.js HOST:PORT RUN
//
// RUN is a word that makes this run's keys its own. e2e/README.md explains the notation of the
// cases; e2e/src/cases.rs interprets the same file in Rust. Exit code: 0 all passed, 1 some not.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const NAME = 'node';
const DOMAIN = 'stateside.dev';
const ANSWER_BYTES_MAX = 64 << 20;
const OVERLOADED_RETRIES = 500;
const PATIENCE_MS = 10_000;
const ROOT = path.join(__dirname, '..', '..', '..');

// protobuf's JSON form: lowerCamelCase, bytes in base64, 64-bit numbers as strings.
const definitions = protoLoader.loadSync(
  ['stateside/v1/data_plane.proto', 'grpc/health/v1/health.proto', 'google/rpc/error_details.proto', 'undefined.proto'],
  {
    includeDirs: [path.join(ROOT, 'proto'), path.join(ROOT, 'e2e', 'proto')],
    keepCase: false, longs: String, bytes: String, enums: String, defaults: true,
  },
);

class Wrong extends Error {}

/** Makes one call; answers {answer} or {failure}. */
function call(client, step, request) {
  const [service, name] = (step.call.includes('.') ? step.call : `stateside.v1.${step.call}`).split('/');
  // A method that no file defines is called with some message that encodes to nothing.
  const method = definitions[service]?.[name] ?? definitions['stateside.v1.Undefined'].Call;
  const options = {};
  if (step.deadlineMs !== undefined) {
    options.deadline = step.deadlineMs === 0 ? new Date(Date.now() - 1) : new Date(Date.now() + step.deadlineMs);
  }
  return new Promise((resolve) => {
    client.makeUnaryRequest(
      `/${service}/${name}`, method.requestSerialize, method.responseDeserialize, request,
      new grpc.Metadata(), options,
      (failure, answer) => resolve(failure ? { failure } : { answer }),
    );
  });
}

/** Sends what was refused as OVERLOADED again, after the delay that the node asks for. */
async function callPatiently(client, step, request) {
  for (let attempt = 0; attempt < OVERLOADED_RETRIES; attempt += 1) {
    const outcome = await call(client, step, request);
    const details = outcome.failure ? detailsOf(outcome.failure) : {};
    if (details.ErrorInfo?.reason !== 'OVERLOADED') return outcome;
    await sleep(1000 * secondsOf(details.RetryInfo));
  }
  return call(client, step, request);
}

class Runner {
  constructor(clients, run) {
    this.clients = clients;
    this.run = run;
    this.variables = new Map();
  }

  async step(step) {
    if (step.except?.[NAME]) return;
    const client = step.compress ? this.clients.compressing : this.clients.plain;
    if (step.untilExpected) {
      await this.stepUntilExpected(client, step);
      return;
    }
    for (let i = 0; i < (step.repeat ?? 1); i += 1) {
      const { answer, failure } = await callPatiently(client, step, this.expand(step.request, i));
      if (failure) {
        if (!step.error) throw new Wrong(`failed: ${grpc.status[failure.code]} ${failure.details}`);
        checkFailure(step.error, failure);
        return;
      }
      if (!step.error) this.check(step.expect, answer, 'answer', i);
      else if (!step.untilError) throw new Wrong(`succeeded, expected ${JSON.stringify(step.error)}`);
    }
    if (step.untilError) throw new Wrong('no call failed');
  }

  async stepUntilExpected(client, step) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const { answer, failure } = await callPatiently(client, step, this.expand(step.request, 0));
      if (failure) throw new Wrong(`failed: ${grpc.status[failure.code]} ${failure.details}`);
      try {
        this.check(step.expect, answer, 'answer', 0);
        return;
      } catch (wrong) {
        if (!(wrong instanceof Wrong) || Date.now() > deadline) throw wrong;
      }
    }
  }

  expand(value, i) {
    if (Array.isArray(value)) return value.map((item) => this.expand(item, i));
    if (value === null || typeof value !== 'object') return value;
    const bytes = this.bytes(value, i);
    if (bytes !== undefined) return bytes;
    if ('$value' in value) return String(this.variables.get(value.$value));
    if ('$each' in value) return Array.from({ length: value.$each }, (_, at) => this.expand(value.of, at));
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, this.expand(item, i)]));
  }

  bytes(value, i) {
    let raw;
    if ('$text' in value) raw = Buffer.from(value.$text.replaceAll('{run}', this.run).replaceAll('{i}', String(i)));
    else if ('$hex' in value) raw = Buffer.from(value.$hex, 'hex');
    else if ('$fill' in value) raw = Buffer.alloc(value.bytes, value.$fill);
    else return undefined;
    return raw.toString('base64');
  }

  check(expected, actual, at, i) {
    if (Array.isArray(expected)) {
      const list = actual ?? [];
      if (list.length !== expected.length) throw new Wrong(`${at} has ${list.length} elements, expected ${expected.length}`);
      expected.forEach((item, index) => this.check(item, list[index], `${at}[${index}]`, i));
    } else if (expected !== null && typeof expected === 'object') {
      const bytes = this.bytes(expected, i);
      if (bytes !== undefined) {
        if ((actual ?? '') !== bytes) throw new Wrong(`${at} is ${String(actual).slice(0, 200)}, expected ${JSON.stringify(expected)}`);
      } else if (['$length', '$first', '$last', '$all'].some((name) => name in expected)) {
        this.checkList(expected, actual ?? [], at, i);
      } else if (Object.keys(expected).some((name) => name.startsWith('$'))) {
        this.checkScalar(expected, actual, at);
      } else {
        for (const [name, item] of Object.entries(expected)) this.check(item, actual?.[name], `${at}.${name}`, i);
      }
    } else if (shown(expected) !== shown(actual)) {
      throw new Wrong(`${at} is ${JSON.stringify(actual)?.slice(0, 200)}, expected ${JSON.stringify(expected)}`);
    }
  }

  checkList(expected, list, at, i) {
    if ('$length' in expected && list.length !== expected.$length) {
      throw new Wrong(`${at} has ${list.length} elements, expected ${expected.$length}`);
    }
    if ('$first' in expected) this.check(expected.$first, list[0], `${at}[0]`, i);
    if ('$last' in expected) this.check(expected.$last, list.at(-1), `${at}[last]`, i);
    if ('$all' in expected) list.forEach((item, index) => this.check(expected.$all, item, `${at}[${index}]`, i));
  }

  checkScalar(expected, actual, at) {
    if ('$nonempty' in expected) {
      if (!actual) throw new Wrong(`${at} is empty`);
      return;
    }
    const number = BigInt(actual ?? 0);
    const rules = {
      $nonzero: () => number !== 0n,
      $same: (other) => number === other,
      $next: (other) => number === other + 1n,
      $above: (other) => number > other,
      $save: () => true,
    };
    for (const [rule, argument] of Object.entries(expected)) {
      const other = this.variables.get(argument) ?? 0n;
      if (!rules[rule](other)) throw new Wrong(`${at} is ${number}, which is not ${rule} ${argument} of ${other}`);
    }
    // After the comparisons: a step may compare with the value that it then replaces.
    if ('$save' in expected) this.variables.set(expected.$save, number);
  }
}

/** A scalar's text; absent fields and defaults have none. */
function shown(value) {
  return [null, undefined, false, 0, '', '0'].includes(value) ? '' : String(value);
}

/** ErrorInfo and RetryInfo from the trailers. */
function detailsOf(failure) {
  const decode = (type, bytes) => {
    const message = definitions[`google.rpc.${type}`];
    return message.deserialize(bytes);
  };
  const encoded = failure.metadata.get('grpc-status-details-bin')[0];
  const found = {};
  for (const any of encoded ? decode('Status', encoded).details : []) {
    // The loader's own definition of Any keeps the field's name as it is in the .proto file.
    const type = any.type_url.split('/').pop().replace('google.rpc.', '');
    if (type === 'ErrorInfo' || type === 'RetryInfo') {
      found[type] = decode(type, Buffer.from(any.value, 'base64'));
    }
  }
  return found;
}

function secondsOf(retryInfo) {
  return retryInfo ? Number(retryInfo.retryDelay.seconds) + retryInfo.retryDelay.nanos / 1e9 : 0;
}

function checkFailure(expected, failure) {
  const wrong = [];
  if (expected.code && expected.code !== grpc.status[failure.code]) {
    wrong.push(`code is ${grpc.status[failure.code]} (${failure.details})`);
  }
  const { ErrorInfo: info, RetryInfo: retry } = detailsOf(failure);
  if (expected.reason) {
    if (info?.reason !== expected.reason) wrong.push(`reason is \`${info?.reason}\` (${failure.details})`);
    if (info?.domain !== DOMAIN) wrong.push(`domain is \`${info?.domain}\``);
    if (!failure.details) wrong.push('there is no message');
  }
  if (expected.retry !== undefined) {
    const delay = secondsOf(retry);
    if ((delay > 0) !== expected.retry) wrong.push(`retry delay is ${delay} s`);
  }
  if (wrong.length > 0) throw new Wrong(`${wrong.join(', ')}; expected ${JSON.stringify(expected)}`);
}

async function main(address, run) {
  const { cases } = JSON.parse(fs.readFileSync(path.join(ROOT, 'e2e', 'cases.json'), 'utf8'));
  const client = (options) => new grpc.Client(address, grpc.credentials.createInsecure(), {
    'grpc.max_receive_message_length': ANSWER_BYTES_MAX, ...options,
  });
  const clients = {
    plain: client({}),
    compressing: client({ 'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip }),
  };
  let failed = 0;
  for (const one of cases) {
    const runner = new Runner(clients, run);
    try {
      for (const [index, step] of one.steps.entries()) {
        try {
          await runner.step(step);
        } catch (error) {
          throw error instanceof Wrong ? new Wrong(`step ${index + 1} (${step.call}): ${error.message}`) : error;
        }
      }
      console.log(`ok ${one.name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${one.name}: ${error instanceof Wrong ? error.message : error.stack}`);
    }
  }
  console.log(`${cases.length - failed} of ${cases.length} cases passed`);
  clients.plain.close();
  clients.compressing.close();
  return failed === 0 ? 0 : 1;
}

if (process.argv.length !== 4) {
  console.error('usage: run_cases.js HOST:PORT RUN');
  process.exitCode = 2;
} else {
  main(process.argv[2], process.argv[3]).then((code) => { process.exitCode = code; });
}
