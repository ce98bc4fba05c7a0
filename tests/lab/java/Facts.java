import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Random;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The truth that the service writes down, and the dice of its faults. */
final class Facts {
  private static final String SERVICE = System.getenv("LAB_SERVICE");
  private static final Random DICE = new Random(Long.parseLong(System.getenv("LAB_SEED")));
  private static final Path BOOK =
      Path.of(
          System.getenv("LAB_FACTS"),
          SERVICE + "-" + ProcessHandle.current().pid() + ".jsonl");

  private Facts() {}

  static synchronized boolean chance(double probability) {
    return DICE.nextDouble() < probability;
  }

  static boolean fault(String name) {
    Matcher found =
        Pattern.compile("\"" + name + "\": ([0-9.]+)").matcher(System.getenv("LAB_FAULTS"));
    return found.find() && chance(Double.parseDouble(found.group(1)));
  }

  /** Log one planted row: span is where it shows, parent what its parent should be. */
  static void truth(
      String kind, String cause, String boundary, String verdict, String detail,
      SpanContext span, SpanContext parent) {
    write(
        "{\"fact\": \"truth\", \"kind\": " + text(kind) + ", \"cause\": " + text(cause)
            + ", \"boundary\": " + text(boundary) + ", \"verdict\": " + text(verdict)
            + ", \"detail\": " + text(detail) + ", \"service_name\": " + text(SERVICE)
            + ", \"trace_id\": " + text(span.getTraceId())
            + ", \"span_id\": " + text(span.getSpanId())
            + ", \"true_parent_trace_id\": " + text(parent == null ? null : parent.getTraceId())
            + ", \"true_parent_span_id\": " + text(parent == null ? null : parent.getSpanId())
            + "}");
  }

  /** Log a span that will never end. */
  static void neverEnded(Span span, String name, SpanContext parent) {
    write(
        "{\"fact\": \"start\", \"trace_id\": " + text(span.getSpanContext().getTraceId())
            + ", \"span_id\": " + text(span.getSpanContext().getSpanId())
            + ", \"parent\": " + text(parent.getSpanId()) + ", \"name\": " + text(name)
            + ", \"service_name\": " + text(SERVICE)
            + ", \"pid\": " + ProcessHandle.current().pid()
            + ", \"time\": " + System.currentTimeMillis() * 1_000_000 + "}");
  }

  private static String text(String value) {
    return value == null ? "null" : "\"" + value + "\"";
  }

  private static synchronized void write(String line) {
    try {
      Files.write(
          BOOK, (line + "\n").getBytes(StandardCharsets.UTF_8),
          StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    } catch (IOException error) {
      throw new IllegalStateException(error);
    }
  }
}
