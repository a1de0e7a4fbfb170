//go:build linux

package memory

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// onServer moves the account's vault to an ov-server of its own, and logs in to
// it.
func (a *account) onServer() *os.Process {
	a.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	data := filepath.Join(a.dir, "server")
	run := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(a.bin, "ov-server"), append(args, "--data", data)...)
		cmd.Env = a.env
		return cmd
	}
	must := func(args ...string) []byte {
		a.t.Helper()
		out, err := run(args...).Output()
		if err != nil {
			a.t.Fatalf("ov-server %v: %v", args, err)
		}
		return bytes.TrimSpace(out)
	}
	must("init", "--host", "localhost")
	must("account", "create", "team")
	a.apiKey = must("apikey", "create", "--account", "team", "--name", "admin", "--scope", "admin")
	serve := run("serve", "--listen", address)
	if err := serve.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _, _ = serve.Process.Kill(), serve.Wait() })
	login := []string{"auth", "login", "--server", "https://" + address, "--ca", filepath.Join(data, "tls", "ca.pem"), "--api-key-stdin"}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := a.try(a.apiKey, login...)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			a.t.Fatal(err)
		}
	}
	a.ov(nil, "vault", "push", "--from", a.dir+"/data/ov/vault.db", "--to", "https://"+address)
	return serve.Process
}

// An agent whose vault is on a server holds an API key too. It, and all else that
// is secret, is nowhere that root can read: while the server is there, and when
// it is away and the cache answers.
func TestAgentOfServerHoldsNoSecretThatRootCanRead(t *testing.T) {
	needRoot(t)
	if !hasSecretMem(t) {
		t.Skip("this kernel has no memfd_secret(2)")
	}
	a := newAccount(t, "../../bin")
	server := a.onServer()
	a.start()
	a.serve(requests / 5)
	pull := filepath.Join(a.dir, "pulled.db")
	a.ov(nil, "vault", "pull", "--from", a.vault(), "--to", pull)
	a.keys = keysOf(t, pull, a.password) // of versions written meanwhile too
	if err := os.Remove(pull); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	status := a.agentStatus()
	if status.Memory != "memfd_secret" {
		t.Errorf("the key is in %s", status.Memory)
	}
	time.Sleep(time.Second)
	a.check("agent of a server", a.scan(status.PID), nothing)

	// It is what the agent has read, and shows to the server with each call.
	if file, err := os.ReadFile(filepath.Join(a.dir, "config/ov/servers.toml")); err != nil || !bytes.Contains(file, a.apiKey) {
		t.Errorf("the API key that was looked for is not the agent's: %v", err)
	}

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	a.ov(nil, "run", "--app", "myapp", "--env", "production", "--", "/bin/true")
	time.Sleep(time.Second)
	a.check("the same with the server away", a.scan(status.PID), nothing)
}

// vault returns the address that the agent has.
func (a *account) vault() string {
	a.t.Helper()
	var status struct {
		Vault string `json:"vault"`
	}
	a.statusInto(&status)
	return status.Vault
}
