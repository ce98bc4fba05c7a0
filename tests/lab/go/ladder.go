package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

var errWarehouse = errors.New("warehouse refused the connection")

// verdicts tells what each mode makes of an error on its way from "reserve" to "place order".
var verdicts = map[string]string{
	"wrap_w": "wrapped", "wrap_v": "flattened", "json": "flattened", "json_empty": "replaced",
	"join": "wrapped", "kept": "kept", "kept_with_stack": "kept", "replaced": "replaced",
	"swallowed": "swallowed", "retried": "recovered",
	"event_without_status": "status_lost", "status_without_event": "status_lost",
}

// climb fails below, treats the error as mode says, and logs what the hop became.
func climb(w http.ResponseWriter, r *http.Request) {
	mode := r.PathValue("mode")
	switch mode {
	case "panic_recovered", "panic_through":
		burn(r.Context(), mode)
	}
	ctx, outer := tracer.Start(r.Context(), "place order")
	defer outer.End()
	inner, err := reserve(ctx, mode)
	react(ctx, outer, mode, err)
	truth(row{kind: "error_hop", boundary: "same", verdict: verdicts[mode], detail: "go_" + mode},
		inner, outer.SpanContext())
	if mode != "swallowed" && mode != "retried" {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func reserve(ctx context.Context, mode string) (trace.SpanContext, error) {
	_, span := tracer.Start(ctx, "reserve")
	defer span.End()
	err := fmt.Errorf("reserve for %s: %w", mode, errWarehouse)
	span.RecordError(err)
	span.SetStatus(codes.Error, err.Error())
	return span.SpanContext(), err
}

func react(ctx context.Context, outer trace.Span, mode string, err error) {
	record := func(err error, options ...trace.EventOption) {
		outer.RecordError(err, options...)
		outer.SetStatus(codes.Error, err.Error())
	}
	switch mode {
	case "wrap_w":
		record(fmt.Errorf("place order: %w", err))
	case "wrap_v":
		record(fmt.Errorf("place order: %v", err))
	case "json":
		body, _ := json.Marshal(map[string]string{"error": err.Error()})
		var answer map[string]string
		_ = json.Unmarshal(body, &answer)
		record(errors.New("upstream: " + answer["error"]))
	case "json_empty":
		body, _ := json.Marshal(err)
		record(errors.New("upstream: " + string(body)))
	case "join":
		record(errors.Join(err, errors.New("rollback failed")))
	case "kept":
		record(err)
	case "kept_with_stack":
		record(err, trace.WithStackTrace(true))
	case "replaced":
		record(errors.New("something went wrong"))
	case "event_without_status":
		outer.RecordError(err)
	case "status_without_event":
		outer.SetStatus(codes.Error, "")
	case "retried":
		_, second := tracer.Start(ctx, "reserve")
		second.End()
	}
}

// burn panics inside a span; a middleware recovers it, or nobody does.
func burn(ctx context.Context, mode string) {
	server := trace.SpanContextFromContext(ctx)
	_, span := tracer.Start(ctx, "divide stock")
	defer span.End()
	truth(row{kind: "error_hop", boundary: "same", verdict: "status_lost", detail: "go_" + mode},
		span.SpanContext(), server)
	panic(fmt.Errorf("stock of %s divided by zero", mode))
}
