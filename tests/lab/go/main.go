// One HTTP service of the lab: otelhttp outermost, then recovery, logging and auth; a goroutine
// fan-out, a worker pool, a client that retries. Built against three generations of the SDK.
package main

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

var client = http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport)}

func main() {
	stop := start()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", items)
	mux.HandleFunc("GET /fail/{mode}", climb)
	mux.HandleFunc("GET /hang/{id}", hang)
	inner := otelhttp.NewHandler(recovery(logging(auth(mux))), service,
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
			return r.Method + " /" + strings.Split(r.URL.Path, "/")[1] + "/{id}"
		}))
	outer := http.NewServeMux()
	outer.Handle("/", inner)
	outer.Handle("/debug/pprof/", http.DefaultServeMux)
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("LAB_PORT"), Handler: outer}
	for i := 0; i < 2; i++ {
		go worker()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	_ = server.ListenAndServe()
	stop()
}

func recovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "panic_through") {
			next.ServeHTTP(w, r)
			return
		}
		defer func() {
			if recover() != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

func logging(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		span := trace.SpanFromContext(r.Context())
		span.SetAttributes(
			attribute.String("app.request.id", r.Header.Get("X-Request-Id")),
			attribute.StringSlice("http.request.header.x-tenant-id", r.Header.Values("X-Tenant-Id")),
			attribute.StringSlice("http.request.header.x-error-context", r.Header.Values("X-Error-Context")))
		judgeHop(r, span)
		judgeHeader(r, span)
		next.ServeHTTP(w, r)
	})
}

// judgeHop tells what the proxy did to the context of this request.
func judgeHop(r *http.Request, span trace.Span) {
	parts := strings.Split(r.Header.Get("X-Lab-Stripped"), "-")
	if len(parts) == 4 && span.IsRecording() {
		truth(row{"detached_root", "context_not_propagated", "network", "", "traceparent_stripped"},
			span.SpanContext(), spanContext(parts[1], parts[2]))
	}
	passed := strings.Split(r.Header.Get("Traceparent"), "-")
	if len(passed) == 4 && span.IsRecording() && passed[1] != span.SpanContext().TraceID().String() {
		truth(row{"detached_root", "context_not_propagated", "network", "", "traceparent_refused"},
			span.SpanContext(), spanContext(passed[1], passed[2]))
	}
	if len(passed) == 4 && passed[3] == "00" && span.IsRecording() {
		write(map[string]any{
			"fact": "unsampled", "trace_id": passed[1], "span_id": passed[2], "parent": nil,
			"service_name": "caller of " + service,
		})
	}
	if !span.IsRecording() {
		var parent any
		if len(passed) == 4 {
			parent = passed[2]
		}
		write(map[string]any{
			"fact": "unsampled", "trace_id": span.SpanContext().TraceID().String(),
			"span_id": span.SpanContext().SpanID().String(), "parent": parent, "service_name": service,
		})
	}
}

// judgeHeader tells whether x-error-context came as it was sent.
func judgeHeader(r *http.Request, span trace.Span) {
	sent, received := r.Header.Get("X-Lab-Error-Context"), r.Header.Get("X-Error-Context")
	if sent == "" || !span.IsRecording() {
		return
	}
	verdict := "kept"
	if received == "" {
		verdict = "lost"
	}
	write(map[string]any{
		"fact": "header", "key": "x-error-context", "sent": sent, "received": received,
		"trace_id": span.SpanContext().TraceID().String(),
		"span_id":  span.SpanContext().SpanID().String(), "service_name": service, "verdict": verdict,
	})
}

func spanContext(traceID, spanID string) trace.SpanContext {
	t, _ := trace.TraceIDFromHex(traceID)
	s, _ := trace.SpanIDFromHex(spanID)
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: t, SpanID: s})
}

func auth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "forbidden") {
			truth(row{kind: "legal", detail: "answered_403"},
				trace.SpanContextFromContext(r.Context()), trace.SpanContext{})
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func items(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if fault("server_error") {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var group sync.WaitGroup
	for shelf := 0; shelf < 2; shelf++ {
		group.Add(1)
		go func() {
			defer group.Done()
			look(ctx, shelf)
		}()
	}
	if next := os.Getenv("NEXT"); next != "" {
		group.Add(1)
		go func() {
			defer group.Done()
			call(ctx, next+"/items/"+r.PathValue("id"), r.Header.Get("X-Request-Id"))
		}()
	}
	group.Wait()
	assemble(ctx)
	done := make(chan struct{})
	jobs <- job{ctx, done}
	<-done
	if chance(0.1) {
		go later(ctx)
	}
	_, _ = io.WriteString(w, "{}")
}

// look runs in a goroutine; the planted one is given context.Background().
func look(ctx context.Context, shelf int) {
	caller := trace.SpanContextFromContext(ctx)
	lost := trace.SpanFromContext(ctx).IsRecording() && fault("goroutine_background")
	if lost {
		ctx = context.Background()
	}
	ctx, span := tracer.Start(ctx, "look at shelf", trace.WithAttributes(attribute.Int("app.shelf", shelf)))
	defer span.End()
	if lost {
		truth(row{"detached_root", "context_not_propagated", "task", "", "goroutine_background"},
			span.SpanContext(), caller)
	}
	time.Sleep(time.Duration(1+rand.Intn(4)) * time.Millisecond)
	_, query := tracer.Start(ctx, "db query", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("db.system.name", "sqlite")))
	time.Sleep(time.Millisecond)
	query.End()
}

// assemble holds a middle span that may never end, always or only on the error path.
func assemble(ctx context.Context) {
	always, onError := fault("middle_never_ended"), fault("never_ended_on_error")
	name := "assemble item"
	if onError {
		name = "assemble offer"
	}
	ctx, span := tracer.Start(ctx, name)
	if !always && !onError {
		defer span.End()
	}
	_, child := tracer.Start(ctx, "join parts")
	defer child.End()
	if onError {
		child.RecordError(io.ErrUnexpectedEOF)
		child.SetStatus(codes.Error, "part is cut")
	}
	time.Sleep(time.Millisecond)
}

type job struct {
	ctx  context.Context
	done chan struct{}
}

var jobs = make(chan job)

// worker serves jobs one after another; a leaking one keeps the context of an earlier job.
func worker() {
	var kept context.Context
	for j := range jobs {
		ctx, stale := j.ctx, kept
		if stale != nil {
			ctx, kept = stale, nil
		}
		_, span := tracer.Start(ctx, "index item")
		caller := trace.SpanContextFromContext(j.ctx)
		if stale != nil && span.SpanContext().TraceID() != caller.TraceID() {
			truth(row{"wrong_parent", "context_leak", "task", "", "reused_worker"},
				span.SpanContext(), caller)
		}
		time.Sleep(500 * time.Microsecond)
		span.End()
		if stale == nil && fault("worker_keeps_context") {
			kept = j.ctx
		}
		close(j.done)
	}
}

// later outlives the response on purpose: a legal fire-and-forget child.
func later(ctx context.Context) {
	time.Sleep(120 * time.Millisecond)
	_, span := tracer.Start(ctx, "warm cache")
	defer span.End()
	truth(row{kind: "legal", boundary: "task", detail: "fire_and_forget"},
		span.SpanContext(), trace.SpanContextFromContext(ctx))
}

// call asks the next service, up to three times.
func call(ctx context.Context, url, requestID string) {
	ctx, span := tracer.Start(ctx, "fetch price")
	defer span.End()
	for attempt := 0; attempt < 3; attempt++ {
		request, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		request.Header.Set("X-Request-Id", requestID)
		note := fmt.Sprintf("attempt=%d", attempt)
		request.Header.Set("X-Error-Context", note)
		span.SetAttributes(attribute.StringSlice("http.request.header.x-error-context", []string{note}))
		answer, err := client.Do(request)
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
			return
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode < 500 {
			if attempt > 0 {
				truth(row{kind: "legal", boundary: "network", detail: "retry_that_succeeds"},
					span.SpanContext(), trace.SpanContext{})
			}
			return
		}
	}
	span.SetStatus(codes.Error, "no price after three attempts")
}

// hang waits long enough that a goroutine profile can be taken.
func hang(w http.ResponseWriter, r *http.Request) {
	_, span := tracer.Start(r.Context(), "wait for lock")
	defer span.End()
	time.Sleep(3 * time.Second)
}
