//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// subject is something that is asked again and again.
type subject struct {
	name string
	// call does it once, for the n-th time by that client.
	call func(ctx context.Context, client, n int) error
}

// loaded is what a subject did.
type loaded struct {
	name     string
	rate     float64 // calls per second
	p50, p99 time.Duration
}

// load asks all subjects in turn, rounds times over, with that many clients at
// once, each for a while. The rate is the best of a subject's rounds, the times
// are over all of them.
func load(clients, rounds int, each time.Duration, subjects []subject) ([]loaded, error) {
	out := make([]loaded, len(subjects))
	all := make([][]time.Duration, len(subjects))
	for round := range rounds {
		for k := range subjects {
			i := (k + round) % len(subjects)
			took, rate, err := loadOnce(clients, round*1_000_000, each, subjects[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", subjects[i].name, err)
			}
			all[i] = append(all[i], took...)
			out[i].rate = max(out[i].rate, rate)
		}
	}
	for i, took := range all {
		slices.Sort(took)
		out[i].name = subjects[i].name
		out[i].p50, out[i].p99 = took[len(took)/2], took[len(took)*99/100]
	}
	return out, nil
}

func loadOnce(clients, from int, each time.Duration, s subject) ([]time.Duration, float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), each+time.Minute)
	defer cancel()
	if err := s.call(ctx, 0, from); err != nil { // connections, plans, caches
		return nil, 0, err
	}
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	start := time.Now()
	for client := range clients {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for n := from + 1; err == nil && time.Since(start) < each; n++ {
				began := time.Now()
				err = s.call(ctx, client, n)
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took, failed = append(took, mine...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	return took, float64(len(took)) / time.Since(start).Seconds(), failed
}

// printLoad prints the results as rates in units of the base's.
func printLoad(results []loaded, base int) {
	fmt.Printf("| what | per second here | of %s | median | 99 of 100 within |\n|---|---:|---:|---:|---:|\n", results[base].name)
	for _, r := range results {
		fmt.Printf("| %s | %.0f | %.2f | %s | %s |\n", r.name, r.rate, r.rate/results[base].rate, millis(r.p50), millis(r.p99))
	}
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1e3) }
