// A service traced by OpenTelemetry's SDK, with Grafana's labels for profiles, that profiles itself:
// what Go's own profiler says of its spans is what another profiler has to say.
//
//	grafana-go SECONDS PROFILE
//
// It writes PROFILE (pprof), and then a line of JSON for each local root span that there was.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// How much of a request is one child span.
const turn = 20 * time.Millisecond

type span struct {
	Name    string `json:"name"`
	SpanID  string `json:"span_id"`
	TraceID string `json:"trace_id"`
}

// One function for each route, so that a stack tells to which span it belongs.
var routes = []struct {
	name    string
	workers int
	work    func() uint64
}{
	{"GET /cart", 3, cart},
	{"GET /recommend", 2, recommend},
	{"GET /checkout", 1, checkout},
}

//go:noinline
func cart() uint64 { return spin(40000) }

//go:noinline
func recommend() uint64 { return spin(30000) + uint64(len(allocate(20))) }

//go:noinline
func checkout() uint64 { return spin(50000) + uint64(len(allocate(40))) }

//go:noinline
func outside() uint64 { return spin(30000) }

//go:noinline
func spin(rounds uint64) uint64 {
	x := rounds
	for i := uint64(0); i < rounds; i++ {
		x = x*6364136223846793005 + i
	}
	return x
}

// Some work for the garbage collector, of which who allocates does a part. Not much: of a thread that
// sleeps and wakes often Go's profiler, whose clocks are looked at when the kernel's timer ticks,
// sees too little.
//
//go:noinline
func allocate(count int) []*[16]int {
	list := make([]*[16]int, count)
	for i := range list {
		list[i] = &[16]int{i}
	}
	return list
}

// One request: a local root span with child spans, and a goroutine that inherits their labels. Both
// give way often, so that they go from thread to thread.
func request(tracer trace.Tracer, name string, work func() uint64, end time.Time) span {
	ctx, root := tracer.Start(context.Background(), name)
	defer root.End()
	var sum uint64
	for until := time.Now().Add(500 * time.Millisecond); time.Now().Before(until) && time.Now().Before(end); {
		_, child := tracer.Start(ctx, "child of "+name)
		done := make(chan uint64)
		go func() {
			var sum uint64
			for until := time.Now().Add(turn / 2); time.Now().Before(until); runtime.Gosched() {
				sum += work()
			}
			done <- sum
		}()
		for until := time.Now().Add(turn); time.Now().Before(until); runtime.Gosched() {
			sum += work()
		}
		sum += <-done
		child.End()
	}
	sink.Store(name, sum)
	ids := root.SpanContext()
	return span{name, ids.SpanID().String(), ids.TraceID().String()}
}

var sink sync.Map

func run(seconds time.Duration, to string) error {
	tracer := otelpyroscope.NewTracerProvider(sdktrace.NewTracerProvider()).Tracer("")
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	end := time.Now().Add(seconds)
	spans := make(chan span, 1<<16)
	var workers sync.WaitGroup
	for _, route := range routes {
		for range route.workers {
			workers.Go(func() {
				for time.Now().Before(end) {
					spans <- request(tracer, route.name, route.work, end)
				}
			})
		}
	}
	workers.Go(func() {
		var sum uint64
		for ; time.Now().Before(end); runtime.Gosched() {
			sum += outside()
		}
		sink.Store("", sum)
	})
	workers.Wait()
	pprof.StopCPUProfile()
	close(spans)
	out := json.NewEncoder(os.Stdout)
	for span := range spans {
		if err := out.Encode(span); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "grafana-go SECONDS PROFILE")
		os.Exit(2)
	}
	seconds, err := strconv.ParseFloat(os.Args[1], 64)
	if err == nil {
		err = run(time.Duration(seconds*float64(time.Second)), os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
