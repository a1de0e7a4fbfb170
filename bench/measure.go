//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"time"
)

// program is one row of a table: a command whose whole life is timed.
type program struct {
	name string
	argv []string
	env  []string // the whole environment; nil is the runner's own
}

// result holds the medians of a program's runs.
type result struct {
	name string
	wall time.Duration // from before fork to after wait
	high time.Duration // 9 of 10 runs took less
	cpu  time.Duration // user and system time of the process (wait4(2))
	runs int
}

// measure runs the programs one after the other, n times over, each round in
// another order, so that what else the machine does hits all of them alike.
func measure(n int, programs []program) ([]result, error) {
	const warmUp = 5
	wall := make([][]time.Duration, len(programs))
	cpu := make([][]time.Duration, len(programs))
	for round := range n + warmUp {
		for i := range programs {
			p := (i + round) % len(programs)
			w, c, err := once(programs[p])
			if err != nil {
				return nil, err
			}
			if round >= warmUp {
				wall[p], cpu[p] = append(wall[p], w), append(cpu[p], c)
			}
		}
	}
	var results []result
	for i, p := range programs {
		slices.Sort(wall[i])
		slices.Sort(cpu[i])
		results = append(results, result{p.name, wall[i][n/2], wall[i][n*9/10], cpu[i][n/2], n})
	}
	return results, nil
}

func once(p program) (wall, cpu time.Duration, err error) {
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = p.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	err = cmd.Run()
	wall = time.Since(start)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", p.name, err, &stderr)
	}
	return wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// ratio prints a in units of b.
func ratio(a, b time.Duration) string { return fmt.Sprintf("%.2f", float64(a)/float64(b)) }
