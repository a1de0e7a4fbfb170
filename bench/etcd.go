//go:build unix

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// certificate is one for 127.0.0.1 that signs itself, as files and for clients.
type certificate struct {
	file, key string
	roots     *x509.CertPool
}

func newCertificate(dir string) (*certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	c := &certificate{file: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := errors.Join(os.WriteFile(c.file, certPEM, 0o600), os.WriteFile(c.key, keyPEM, 0o600)); err != nil {
		return nil, err
	}
	return c, c.trust(certPEM)
}

func (c *certificate) trust(pem []byte) error {
	if c.roots = x509.NewCertPool(); !c.roots.AppendCertsFromPEM(pem) {
		return errors.New("no certificate in PEM")
	}
	return nil
}

// etcd is a cluster of Debian's etcd, with TLS between all.
type etcd struct {
	endpoint string
	conn     *grpc.ClientConn
	kv       etcdserverpb.KVClient
}

// startEtcd starts a cluster of that many nodes and connects to its leader.
func startEtcd(dir string, nodes int, c *certificate) (*etcd, error) {
	if _, err := exec.LookPath("etcd"); err != nil {
		return nil, err
	}
	var names, peers, clients []string
	for i := range nodes {
		peer, err := freePort()
		if err != nil {
			return nil, err
		}
		client, err := freePort()
		if err != nil {
			return nil, err
		}
		peers = append(peers, fmt.Sprintf("https://127.0.0.1:%d", peer))
		clients = append(clients, fmt.Sprintf("https://127.0.0.1:%d", client))
		names = append(names, fmt.Sprintf("n%d=%s", i, peers[i]))
	}
	for i := range nodes {
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("etcd-%d-%d.log", nodes, i)))
		if err != nil {
			return nil, err
		}
		cmd := exec.Command("etcd", "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("etcd-%d-%d", nodes, i)),
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--listen-client-urls", clients[i], "--advertise-client-urls", clients[i],
			"--initial-cluster", strings.Join(names, ","), "--quota-backend-bytes", "8000000000", "--logger", "zap", "--log-level", "error",
			"--cert-file", c.file, "--key-file", c.key,
			"--peer-cert-file", c.file, "--peer-key-file", c.key, "--peer-trusted-ca-file", c.file)
		cmd.Env = append(os.Environ(), "ETCD_UNSUPPORTED_ARCH=arm64")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		atEnd(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = log.Close() })
	}
	e := &etcd{}
	deadline := time.Now().Add(30 * time.Second)
	for e.endpoint == "" { // the leader, so that no read takes a detour
		for _, url := range clients {
			if leads(url, c) {
				e.endpoint = url
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("etcd has no leader after 30 s: see %s", dir)
		}
		time.Sleep(50 * time.Millisecond)
	}
	conn, err := dialEtcd(e.endpoint, c)
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = conn.Close() })
	e.conn, e.kv = conn, etcdserverpb.NewKVClient(conn)
	return e, nil
}

func dialEtcd(url string, c *certificate) (*grpc.ClientConn, error) {
	return grpc.NewClient(strings.TrimPrefix(url, "https://"),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS13})),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

func leads(url string, c *certificate) bool {
	conn, err := dialEtcd(url, c)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx, &etcdserverpb.StatusRequest{})
	return err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId
}

// get reads the keys at one moment.
func (e *etcd) get(ctx context.Context, keys [][]byte) error {
	txn := &etcdserverpb.TxnRequest{}
	for _, k := range keys {
		txn.Success = append(txn.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: k}}})
	}
	resp, err := e.kv.Txn(ctx, txn)
	if err != nil {
		return err
	}
	for i, r := range resp.Responses {
		if len(r.GetResponseRange().GetKvs()) != 1 {
			return fmt.Errorf("etcd does not have %q", keys[i])
		}
	}
	return nil
}

// put writes the records in one step: at most 128, etcd's bound.
func (e *etcd) put(ctx context.Context, keys [][]byte, value []byte) error {
	txn := &etcdserverpb.TxnRequest{}
	for _, k := range keys {
		txn.Success = append(txn.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: k, Value: value}}})
	}
	_, err := e.kv.Txn(ctx, txn)
	return err
}

// fill puts the dataset's secrets in: one key for each, as long as their records
// are together.
func (e *etcd) fill(d *dataset) error {
	ctx := context.Background()
	value := make([]byte, len(d.sample[0].data.Value)+len(d.sample[0].value.Value))
	const most = 128 // etcd's bound on a transaction
	var keys [][]byte
	put := func(key []byte) error {
		if keys = append(keys, key); len(keys) < most {
			return nil
		}
		err := e.put(ctx, keys, value)
		keys = nil
		return err
	}
	for _, s := range d.sample {
		if err := put(s.data.Key); err != nil {
			return err
		}
	}
	for i := len(d.sample); i < d.n; i++ { // the others are never asked for
		key := make([]byte, len(d.sample[0].data.Key))
		rand.Read(key)
		if err := put(key); err != nil {
			return err
		}
	}
	return e.put(ctx, keys, value)
}

func (e *etcd) getTen(ctx context.Context, d *dataset) error {
	var keys [][]byte
	for _, s := range d.ten() {
		keys = append(keys, s.data.Key)
	}
	return e.get(ctx, keys)
}

func (e *etcd) putTen(ctx context.Context, d *dataset) error {
	var keys [][]byte
	value := make([]byte, len(d.sample[0].data.Value)+len(d.sample[0].value.Value))
	for _, s := range d.ten() {
		keys = append(keys, s.data.Key)
	}
	return e.put(ctx, keys, value)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}
