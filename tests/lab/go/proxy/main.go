// A proxy without instrumentation: it retries, counts attempts, adds x-request-id, carries
// x-tenant-id, and passes, strips or rewrites traceparent; x-error-context may be stripped too.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	faults = map[string]float64{}
	routes = map[string]string{}
	dice   *rand.Rand
	lock   sync.Mutex
	facts  *os.File
)

func fault(name string) bool {
	lock.Lock()
	defer lock.Unlock()
	return dice.Float64() < faults[name]
}

func main() {
	_ = json.Unmarshal([]byte(os.Getenv("LAB_FAULTS")), &faults)
	_ = json.Unmarshal([]byte(os.Getenv("ROUTES")), &routes)
	seed, _ := strconv.ParseInt(os.Getenv("LAB_SEED"), 10, 64)
	dice = rand.New(rand.NewSource(seed + 77))
	facts, _ = os.Create(os.Getenv("LAB_FACTS") + "/proxy.jsonl")
	http.HandleFunc("/", forward)
	if err := http.ListenAndServe("127.0.0.1:"+os.Getenv("LAB_PORT"), nil); err != nil {
		panic(err)
	}
}

func forward(w http.ResponseWriter, r *http.Request) {
	name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	header := r.Header.Clone()
	if header.Get("X-Request-Id") == "" {
		lock.Lock()
		header.Set("X-Request-Id", fmt.Sprintf("req-%016x", dice.Uint64()))
		lock.Unlock()
	}
	tamper(header)
	for attempt := 1; ; attempt++ {
		header.Set("X-Attempt-Count", strconv.Itoa(attempt))
		request, _ := http.NewRequest(r.Method, routes[name]+"/"+path, nil)
		request.Header = header
		answer, err := http.DefaultClient.Do(request)
		if (err != nil || answer.StatusCode == 503) && attempt < 3 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		_, _ = io.Copy(w, answer.Body)
		return
	}
}

// tamper does to the headers what badly configured proxies do.
func tamper(header http.Header) {
	if sent := header.Get("X-Error-Context"); sent != "" {
		header.Set("X-Lab-Error-Context", sent)
		if fault("strip_error_context") {
			header.Del("X-Error-Context")
		}
	}
	passed := header.Get("Traceparent")
	if passed == "" {
		return
	}
	if fault("strip_traceparent") {
		header.Del("Traceparent")
		header.Set("X-Lab-Stripped", passed)
	} else if fault("rewrite_traceparent") {
		parts := strings.Split(passed, "-")
		lock.Lock()
		hidden := fmt.Sprintf("%016x", dice.Uint64()|1)
		line, _ := json.Marshal(map[string]string{
			"fact": "foreign", "trace_id": parts[1], "span_id": hidden, "parent": parts[2],
		})
		_, _ = facts.Write(append(line, '\n'))
		lock.Unlock()
		header.Set("Traceparent", strings.Join([]string{parts[0], parts[1], hidden, parts[3]}, "-"))
	}
}
