// Command replay evaluates rule files with Prometheus' own rules manager at simulated times.
//
// Samples are appended to a fresh TSDB in order of time, and each group is evaluated as its
// interval passes, so recording rules see exactly what a live server would have seen. One JSON
// line is written per alert that begins or ceases to fire.
package main

import (
	"bufio"
	"container/heap"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"sort"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/teststorage"
)

// series is one line of the replay file; a null value is a staleness marker.
type series struct {
	Labels map[string]string `json:"labels"`
	T      []int64           `json:"t"`
	V      []*float64        `json:"v"`

	lset labels.Labels
	ref  storage.SeriesRef
	next int
}

// queue holds the series by the time of their next sample.
type queue []*series

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].T[q[i].next] < q[j].T[q[j].next] }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*series)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

type event struct {
	Alert  string            `json:"alert"`
	Labels map[string]string `json:"labels"`
	Firing bool              `json:"firing"`
	At     int64             `json:"at"`
}

func readSeries(path string) (queue, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(make([]byte, 1<<20), 1<<30)
	var all queue
	for scanner.Scan() {
		one := &series{}
		if err := json.Unmarshal(scanner.Bytes(), one); err != nil {
			return nil, err
		}
		if len(one.T) != len(one.V) {
			return nil, fmt.Errorf("%v: %d times, %d values", one.Labels, len(one.T), len(one.V))
		}
		one.lset = labels.FromMap(one.Labels)
		if len(one.T) > 0 {
			all = append(all, one)
		}
	}
	return all, scanner.Err()
}

func appendUntil(ctx context.Context, db *teststorage.TestStorage, q *queue, until int64) error {
	app := db.AppenderV2(ctx)
	for q.Len() > 0 && (*q)[0].T[(*q)[0].next] <= until {
		s := (*q)[0]
		v := math.Float64frombits(value.StaleNaN)
		if s.V[s.next] != nil {
			v = *s.V[s.next]
		}
		ref, err := app.Append(s.ref, s.lset, 0, s.T[s.next], v, nil, nil, storage.AppendV2Options{})
		if err != nil {
			return fmt.Errorf("%v at %d: %w", s.lset, s.T[s.next], err)
		}
		s.ref = ref
		s.next++
		if s.next == len(s.T) {
			heap.Pop(q)
		} else {
			heap.Fix(q, 0)
		}
	}
	return app.Commit()
}

func run(rulesPath, seriesPath string, start, end int64, interval time.Duration) error {
	ctx := context.Background()
	q, err := readSeries(seriesPath)
	if err != nil {
		return err
	}
	heap.Init(&q)
	db, err := teststorage.NewWithError()
	if err != nil {
		return err
	}
	defer db.Close()
	logger := promslog.New(&promslog.Config{Writer: os.Stderr})
	language := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{
		Logger:     logger,
		MaxSamples: 50_000_000,
		Timeout:    time.Minute,
		Parser:     language,
	})
	manager := rules.NewManager(&rules.ManagerOptions{
		NameValidationScheme: model.UTF8Validation,
		QueryFunc:            rules.EngineQueryFunc(engine, db),
		AppendableV2:         db,
		Queryable:            db,
		Context:              ctx,
		NotifyFunc:           func(context.Context, string, ...*rules.Alert) {},
		Logger:               logger,
		Parser:               language,
	})
	groups, errs := manager.LoadGroups(interval, labels.EmptyLabels(), "", nil, false, rulesPath)
	if len(errs) > 0 {
		return errs[0]
	}
	names := make([]string, 0, len(groups))
	for name := range groups {
		names = append(names, name)
	}
	sort.Strings(names)

	out := json.NewEncoder(os.Stdout)
	firing := map[string]event{}
	for at := start; at <= end; at += interval.Milliseconds() {
		if err := appendUntil(ctx, db, &q, at); err != nil {
			return err
		}
		ts := time.UnixMilli(at).UTC()
		seen := map[string]bool{}
		for _, name := range names {
			group := groups[name]
			if (at-start)%group.Interval().Milliseconds() != 0 {
				for key, was := range firing {
					if was.Labels["__group"] == name {
						seen[key] = true
					}
				}
				continue
			}
			group.Eval(ctx, ts)
			if at == start {
				// As a live server does after its first evaluation; ALERTS is written only then.
				group.RestoreForState(ts)
			}
			for _, rule := range group.AlertingRules() {
				if rule.Health() == rules.HealthBad {
					return fmt.Errorf("%s: %w", rule.Name(), rule.LastError())
				}
				for _, alert := range rule.ActiveAlerts() {
					if alert.State != rules.StateFiring {
						continue
					}
					key := name + "\xff" + rule.Name() + "\xff" + alert.Labels.String()
					seen[key] = true
					if _, already := firing[key]; !already {
						now := event{Alert: rule.Name(), Labels: alert.Labels.Map(), Firing: true, At: at}
						if err := out.Encode(now); err != nil {
							return err
						}
						now.Labels["__group"] = name
						firing[key] = now
					}
				}
			}
		}
		for key, was := range firing {
			if !seen[key] {
				delete(firing, key)
				was.Firing, was.At = false, at
				delete(was.Labels, "__group")
				if err := out.Encode(was); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func main() {
	log.SetFlags(0)
	rulesPath := flag.String("rules", "", "rule file")
	seriesPath := flag.String("series", "", "JSON lines: labels, t (ms), v (null = stale)")
	start := flag.Int64("start", 0, "first evaluation, ms")
	end := flag.Int64("end", 0, "last evaluation, ms")
	interval := flag.Duration("interval", 30*time.Second, "evaluation interval")
	flag.Parse()
	if err := run(*rulesPath, *seriesPath, *start, *end, *interval); err != nil {
		log.Fatal("replay: ", err)
	}
}
