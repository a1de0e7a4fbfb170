// Package vaultv1connect serves package vaultv1 as gRPC, gRPC-Web and plain JSON
// over HTTPS, with the same handlers.
package vaultv1connect
