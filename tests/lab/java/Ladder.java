import io.opentelemetry.api.GlobalOpenTelemetry;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Scope;
import java.io.IOException;
import java.util.Map;
import java.util.concurrent.CompletionException;

/** Errors on their way up: an inner span fails, an outer span makes something of it. */
final class Ladder {
  private static final Tracer TRACER = GlobalOpenTelemetry.getTracer("lab.orders", "1.0");
  private static final Map<String, String> VERDICTS =
      Map.ofEntries(
          Map.entry("kept", "kept"), Map.entry("cause", "wrapped"),
          Map.entry("completion", "wrapped"), Map.entry("suppressed", "wrapped"),
          Map.entry("flattened", "flattened"), Map.entry("replaced", "replaced"),
          Map.entry("swallowed", "swallowed"), Map.entry("retried", "recovered"),
          Map.entry("event_without_status", "status_lost"),
          Map.entry("status_without_event", "status_lost"));

  /** What the outer layer raises. */
  static final class OrderException extends RuntimeException {
    OrderException(String message, Throwable cause) {
      super(message, cause);
    }
  }

  private Ladder() {}

  static int climb(String mode) {
    Span outer = TRACER.spanBuilder("place order").startSpan();
    try (Scope ignored = outer.makeCurrent()) {
      Span inner = TRACER.spanBuilder("reserve").startSpan();
      Exception error = fail(mode);
      record(inner, error);
      inner.end();
      react(outer, mode, error);
      Facts.truth(
          "error_hop", null, "same", VERDICTS.get(mode), "java_" + mode,
          inner.getSpanContext(), outer.getSpanContext());
    } finally {
      outer.end();
    }
    return mode.equals("swallowed") || mode.equals("retried") ? 200 : 500;
  }

  private static Exception fail(String mode) {
    try {
      throw new IOException("shelf for " + mode + " is empty");
    } catch (IOException error) {
      return new IllegalStateException("cannot reserve for " + mode, error);
    }
  }

  private static void record(Span span, Throwable error) {
    span.recordException(error);
    span.setStatus(StatusCode.ERROR, error.getMessage());
  }

  private static void react(Span outer, String mode, Exception error) {
    switch (mode) {
      case "kept" -> record(outer, error);
      case "cause" -> record(outer, new OrderException("order not placed", error));
      case "completion" -> record(outer, new CompletionException(error));
      case "suppressed" -> {
        OrderException raised = new OrderException("order not placed", null);
        raised.addSuppressed(error);
        record(outer, raised);
      }
      case "flattened" ->
          record(outer, new OrderException("order not placed: " + error.getMessage(), null));
      case "replaced" -> record(outer, new OrderException("something went wrong", null));
      case "event_without_status" -> outer.recordException(error);
      case "status_without_event" -> outer.setStatus(StatusCode.ERROR);
      case "retried" -> TRACER.spanBuilder("reserve").startSpan().end();
      default -> { }
    }
  }
}
