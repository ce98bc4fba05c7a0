import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.opentelemetry.api.GlobalOpenTelemetry;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** The order service: a plain HTTP server under the Java agent, executors and own threads. */
public final class Orders {
  private static final Tracer TRACER = GlobalOpenTelemetry.getTracer("lab.orders", "1.0");
  private static final HttpClient CLIENT = HttpClient.newHttpClient();
  private static final ExecutorService POOL = pool();
  private static final BlockingQueue<Work> QUEUE = new LinkedBlockingQueue<>();

  /** Not a Runnable, so that the agent cannot carry the context along. */
  private record Work(String order, Context context, SpanContext caller, CountDownLatch done) {}

  public static void main(String[] arguments) throws IOException {
    for (int i = 0; i < 2; i++) {
      new Thread(Orders::pump, "packer-" + i).start();
    }
    int port = Integer.parseInt(System.getenv("LAB_PORT"));
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.setExecutor(Executors.newFixedThreadPool(8));
    server.createContext("/orders/", exchange -> answer(exchange, order(last(exchange))));
    server.createContext("/fail/", exchange -> answer(exchange, Ladder.climb(last(exchange))));
    server.start();
  }

  /** Virtual threads where the JDK has them (21 and later), else a fixed pool. */
  private static ExecutorService pool() {
    try {
      return (ExecutorService)
          Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null);
    } catch (ReflectiveOperationException old) {
      return Executors.newFixedThreadPool(4);
    }
  }

  private static String last(HttpExchange exchange) {
    String path = exchange.getRequestURI().getPath();
    return path.substring(path.lastIndexOf('/') + 1);
  }

  private static void answer(HttpExchange exchange, int status) throws IOException {
    byte[] body = "{}".getBytes();
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }

  private static int order(String order) {
    Span server = Span.current();
    if (order.startsWith("none")) {
      Facts.truth("legal", null, null, null, "answered_404", server.getSpanContext(), null);
      return 404;
    }
    try {
      var priced = POOL.submit(() -> span("price order", order, 2));
      CompletableFuture<Void> taxed = CompletableFuture.runAsync(() -> span("tax order", order, 1));
      pack(order, server.getSpanContext());
      call(order);
      bill(order);
      priced.get(5, TimeUnit.SECONDS);
      taxed.get(5, TimeUnit.SECONDS);
    } catch (Exception error) {
      server.recordException(error);
      return 500;
    }
    if (Facts.chance(0.15)) {
      SpanContext caller = server.getSpanContext();
      POOL.submit(() -> later(order, caller));
    }
    return 200;
  }

  private static void span(String name, String order, int millis) {
    Span span = TRACER.spanBuilder(name).setAttribute("app.order", order).startSpan();
    try (Scope ignored = span.makeCurrent()) {
      pause(millis);
      TRACER.spanBuilder(name + " step").startSpan().end();
    } finally {
      span.end();
    }
  }

  /** Outlive the response on purpose: a legal fire-and-forget child. */
  private static void later(String order, SpanContext caller) {
    pause(120);
    Span span = TRACER.spanBuilder("archive order").startSpan();
    Facts.truth("legal", null, "thread", null, "fire_and_forget", span.getSpanContext(), caller);
    span.end();
  }

  private static void pack(String order, SpanContext caller) throws InterruptedException {
    CountDownLatch done = new CountDownLatch(1);
    Context handed = Facts.fault("queue_without_context") ? null : Context.current();
    QUEUE.put(new Work(order, handed, caller, done));
    done.await(5, TimeUnit.SECONDS);
  }

  /** Take work in threads of its own; a leaking one keeps the context of an earlier order. */
  private static void pump() {
    Scope leaked = null;
    while (true) {
      try {
        Work work = QUEUE.take();
        boolean stale = leaked != null;
        Context context = work.context() == null || stale ? Context.current() : work.context();
        Scope scope = context.makeCurrent();
        Span span = TRACER.spanBuilder("pack order").setAttribute("app.order", work.order()).startSpan();
        boolean own = span.getSpanContext().getTraceId().equals(work.caller().getTraceId());
        if (!own) {
          Facts.truth(
              stale ? "wrong_parent" : "detached_root",
              stale ? "context_leak" : "context_not_propagated",
              "thread", null, stale ? "reused_worker" : "queue_without_context",
              span.getSpanContext(), work.caller());
        }
        pause(1);
        span.end();
        scope.close();
        if (stale) {
          leaked.close();
          leaked = null;
        } else if (Facts.fault("worker_keeps_context")) {
          leaked = work.context() == null ? null : work.context().makeCurrent();
        }
        work.done().countDown();
      } catch (InterruptedException error) {
        return;
      }
    }
  }

  /** Hold a middle span that may never end. */
  private static void bill(String order) {
    boolean lost = Facts.fault("never_ended");
    SpanContext server = Span.current().getSpanContext();
    Span span = TRACER.spanBuilder("bill order").startSpan();
    try (Scope ignored = span.makeCurrent()) {
      TRACER.spanBuilder("charge card").setAttribute("app.order", order).startSpan().end();
    }
    if (lost) {
      Facts.neverEnded(span, "bill order", server);
    } else {
      span.end();
    }
  }

  private static void call(String order) throws IOException, InterruptedException {
    URI uri = URI.create(System.getenv("NOTIFY") + "/messages/" + order);
    CLIENT.send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
  }

  private static void pause(int millis) {
    try {
      Thread.sleep(millis);
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
    }
  }
}
