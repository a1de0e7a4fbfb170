// Server is the small service that the guide's test migrates. It needs two
// variables to start, and tells the names of all it has and a hash of each
// value: in its log and to whoever asks on 127.0.0.1:8080.
package main

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run() error {
	for _, name := range []string{"DATABASE_URL", "STRIPE_SECRET_KEY"} {
		if os.Getenv(name) == "" {
			return fmt.Errorf("%s is missing", name)
		}
	}
	var lines []string
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		lines = append(lines, fmt.Sprintf("%s=sha256:%x", name, sha256.Sum256([]byte(value))))
	}
	slices.Sort(lines)

	l, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "pid %d\nargs %q\n%s\n", os.Getpid(), os.Args, strings.Join(lines, "\n"))
		}))
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	fmt.Println("server started with", strings.Join(lines, " "))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	fmt.Println("server stops:", <-stop)
	return nil
}
