//go:build unix

// Grpchealth is the floor for a launcher that asks a daemon by gRPC: it makes
// one health call over a Unix socket and becomes its arguments.
//
//	grpchealth SOCKET CMD ARGS…
//	grpchealth serve SOCKET
//	grpchealth calls SOCKET N
//
// The second form is the server, the third makes N calls on one connection and
// prints how many nanoseconds they took.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "grpchealth:", err)
		os.Exit(125)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 3 && args[0] == "calls":
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		took, err := call(args[1], n)
		if err != nil {
			return err
		}
		fmt.Println(took.Nanoseconds())
		return nil
	case len(args) >= 2:
		if _, err := call(args[0], 1); err != nil {
			return err
		}
		return syscall.Exec(args[1], args[1:], os.Environ())
	}
	return fmt.Errorf("usage: grpchealth SOCKET CMD ARGS…")
}

func serve(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	return s.Serve(l)
}

func call(socket string, n int) (time.Duration, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	client := grpc_health_v1.NewHealthClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start := time.Now()
	for range n {
		if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}
