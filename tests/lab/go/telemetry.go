package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

var (
	service = os.Getenv("LAB_SERVICE")
	tracer  = otel.Tracer("lab." + service)
	faults  = map[string]float64{}
	facts   *os.File
	lock    sync.Mutex
	dice    *rand.Rand
)

// start installs the SDK; the function it gives flushes and shuts down.
func start() func() {
	seed, _ := strconv.ParseInt(os.Getenv("LAB_SEED"), 10, 64)
	dice = rand.New(rand.NewSource(seed ^ int64(crc32.ChecksumIEEE([]byte(service)))))
	if text := os.Getenv("LAB_FAULTS"); text != "" {
		must(json.Unmarshal([]byte(text), &faults))
	}
	var err error
	path := fmt.Sprintf("%s/%s-%d.jsonl", os.Getenv("LAB_FACTS"), service, os.Getpid())
	facts, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(err)
	exporter, err := otlptracehttp.New(context.Background())
	must(err)
	host := os.Getenv("LAB_HOST")
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithSpanProcessor(ledger{os.Getenv("LAB_THREAD_IDS") == "1"}),
		sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", service),
			attribute.String("service.instance.id", fmt.Sprintf("%s-%d", service, os.Getpid())),
			attribute.String("host.name", host),
			attribute.Int("process.pid", os.Getpid()),
			attribute.String("telemetry.sdk.name", "opentelemetry"),
			attribute.String("telemetry.sdk.language", "go"),
			attribute.String("telemetry.sdk.version", otel.Version()),
		)),
	}
	if ratio := os.Getenv("LAB_RATIO"); ratio != "" {
		p, _ := strconv.ParseFloat(ratio, 64)
		options = append(options, sdktrace.WithSampler(sdktrace.TraceIDRatioBased(p)))
	}
	provider := sdktrace.NewTracerProvider(options...)
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = provider.Shutdown(ctx)
	}
}

// ledger writes down every start and end, so that what never arrives is known.
type ledger struct{ goroutineIDs bool }

func (l ledger) OnStart(_ context.Context, span sdktrace.ReadWriteSpan) {
	if l.goroutineIDs {
		span.SetAttributes(attribute.Int("goroutine.id", goroutineID()))
	}
	var parent any
	if span.Parent().SpanID().IsValid() {
		parent = span.Parent().SpanID().String()
	}
	write(map[string]any{
		"fact": "start", "trace_id": span.SpanContext().TraceID().String(),
		"span_id": span.SpanContext().SpanID().String(), "parent": parent,
		"name": span.Name(), "service_name": service, "pid": os.Getpid(),
		"time": time.Now().UnixNano(),
	})
}

func (l ledger) OnEnd(span sdktrace.ReadOnlySpan) {
	write(map[string]any{
		"fact": "end", "span_id": span.SpanContext().SpanID().String(), "time": time.Now().UnixNano(),
	})
}
func (l ledger) Shutdown(context.Context) error   { return nil }
func (l ledger) ForceFlush(context.Context) error { return nil }

// goroutineID reads the header line of the goroutine's own stack, as there is no other way.
func goroutineID() int {
	buffer := make([]byte, 64)
	buffer = buffer[:runtime.Stack(buffer, false)]
	id, _ := strconv.Atoi(string(bytes.Fields(buffer)[1]))
	return id
}

func write(line map[string]any) {
	text, _ := json.Marshal(line)
	lock.Lock()
	defer lock.Unlock()
	if facts != nil {
		_, _ = facts.Write(append(text, '\n'))
	}
}

// fault decides whether this fault strikes now.
func fault(name string) bool { return chance(faults[name]) }

func chance(probability float64) bool {
	lock.Lock()
	defer lock.Unlock()
	return probability > 0 && dice.Float64() < probability
}

type row struct{ kind, cause, boundary, verdict, detail string }

// truth logs one planted row: span is where it shows, parent what its parent should be.
func truth(r row, span, parent trace.SpanContext) {
	line := map[string]any{
		"fact": "truth", "kind": r.kind, "service_name": service, "detail": r.detail,
		"trace_id": span.TraceID().String(), "span_id": span.SpanID().String(),
	}
	for name, value := range map[string]string{
		"cause": r.cause, "boundary": r.boundary, "verdict": r.verdict,
	} {
		if value != "" {
			line[name] = value
		}
	}
	if parent.IsValid() {
		line["true_parent_trace_id"] = parent.TraceID().String()
		line["true_parent_span_id"] = parent.SpanID().String()
	}
	write(line)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
