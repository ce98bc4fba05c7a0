// The notification service: node:http with the SDK, a callback queue that loses or mixes up the
// async context, causes and AggregateError, a fire-and-forget timer.
'use strict';
const fs = require('node:fs');
const os = require('node:os');
const { context, trace, SpanKind, SpanStatusCode } = require('@opentelemetry/api');
const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-proto');
const { registerInstrumentations } = require('@opentelemetry/instrumentation');
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http');
const { resourceFromAttributes } = require('@opentelemetry/resources');
const { BatchSpanProcessor, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');

const service = process.env.LAB_SERVICE;
const faults = JSON.parse(process.env.LAB_FAULTS || '{}');
const facts = fs.openSync(`${process.env.LAB_FACTS}/${service}-${process.pid}.jsonl`, 'a');
const write = (line) => fs.writeSync(facts, JSON.stringify(line) + '\n');

let state = (Number(process.env.LAB_SEED) ^ 0x5eed) >>> 0;
function dice() { // mulberry32, so that a seed gives the same faults again
  state = (state + 0x6d2b79f5) >>> 0;
  let t = Math.imul(state ^ (state >>> 15), state | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
const fault = (name) => dice() < (faults[name] || 0);
const chance = (probability) => dice() < probability;

const ledger = {
  onStart(span) {
    const { traceId, spanId } = span.spanContext();
    const parent = span.parentSpanContext ? span.parentSpanContext.spanId : null;
    write({ fact: 'start', trace_id: traceId, span_id: spanId, parent, name: span.name,
      service_name: service, pid: process.pid, time: Date.now() * 1e6 });
  },
  onEnd(span) { write({ fact: 'end', span_id: span.spanContext().spanId, time: Date.now() * 1e6 }); },
  async shutdown() {},
  async forceFlush() {},
};

const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({
    'service.name': service, 'service.instance.id': `${service}-${process.pid}`,
    'host.name': process.env.LAB_HOST || os.hostname(), 'process.pid': process.pid,
    'telemetry.sdk.name': 'opentelemetry', 'telemetry.sdk.language': 'nodejs',
    'telemetry.sdk.version': require('@opentelemetry/sdk-trace-node/package.json').version,
  }),
  spanProcessors: [ledger, new BatchSpanProcessor(new OTLPTraceExporter())],
});
provider.register();
registerInstrumentations({ instrumentations: [new HttpInstrumentation({
  ignoreOutgoingRequestHook: (request) => String(request.path).includes('/v1/'),
})] });
const http = require('node:http');
const tracer = trace.getTracer('lab.notify');

function truth(row, span, parent) {
  const { traceId, spanId } = span.spanContext();
  const above = parent && parent.spanContext();
  write({ fact: 'truth', service_name: service, trace_id: traceId, span_id: spanId,
    true_parent_trace_id: above ? above.traceId : null,
    true_parent_span_id: above ? above.spanId : null, ...row });
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// A user-land queue: its pump runs callbacks in whatever context called pump() first.
const waiting = [];
let pumping = false;
function enqueue(work) {
  waiting.push(work);
  if (pumping) return;
  pumping = true;
  setImmediate(async () => {
    while (waiting.length) await waiting.shift()();
    pumping = false;
  });
}

function push(order) {
  const caller = trace.getActiveSpan();
  const own = context.active();
  const bound = !fault('callback_queue');
  const lost = !bound && chance(0.3);
  return new Promise((done) => {
    const work = async () => {
      const span = tracer.startSpan('push message', { attributes: { 'app.order': order } });
      const parentId = span.parentSpanContext ? span.parentSpanContext.spanId : null;
      if (!bound && parentId === null) {
        truth({ kind: 'detached_root', cause: 'context_not_propagated', boundary: 'task',
          detail: 'callback_queue' }, span, caller);
      } else if (span.spanContext().traceId !== caller.spanContext().traceId) {
        truth({ kind: 'wrong_parent', cause: 'context_leak', boundary: 'task',
          detail: 'callback_queue' }, span, caller);
      }
      await sleep(3 + dice() * 6);
      span.end();
      done();
    };
    if (lost) context.with(require('@opentelemetry/api').ROOT_CONTEXT, () => enqueueFresh(work));
    else enqueue(bound ? context.bind(own, work) : work);
  });
}

function enqueueFresh(work) { setImmediate(work); }

async function render(order) {
  await tracer.startActiveSpan('render', async (span) => {
    if (fault('never_ended')) {
      tracer.startSpan('fill', {}, context.active()).end();
      return;
    }
    tracer.startSpan('fill', {}, context.active()).end();
    await sleep(1);
    span.setAttribute('app.order', order);
    span.end();
  });
}

const REACTIONS = {
  kept: ['kept', (e) => e],
  cause: ['not_determinable', (e) => new Error('order not sent', { cause: e })],
  flattened: ['flattened', (e) => new Error(`order not sent: ${e.message}`)],
  json: ['flattened', (e) => new Error(`upstream said ${JSON.parse(JSON.stringify({ m: e.message })).m}`)],
  json_empty: ['replaced', (e) => new Error(`upstream said ${JSON.stringify(e)}`)],
  replaced: ['replaced', () => new Error('something went wrong')],
  aggregate: ['not_determinable', (e) => new AggregateError([e], 'order not sent')],
};

function climb(mode) {
  return tracer.startActiveSpan('place order', (outer) => {
    const inner = tracer.startSpan('reserve', { kind: SpanKind.INTERNAL });
    const error = new TypeError(`mailbox for ${mode} is full`);
    inner.recordException(error);
    inner.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
    inner.end();
    let verdict = mode;
    if (REACTIONS[mode]) {
      const raised = REACTIONS[mode][1](error);
      verdict = REACTIONS[mode][0];
      outer.recordException(raised);
      outer.setStatus({ code: SpanStatusCode.ERROR, message: raised.message });
    } else if (mode === 'retried') {
      tracer.startSpan('reserve').end();
      verdict = 'recovered';
    } else if (mode === 'event_without_status') {
      outer.recordException(error);
      verdict = 'status_lost';
    }
    truth({ kind: 'error_hop', boundary: 'same', verdict, detail: `node_${mode}` }, inner, outer);
    outer.end();
    return verdict === 'swallowed' || verdict === 'recovered' ? 200 : 500;
  });
}

async function handle(request, response) {
  const [, action, argument] = request.url.split('/');
  const server = trace.getActiveSpan();
  let status = 200;
  const stripped = request.headers['x-lab-stripped'];
  if (stripped) {
    const [, traceId, spanId] = stripped.split('-');
    truth({ kind: 'detached_root', cause: 'context_not_propagated', boundary: 'network',
      detail: 'traceparent_stripped' }, server, { spanContext: () => ({ traceId, spanId }) });
  }
  if (action === 'fail') status = climb(argument);
  else if (argument.startsWith('none')) {
    truth({ kind: 'legal', detail: 'answered_404' }, server);
    status = 404;
  } else {
    await Promise.all([push(argument), render(argument)]);
    if (chance(0.2)) {
      setTimeout(() => {
        const span = tracer.startSpan('confirm later');
        truth({ kind: 'legal', boundary: 'task', detail: 'fire_and_forget' }, span, server);
        span.end();
      }, 150);
    }
  }
  response.statusCode = status;
  response.end('{}');
}

const server = http.createServer((request, response) => void handle(request, response));
server.listen(Number(process.env.LAB_PORT), '127.0.0.1');
process.on('SIGTERM', async () => {
  server.close();
  await provider.shutdown();
  process.exit(0);
});
