//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// dataset is one account's records: a vault of n secrets in one env.
type dataset struct {
	n       int
	dir     string // of an ov-server with the embedded storage
	account store.AccountID
	sample  []secretRecords // some of the secrets
}

// secretRecords are the records of one secret.
type secretRecords struct {
	data, value store.Record
}

// newDataset makes a data directory for ov-server with such an account.
func newDataset(dir string, n int, ov serverPrograms) (*dataset, error) {
	d := &dataset{n: n, dir: dir}
	if err := ov.run(nil, "init", "--data", dir, "--host", "127.0.0.1"); err != nil {
		return nil, err
	}
	var err error
	if d.account, err = ov.createAccount("--data", dir); err != nil {
		return nil, err
	}
	ctx := context.Background()
	accounts, err := embedded.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = accounts.Close() }()
	st := accounts.Store(d.account)
	if err := fillVault(ctx, st, n); err != nil {
		return nil, err
	}
	return d, d.pick(ctx, st)
}

// fillVault makes a vault in an empty store.
func fillVault(ctx context.Context, st store.Store, n int) error {
	pw, err := kek.LockedFrom([]byte(password))
	if err != nil {
		return err
	}
	defer pw.Destroy()
	v := vault.New(st)
	create := func(ctx context.Context, b store.Batch) error {
		return st.Update(ctx, func(store.Reader) (store.Batch, error) { return b, nil })
	}
	if err := v.Init(ctx, create, pw); err != nil {
		return err
	}
	s, err := v.Unlock(ctx, pw)
	if err != nil {
		return err
	}
	defer s.Destroy()
	return putMany(ctx, s, n)
}

// putMany writes n secrets of 32 bytes, new ones.
func putMany(ctx context.Context, s *vault.Session, n int) error {
	for from := 0; from < n; from += vault.MaxBatch / 2 {
		var batch []vault.Put
		for i := from; i < min(n, from+vault.MaxBatch/2); i++ {
			batch = append(batch, vault.Put{Name: fmt.Sprintf("SECRET_%d", i), Value: fmt.Appendf(nil, "the value of secret %012d", i)})
		}
		if _, err := s.Put(ctx, ref, batch, vault.PutOptions{Create: true}); err != nil {
			return err
		}
	}
	return nil
}

// pick takes secrets of which the records are then asked for: spread over all.
func (d *dataset) pick(ctx context.Context, st store.Store) error {
	const want = 10_000
	return st.View(ctx, func(r store.Reader) error {
		i := 0
		return r.Scan([]byte("d"), func(key, value []byte) error {
			if i++; i%max(1, d.n/want) != 0 {
				return nil
			}
			data := store.Record{Key: bytes.Clone(key), Value: bytes.Clone(value)}
			at := append([]byte("v"), key[1:]...)
			v, err := r.Get(at)
			d.sample = append(d.sample, secretRecords{data, store.Record{Key: at, Value: bytes.Clone(v)}})
			return err
		})
	})
}

// ten are some of the secrets, others each time.
func (d *dataset) ten() []secretRecords {
	out := make([]secretRecords, handed)
	from := mathrand.IntN(len(d.sample))
	for i := range out {
		out[i] = d.sample[(from+i*(len(d.sample)/handed))%len(d.sample)]
	}
	return out
}

// serverPrograms runs ov-server.
type serverPrograms struct {
	bin string
	env []string
}

func (p serverPrograms) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, "ov-server"), args...)
	cmd.Env = append(os.Environ(), p.env...)
	return cmd
}

func (p serverPrograms) run(stdout io.Writer, args ...string) error {
	cmd := p.command(args...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ov-server %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return nil
}

func (p serverPrograms) createAccount(flags ...string) (id store.AccountID, err error) {
	var out bytes.Buffer
	if err := p.run(&out, append([]string{"account", "create", "bench", "--json"}, flags...)...); err != nil {
		return id, err
	}
	var a struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return id, err
	}
	b, err := hex.DecodeString(a.ID)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("account id %q: %w", a.ID, err)
	}
	return store.AccountID(b), nil
}

// node is a running ov-server, and what talks to it.
type node struct {
	name    string
	token   string
	rpc     vaultv1.VaultClient
	session *vault.Session
}

// serve starts an ov-server on the dataset, and connects to it.
func (p serverPrograms) serve(name string, d *dataset, flags ...string) (*node, error) {
	flags = append([]string{"--data", d.dir}, flags...)
	var out bytes.Buffer
	if err := p.run(&out, append([]string{"apikey", "create", "--name", "bench", "--scope", "admin"}, flags...)...); err != nil {
		return nil, err
	}
	n := &node{name: name, token: strings.TrimSpace(out.String())}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	log, err := os.Create(filepath.Join(d.dir, "serve.log"))
	if err != nil {
		return nil, err
	}
	cmd := p.command(append([]string{"serve", "--listen", address}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	atEnd(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait(); _ = log.Close() })
	ca, err := os.ReadFile(filepath.Join(d.dir, "tls", "ca.pem"))
	if err != nil {
		return nil, err
	}
	far, err := remote.New(remote.Options{URL: "https://" + address, CA: ca, Token: []byte(n.token), Wait: 20 * time.Second})
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = far.Close() })
	pw, err := kek.LockedFrom([]byte(password))
	if err != nil {
		return nil, err
	}
	defer pw.Destroy()
	if n.session, err = vault.New(far).Unlock(context.Background(), pw); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	atEnd(n.session.Destroy)
	conn, err := dialHybrid(address, ca)
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = conn.Close() })
	n.rpc = vaultv1.NewVaultClient(conn)
	return n, nil
}

// dialHybrid connects as ov does: TLS 1.3 with X25519MLKEM768.
func dialHybrid(address string, ca []byte) (*grpc.ClientConn, error) {
	c := &certificate{}
	if err := c.trust(ca); err != nil {
		return nil, err
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: c.roots, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
	})))
}

// read asks for the newest versions of ten secrets, in one call.
func (n *node) read(ctx context.Context, d *dataset) error {
	req := &vaultv1.ReadRequest{}
	for _, s := range d.ten() {
		for _, rec := range []store.Record{s.data, s.value} {
			req.Ranges = append(req.Ranges, &vaultv1.Range{Key: rec.Key[:len(rec.Key)-4], Take: vaultv1.Take_TAKE_LAST})
		}
	}
	resp, err := n.rpc.Read(n.authorized(ctx), req)
	if err != nil {
		return err
	}
	for _, list := range resp.Results {
		if len(list.Records) != 1 {
			return errors.New("a record is missing")
		}
	}
	return nil
}

// write writes the records of ten secrets again, in one call.
func (n *node) write(ctx context.Context, d *dataset) error {
	id := make([]byte, 16)
	rand.Read(id)
	req := &vaultv1.CommitRequest{Id: id, End: true}
	for _, s := range d.ten() {
		for _, rec := range []store.Record{s.data, s.value} {
			req.Ops = append(req.Ops, &vaultv1.Op{Key: rec.Key, Value: rec.Value})
		}
	}
	req.Count = uint64(len(req.Ops))
	stream, err := n.rpc.Commit(n.authorized(ctx))
	if err != nil {
		return err
	}
	if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.CloseAndRecv()
	return err
}

func (n *node) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+n.token)
}

func tenNames(n int) []string {
	names := make([]string, handed)
	from := mathrand.IntN(n)
	for i := range names {
		names[i] = fmt.Sprintf("SECRET_%d", (from+i*(n/handed))%n)
	}
	return names
}

// reveal reads and decrypts ten secrets, as ov run does.
func (n *node) reveal(ctx context.Context, d *dataset) error {
	return n.session.Reveal(ctx, ref, vault.Select{Names: tenNames(d.n)}, func(list []vault.Secret) error {
		if len(list) != handed {
			return fmt.Errorf("%d secrets", len(list))
		}
		return nil
	})
}

// put encrypts and writes new versions of ten secrets, as ov secret import does.
func (n *node) put(ctx context.Context, d *dataset) error {
	var list []vault.Put
	for _, name := range tenNames(d.n) {
		value := make([]byte, 16)
		rand.Read(value)
		list = append(list, vault.Put{Name: name, Value: hex.AppendEncode(nil, value)})
	}
	_, err := n.session.Put(ctx, ref, list, vault.PutOptions{})
	return err
}

// echo answers with the same messages over the same TLS, and does nothing.
type echo struct {
	vaultv1connect.UnimplementedVaultHandler
	answer *vaultv1.ReadResponse
}

func (e *echo) Read(context.Context, *connect.Request[vaultv1.ReadRequest]) (*connect.Response[vaultv1.ReadResponse], error) {
	return connect.NewResponse(e.answer), nil
}

func (e *echo) Commit(_ context.Context, stream *connect.ClientStream[vaultv1.CommitRequest]) (*connect.Response[vaultv1.CommitResponse], error) {
	for stream.Receive() {
	}
	return connect.NewResponse(&vaultv1.CommitResponse{}), stream.Err()
}

// startEcho starts the echo in a process of its own: this program, again.
func startEcho(dir string, c *certificate, d *dataset) (*node, error) {
	answer := &vaultv1.ReadResponse{}
	for _, s := range d.ten() {
		for _, rec := range []store.Record{s.data, s.value} {
			answer.Results = append(answer.Results, &vaultv1.Records{Records: []*vaultv1.Record{{Key: rec.Key, Value: rec.Value}}})
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if err := writeMessage(filepath.Join(dir, "echo.pb"), answer); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), echoEnv+"="+strings.Join([]string{address, filepath.Join(dir, "echo.pb"), c.file, c.key}, "\n"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	atEnd(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ca, err := os.ReadFile(c.file)
	if err != nil {
		return nil, err
	}
	conn, err := dialHybrid(address, ca)
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = conn.Close() })
	n := &node{name: "a bare connect echo", rpc: vaultv1.NewVaultClient(conn)}
	for range 100 {
		if err = n.read(context.Background(), d); err == nil {
			return n, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, err
}

// echoEnv has a process of this program be the echo.
const echoEnv = "OV_BENCH_ECHO"

func beEcho(said string) error {
	f := strings.Split(said, "\n")
	e := &echo{answer: &vaultv1.ReadResponse{}}
	if err := readMessage(f[1], e.answer); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(vaultv1connect.NewVaultHandler(e))
	s := &http.Server{Addr: f[0], Handler: mux, ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
	}}
	return s.ListenAndServeTLS(f[2], f[3])
}

// printServer prints what ov-server does beside etcd, bare SQL and an echo.
func printServer(dir, bin, sizes string, bulk int) error {
	ov := serverPrograms{bin: bin}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for k, text := range strings.Split(sizes, ",") {
		size, err := strconv.Atoi(text)
		if err != nil || size < handed {
			return fmt.Errorf("a vault of %q secrets: at least %d are asked for", text, handed)
		}
		here := filepath.Join(dir, fmt.Sprintf("server-%d", size))
		if err := os.MkdirAll(here, 0o700); err != nil {
			return err
		}
		c, err := newCertificate(here)
		if err != nil {
			return err
		}
		d, err := newDataset(here, size, ov)
		if err != nil {
			return err
		}
		var reads, writes []subject
		add := func(name string, read, write func(ctx context.Context) error) {
			reads = append(reads, subject{name, func(ctx context.Context, _, _ int) error { return read(ctx) }})
			if write != nil {
				writes = append(writes, subject{name, func(ctx context.Context, _, _ int) error { return write(ctx) }})
			}
		}
		withDataset := func(fn func(context.Context, *dataset) error) func(context.Context) error {
			return func(ctx context.Context) error { return fn(ctx, d) }
		}
		for _, nodes := range []int{1, 3} {
			cluster, err := startEtcd(here, nodes, c)
			if err != nil {
				return err
			}
			if err := cluster.fill(d); err != nil {
				return err
			}
			add(fmt.Sprintf("etcd 3.4, %s", plural(nodes, "node")), withDataset(cluster.getTen), withDataset(cluster.putTen))
		}
		bare, err := startEcho(here, c, d)
		if err != nil {
			return err
		}
		add(bare.name, withDataset(bare.read), withDataset(bare.write))

		db, err := startPostgres(here, d, ov)
		if err != nil {
			return err
		}
		onBolt, err := ov.serve("ov-server on bbolt", d)
		if err != nil {
			return err
		}
		nodes := []*node{onBolt}
		add("bare SQL over pgx", withDataset(db.getTen), withDataset(db.putTen))
		nodes = append(nodes, db.node)
		for _, n := range nodes {
			add(n.name, withDataset(n.read), withDataset(n.write))
			add(n.name+", whole client", withDataset(n.reveal), withDataset(n.put))
		}
		for _, clients := range []int{1, 8} {
			for _, what := range []struct {
				title    string
				subjects []subject
			}{{"reads", reads}, {"writes", writes}} {
				results, err := load(clients, 3, time.Second, what.subjects)
				if err != nil {
					return err
				}
				fmt.Printf("\n## ov-server: %s of 10 secrets, %d in the vault, %s\n\n", what.title, size, plural(clients, "client"))
				printLoad(results, 0)
			}
		}
		if k == 0 {
			if err := printServerBulk(nodes, bulk); err != nil {
				return err
			}
		}
		cleanup() // the next size has the machine to itself
	}
	return nil
}

// printServerBulk times what ov secret import does with many secrets at once.
func printServerBulk(nodes []*node, bulk int) error {
	fmt.Printf("\n## ov-server: %d secrets imported at once\n\n| where | seconds here | per secret |\n|---|---:|---:|\n", bulk)
	for _, n := range nodes {
		start := time.Now()
		list := make([]vault.Put, bulk)
		for i := range list {
			list[i] = vault.Put{Name: fmt.Sprintf("SECRET_%d", i), Value: fmt.Appendf(nil, "the value of secret %012d", i)}
		}
		if _, err := n.session.Put(context.Background(), vault.Ref{App: "bulk", Env: "production"}, list, vault.PutOptions{Create: true}); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		took := time.Since(start)
		fmt.Printf("| %s | %.2f | %.1f µs |\n", n.name, took.Seconds(), took.Seconds()*1e6/float64(bulk))
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func writeMessage(path string, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func readMessage(path string, m proto.Message) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}
