// Claims about Go's errors and about what the SDK and otelhttp record, each as an experiment.
// Run against each generation: go test -v -run . (see docs/claims.md)
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

var errBase = errors.New("connection refused")

type coded struct{ Code int }

func (c *coded) Error() string { return fmt.Sprint("code ", c.Code) }

func record(t testing.TB) (*tracetest.SpanRecorder, *sdktrace.TracerProvider) {
	recorder := tracetest.NewSpanRecorder()
	return recorder, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
}

// serve sends one request through otelhttp and prints the SERVER span.
func serve(t *testing.T, label string, handler http.HandlerFunc) {
	recorder, provider := record(t)
	server := httptest.NewUnstartedServer(otelhttp.NewHandler(handler, "op", otelhttp.WithTracerProvider(provider)))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	defer server.Close()
	answer, err := http.Get(server.URL)
	status := "no answer: EOF"
	if err == nil {
		status = answer.Status
		answer.Body.Close()
	} else if !strings.Contains(err.Error(), "EOF") {
		status = err.Error()
	}
	time.Sleep(20 * time.Millisecond)
	for _, span := range recorder.Ended() {
		var events, attributes []string
		for _, event := range span.Events() {
			keys := []string{}
			for _, pair := range event.Attributes {
				keys = append(keys, string(pair.Key))
			}
			events = append(events, event.Name+"{"+strings.Join(keys, " ")+"}")
		}
		for _, pair := range span.Attributes() {
			if strings.Contains(string(pair.Key), "status") || pair.Key == "error.type" {
				attributes = append(attributes, string(pair.Key)+"="+pair.Value.Emit())
			}
		}
		t.Logf("%s: client=%q span status=%s %q events=%v attributes=%v",
			label, status, span.Status().Code, span.Status().Description, events, attributes)
	}
}

// What is written here compiles, so that these functions have these signatures.
var (
	_ func(...sdktrace.TracerProviderOption) *sdktrace.TracerProvider                             = sdktrace.NewTracerProvider
	_ func(propagation.TraceContext, context.Context, propagation.TextMapCarrier)                 = propagation.TraceContext.Inject
	_ func(propagation.TraceContext, context.Context, propagation.TextMapCarrier) context.Context = propagation.TraceContext.Extract
	_ func(otelhttp.Filter) otelhttp.Option                                                       = otelhttp.WithFilter
	_ func() string                                                                               = otel.Version
)

func TestSignatures(t *testing.T) {
	for _, name := range []string{
		"otel/trace.WithError", "otel/propagation.HTTPTraceContext", "otel/sdk/trace.SpanStartEndCallback",
		"otel/sdk/trace.AttributeValidator", "otel.InstrumentationVersion", "otel/trace.WithSpanKind",
	} {
		text, err := exec.Command("go", "doc", "go.opentelemetry.io/"+name).CombinedOutput()
		t.Logf("%s exists: %v %s", name, err == nil, strings.SplitN(string(text), "\n", 2)[0])
	}
}

func TestServerSpan(t *testing.T) {
	serve(t, "200", func(w http.ResponseWriter, _ *http.Request) {})
	serve(t, "404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })
	serve(t, "500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	serve(t, "panic", func(http.ResponseWriter, *http.Request) { panic(errBase) })
	serve(t, "panic recovered inside", func(w http.ResponseWriter, _ *http.Request) {
		defer func() { _ = recover(); w.WriteHeader(500) }()
		panic(errBase)
	})
}

func TestClientSpan(t *testing.T) {
	recorder, provider := record(t)
	client := http.Client{Transport: otelhttp.NewTransport(nil, otelhttp.WithTracerProvider(provider))}
	_, _ = client.Get("http://127.0.0.1:1/")
	for _, span := range recorder.Ended() {
		events := []string{}
		for _, event := range span.Events() {
			events = append(events, event.Name)
		}
		t.Logf("refused connection: status=%s events=%v", span.Status().Code, events)
	}
}

func TestRecordError(t *testing.T) {
	for label, err := range map[string]error{
		"nil": nil, "errors.New": errBase, "%w": fmt.Errorf("load: %w", errBase),
		"%v": fmt.Errorf("load: %v", errBase), "Join": errors.Join(errBase, io.EOF),
	} {
		recorder, provider := record(t)
		_, span := provider.Tracer("t").Start(context.Background(), "s")
		span.RecordError(err)
		span.End()
		ended := recorder.Ended()[0]
		text := "no event"
		if len(ended.Events()) > 0 {
			text = fmt.Sprint(ended.Events()[0].Attributes[0].Value.Emit(), " ", len(ended.Events()[0].Attributes), " attributes")
		}
		t.Logf("RecordError(%s): status=%s %s", label, ended.Status().Code, text)
	}
	recorder, provider := record(t)
	_, span := provider.Tracer("t").Start(context.Background(), "s")
	span.RecordError(errBase, trace.WithStackTrace(true))
	span.End()
	for _, pair := range recorder.Ended()[0].Events()[0].Attributes {
		if pair.Key == "exception.stacktrace" {
			t.Logf("WithStackTrace: %d bytes, begins %q", len(pair.Value.AsString()), strings.SplitN(pair.Value.AsString(), "\n", 2)[0])
		}
	}
}

func TestChains(t *testing.T) {
	wrapped := fmt.Errorf("load: %w", &coded{7})
	passed := make(chan error, 1)
	go func() { passed <- wrapped }()
	received := <-passed
	var target *coded
	t.Logf("through a goroutine: same value=%v errors.As=%v", received == wrapped, errors.As(received, &target))
	t.Logf("errors.Is(err, errors.New(same text))=%v", errors.Is(errBase, errors.New("connection refused")))
	body, _ := json.Marshal(wrapped)
	t.Logf("json.Marshal of a %%w error: %s", body)
	flat := fmt.Errorf("load: %v", errBase)
	t.Logf("%%v: Unwrap=%v, text equal to %%w=%v", errors.Unwrap(flat), flat.Error() == fmt.Errorf("load: %w", errBase).Error())
	log.New(io.Discard, "", 0).Printf("%+v", wrapped)
	t.Logf("after Printf %%+v: Unwrap=%v", errors.Unwrap(wrapped))
	t.Logf("one wrap with %%w and empty text adds %d characters", len(fmt.Errorf("%w", errBase).Error())-len(errBase.Error()))
	deep := errBase
	for depth := 0; depth < 10_000; depth++ {
		deep = fmt.Errorf("w: %w", deep)
	}
	t.Logf("10,000 wraps: errors.Is=%v, %d characters", errors.Is(deep, errBase), len(deep.Error()))
}

func TestPropagation(t *testing.T) {
	carrier := propagation.MapCarrier{"traceparent": "garbage"}
	before := context.WithValue(context.Background(), struct{}{}, 1)
	t.Logf("Extract of garbage gives the context unchanged: %v", propagation.TraceContext{}.Extract(before, carrier) == before)
	for _, flags := range []string{"00", "01", "02", "03"} {
		carrier["traceparent"] = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-" + flags
		got := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
		t.Logf("traceparent with flags %s accepted=%v", flags, got.IsValid())
	}
}

// slow exports nothing until it is let go, so that the queue fills.
type slow struct {
	gate chan struct{}
	got  []string
}

func (s *slow) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	<-s.gate
	for _, span := range spans {
		s.got = append(s.got, span.Name())
	}
	return nil
}
func (s *slow) Shutdown(context.Context) error { return nil }

func TestFullQueue(t *testing.T) {
	exporter := &slow{gate: make(chan struct{})}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter,
		sdktrace.WithMaxQueueSize(10), sdktrace.WithMaxExportBatchSize(5)))
	for n := 0; n < 100; n++ {
		_, span := provider.Tracer("t").Start(context.Background(), fmt.Sprint(n))
		span.End()
		if n == 5 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	close(exporter.gate)
	_ = provider.Shutdown(context.Background())
	t.Logf("queue of 10, 100 spans while the exporter stands: %d exported: %v", len(exporter.got), exporter.got)
}

func TestMessageLength(t *testing.T) {
	for _, size := range []int{1024, 1025, 1 << 16, 1 << 20} {
		recorder, provider := record(t)
		_, span := provider.Tracer("t").Start(context.Background(), "s")
		span.SetStatus(codes.Error, strings.Repeat("x", size))
		span.End()
		t.Logf("status message of %d bytes: span ended=%v, message kept %d", size,
			len(recorder.Ended()) == 1, len(recorder.Ended()[0].Status().Description))
	}
}

func TestVersion(t *testing.T) { t.Logf("otel %s", otel.Version()) }

// BenchmarkErrorRate: throughput of an instrumented handler as the share of errors grows.
func BenchmarkErrorRate(b *testing.B) {
	for _, percent := range []int{0, 1, 5, 10, 50, 100} {
		for _, mode := range []string{"record", "stack"} {
			b.Run(fmt.Sprintf("%s/%dpercent", mode, percent), func(b *testing.B) {
				provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&slow{gate: closed()}))
				defer provider.Shutdown(context.Background())
				handler := otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.ContentLength == 1 {
						err := fmt.Errorf("load: %w", errBase)
						trace.SpanFromContext(r.Context()).RecordError(err, trace.WithStackTrace(mode == "stack"))
						w.WriteHeader(500)
					}
				}), "op", otelhttp.WithTracerProvider(provider))
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; n < b.N; n++ {
					r := httptest.NewRequest("GET", "/", nil)
					r.ContentLength = 0
					if n%100 < percent {
						r.ContentLength = 1
					}
					handler.ServeHTTP(httptest.NewRecorder(), r)
				}
			})
		}
	}
}

func closed() chan struct{} {
	gate := make(chan struct{})
	close(gate)
	return gate
}
