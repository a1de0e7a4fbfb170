package remote

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// replies answers every call with the bytes of the fuzzer: for a stream, messages
// with their lengths before them.
type replies struct {
	vaultv1.VaultClient
	bytes []byte
}

func (r replies) decode(m proto.Message) error { return proto.Unmarshal(r.bytes, m) }

func (r replies) Read(context.Context, *vaultv1.ReadRequest, ...grpc.CallOption) (*vaultv1.ReadResponse, error) {
	m := &vaultv1.ReadResponse{}
	return m, r.decode(m)
}

func (r replies) WhoAmI(context.Context, *vaultv1.WhoAmIRequest, ...grpc.CallOption) (*vaultv1.WhoAmIResponse, error) {
	m := &vaultv1.WhoAmIResponse{}
	return m, r.decode(m)
}

func (r replies) ListAPIKeys(context.Context, *vaultv1.ListAPIKeysRequest, ...grpc.CallOption) (*vaultv1.ListAPIKeysResponse, error) {
	m := &vaultv1.ListAPIKeysResponse{}
	return m, r.decode(m)
}

type scanReplies struct {
	grpc.ServerStreamingClient[vaultv1.ScanResponse]
	rest []byte
}

func (r replies) Scan(context.Context, *vaultv1.ReadRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[vaultv1.ScanResponse], error) {
	return &scanReplies{rest: r.bytes}, nil
}

func (s *scanReplies) Recv() (*vaultv1.ScanResponse, error) {
	if len(s.rest) == 0 {
		return nil, io.EOF
	}
	n := min(int(s.rest[0]), len(s.rest)-1)
	m := &vaultv1.ScanResponse{}
	err := proto.Unmarshal(s.rest[1:1+n], m)
	s.rest = s.rest[1+n:]
	return m, err
}

// FuzzReplies: whatever bytes come, what gets through is of the ranges that were
// asked for, and what goes to people is printable.
func FuzzReplies(f *testing.F) {
	record := func(k, v string) *vaultv1.Record { return &vaultv1.Record{Key: []byte(k), Value: []byte(v)} }
	seed := func(how byte, list ...proto.Message) {
		var all []byte
		for _, m := range list {
			b, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			if how == 1 {
				all = append(all, byte(len(b)))
			}
			all = append(all, b...)
		}
		f.Add(how, all)
	}
	key := &vaultv1.APIKey{Id: "0011223344556677", Name: "ci", Scope: vaultv1.Scope_SCOPE_READ, App: "myapp", Env: "production", CreatedUnix: 1, MachineKey: "0011223344556677"}
	seed(0, &vaultv1.ReadResponse{Results: []*vaultv1.Records{{Records: []*vaultv1.Record{record("a", "1")}}, {}, {Records: []*vaultv1.Record{record("az", "1")}}}})
	seed(1, &vaultv1.ScanResponse{Range: 0, Records: []*vaultv1.Record{record("a", "1"), record("ab", "2")}}, &vaultv1.ScanResponse{Range: 2, Records: []*vaultv1.Record{record("az", "1")}}, &vaultv1.ScanResponse{End: true})
	seed(2, &vaultv1.WhoAmIResponse{Account: make([]byte, 16), ApiKey: key, Version: "1"})
	seed(3, &vaultv1.ListAPIKeysResponse{ApiKeys: []*vaultv1.APIKey{key, key}})
	f.Fuzz(func(t *testing.T, how byte, b []byte) {
		s := &Store{url: "https://vault", rpc: replies{bytes: b}, stall: time.Minute, bound: 1 << 20}
		c := &call{Context: t.Context(), timer: time.NewTimer(time.Hour), until: time.Now().Add(time.Hour)}
		var err error
		switch how % 4 {
		case 0, 1:
			ranges := []store.Range{{Key: []byte("a")}, {Key: []byte("no")}, {Key: []byte("a"), Take: store.Last}}
			if how%4 == 1 {
				ranges[0].Take = store.All
			}
			sn := s.snapshot(t.Context())
			req := &vaultv1.ReadRequest{}
			for _, r := range ranges {
				req.Ranges = append(req.Ranges, protoRange(r))
			}
			var got [][]store.Record
			if how%4 == 1 {
				got, err = sn.scan(c, req, nil)
			} else {
				r, derr := s.rpc.Read(c, req)
				if err = derr; err == nil {
					got, err = sn.records(r, len(ranges))
				}
			}
			if err == nil {
				err = sn.accept(ranges, req.Ranges, got)
			}
			if err == nil && (len(sn.expects) != len(ranges) || sn.size > s.bound) {
				t.Errorf("%d ranges of %d bytes", len(sn.expects), sn.size)
			}
		case 2:
			r, derr := s.rpc.WhoAmI(c, nil)
			if err = derr; err == nil {
				_, err = s.identity(r)
			}
		case 3:
			r, derr := s.rpc.ListAPIKeys(c, nil)
			if err = derr; err == nil {
				var list []APIKey
				list, err = s.apiKeys(r.ApiKeys)
				for _, k := range list {
					for _, r := range k.Name + k.App + k.Env + k.ID + k.MachineKey {
						if !unicode.IsPrint(r) {
							t.Errorf("%+q", k)
						}
					}
				}
			}
		}
		if err == nil || errors.Is(err, proto.Error) {
			return
		}
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) || hint.Of(err) == "" {
			t.Errorf("%v", err)
		}
	})
}

// FuzzPrintable: one short line comes out, whatever goes in.
func FuzzPrintable(f *testing.F) {
	f.Add("\x1b]0;owned\x07\x1b[31m\n\u202e\xff")
	f.Fuzz(func(t *testing.T, text string) {
		out := printable(text)
		n := 0
		for _, r := range out {
			if n++; !unicode.IsPrint(r) || n > maxText+1 {
				t.Fatalf("%q", out)
			}
		}
	})
}
