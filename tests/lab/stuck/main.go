// A service whose requests hang in eight ways until they are released, or for ever. Two of them
// run side by side, one calling the other, while goroutine profiles are taken.
package main

import (
	"context"
	"io"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/trace"
)

var (
	client  = http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport)}
	release = make(chan struct{})
	shelves sync.RWMutex
	jobs    = make(chan job, 256)
)

type job struct {
	ctx  context.Context
	done chan struct{}
}

func main() {
	stop := start()
	mux := http.NewServeMux()
	for path, handler := range map[string]http.HandlerFunc{
		"GET /orders/{id}": placeOrder, "GET /carts/{id}": quoteCart, "GET /users/{id}": findUser,
		"GET /reports/{id}": buildReport, "GET /payments/{id}": pay, "GET /ledger/{id}": postLedger,
		"GET /search/{id}": searchIndex, "GET /shipments/{id}": ship, "GET /relay/{id}": relay,
		"GET /archive/{id}": archive, "GET /panics/{id}": splitInvoice,
	} {
		mux.HandleFunc(path, handler)
	}
	inner := otelhttp.NewHandler(mux, service,
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
			return r.Method + " /" + strings.Split(r.URL.Path, "/")[1] + "/{id}"
		}))
	outer := http.NewServeMux()
	outer.Handle("/", inner)
	outer.Handle("/debug/pprof/", http.DefaultServeMux)
	outer.HandleFunc("POST /release", func(http.ResponseWriter, *http.Request) {
		shelves.Unlock()
		close(release)
	})
	shelves.Lock()
	for i := 0; i < 64; i++ {
		go worker()
	}
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("LAB_PORT"), Handler: outer}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	_ = server.ListenAndServe()
	stop()
}

// quick requests do the same work and do not hang: the look-alikes of the others.
func quick(r *http.Request) bool { return r.URL.Query().Get("quick") != "" }

func placeOrder(w http.ResponseWriter, r *http.Request) {
	ctx, span := tracer.Start(r.Context(), "place order")
	defer span.End()
	_, hold := tracer.Start(ctx, "reserve stock")
	defer hold.End()
	if !quick(r) {
		shelves.RLock()
		defer shelves.RUnlock()
	}
}

func quoteCart(w http.ResponseWriter, r *http.Request) { awaitQuote(r.Context(), quick(r)) }

func awaitQuote(ctx context.Context, quick bool) {
	_, span := tracer.Start(ctx, "await quote")
	defer span.End()
	if !quick {
		<-release
	}
}

func findUser(w http.ResponseWriter, r *http.Request) {
	_, span := tracer.Start(r.Context(), "poll session")
	defer span.End()
	for !quick(r) {
		select {
		case <-release:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func buildReport(w http.ResponseWriter, r *http.Request) {
	ctx, span := tracer.Start(r.Context(), "build report")
	defer span.End()
	var group sync.WaitGroup
	for page := 0; page < 3; page++ {
		group.Add(1)
		go func() {
			defer group.Done()
			renderPage(ctx, quick(r))
		}()
	}
	group.Wait()
}

func renderPage(ctx context.Context, quick bool) {
	_, span := tracer.Start(ctx, "render page")
	defer span.End()
	if !quick {
		<-release
	}
}

// pay hangs in the client, while the other service hangs in its ledger.
func pay(w http.ResponseWriter, r *http.Request) {
	ctx, span := tracer.Start(r.Context(), "charge card")
	defer span.End()
	fetch(ctx, os.Getenv("NEXT")+"/ledger/"+r.PathValue("id")+"?"+r.URL.RawQuery)
}

func postLedger(w http.ResponseWriter, r *http.Request) {
	_, span := tracer.Start(r.Context(), "write ledger")
	defer span.End()
	if !quick(r) {
		<-release
	}
}

func searchIndex(w http.ResponseWriter, r *http.Request) {
	if !quick(r) {
		<-release
	}
}

// ship waits for a worker of a pool, which hangs.
func ship(w http.ResponseWriter, r *http.Request) {
	done := make(chan struct{})
	if quick(r) {
		return
	}
	jobs <- job{r.Context(), done}
	<-done
}

func worker() {
	for j := range jobs {
		packParcel(j)
	}
}

func packParcel(j job) {
	_, span := tracer.Start(j.ctx, "pack parcel")
	defer span.End()
	<-release
	close(j.done)
}

// relay calls what never ends; its own patience ends after the release.
func relay(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	go func() { <-release; cancel() }()
	fetch(ctx, os.Getenv("NEXT")+"/archive/"+r.PathValue("id"))
}

// archive hangs for ever: its span is never exported.
func archive(w http.ResponseWriter, r *http.Request) {
	caller := strings.Split(r.Header.Get("Traceparent"), "-")
	if len(caller) == 4 {
		write(map[string]any{
			"fact": "hangs_for_ever", "goroutine": goroutineID(), "service_name": service,
			"trace_id": caller[1], "caller": caller[2],
		})
	}
	select {}
}

// splitInvoice panics; net/http recovers and writes the stack to the log.
func splitInvoice(w http.ResponseWriter, r *http.Request) {
	_, span := tracer.Start(r.Context(), "split invoice")
	defer span.End()
	span.SpanContext()
	trace.SpanFromContext(r.Context()).SpanContext()
	parts := 0
	if quick(r) {
		parts = 1
	}
	_ = 100 / parts
}

func fetch(ctx context.Context, url string) {
	request, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	answer, err := client.Do(request)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
}
