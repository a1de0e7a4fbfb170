package witness

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/vault"
)

// The file, with the notation of docs/FORMAT.md:
//
//	"ov seen 1\n" ‖ fields(u32(epoch), u64(time), list(app, …)) ‖ SHA-256 of all before
//	app    = fields(slug, id, u64(made), u32(generation), u64(time), list(env, …))
//	env    = fields(slug, id, u64(made), u64(counter), u32(secrets), sum, u64(time), u64(whole), secret ‖ …)
//	secret = name index ‖ u32(version) ‖ mark ‖ u64(time)
//
// Lists are in the order of slugs and of name indexes. An unknown time is 0.

const (
	magic = "ov seen 1\n"
	// maxFile bounds a file, in bytes.
	maxFile    = 1 << 20
	secretSize = 32 + 4 + 8 + 8
)

// encode returns the file, of at most maxFile bytes: what does not fit is
// forgotten, first the secrets of the envs that changed longest ago, then envs.
func encode(s *vault.Seen) []byte {
	b := encodeAll(s)
	if len(b) <= maxFile {
		return b
	}
	extra := len(b) - maxFile
	type place struct {
		app *vault.SeenApp
		env string
	}
	var all []place
	for _, app := range s.Apps {
		for env := range app.Envs {
			all = append(all, place{app, env})
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(a.app.Envs[a.env].At.Compare(b.app.Envs[b.env].At), cmp.Compare(a.env, b.env))
	})
	for _, p := range all {
		if e := p.app.Envs[p.env]; extra > 0 && len(e.Secrets) > 0 {
			extra -= len(e.Secrets) * secretSize
			e.Whole, e.Secrets = 0, map[[32]byte]vault.SeenSecret{}
		}
	}
	for _, p := range all {
		if extra > 0 {
			extra -= 4 + len(encodeEnv(p.env, p.app.Envs[p.env]))
			delete(p.app.Envs, p.env)
		}
	}
	if b = encodeAll(s); len(b) > maxFile { // of apps alone
		s.Apps = nil
		b = encodeAll(s)
	}
	return b
}

func encodeAll(s *vault.Seen) []byte {
	var apps []byte
	for _, slug := range slices.Sorted(maps.Keys(s.Apps)) {
		a := s.Apps[slug]
		var envs []byte
		for _, slug := range slices.Sorted(maps.Keys(a.Envs)) {
			envs = envelope.AppendFields(envs, encodeEnv(slug, a.Envs[slug]))
		}
		apps = envelope.AppendFields(apps, envelope.Fields([]byte(slug), a.ID[:], encodeTime(a.Created),
			envelope.Uint32(a.Generation), encodeTime(a.At), envs))
	}
	b := envelope.Bind(magic, envelope.Uint32(s.Epoch), encodeTime(s.At), apps)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func encodeEnv(slug string, e *vault.SeenEnv) []byte {
	secrets := make([]byte, 0, len(e.Secrets)*secretSize)
	for _, index := range slices.SortedFunc(maps.Keys(e.Secrets), func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) }) {
		secret := e.Secrets[index]
		secrets = append(secrets, index[:]...)
		secrets = append(secrets, envelope.Uint32(secret.Version)...)
		secrets = append(secrets, secret.Mark[:]...)
		secrets = append(secrets, encodeTime(secret.At)...)
	}
	return envelope.Fields([]byte(slug), e.ID[:], encodeTime(e.Created), envelope.Uint64(e.Counter), envelope.Uint32(e.Count),
		e.Sum[:], encodeTime(e.At), envelope.Uint64(e.Whole), secrets)
}

func encodeTime(t time.Time) []byte {
	if t.IsZero() {
		return envelope.Uint64(0)
	}
	return envelope.Uint64(uint64(t.Unix())) //nolint:gosec // bounded below
}

// decoder takes fields apart and keeps the first error.
type decoder struct{ err error }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{envelope.ErrMalformed}, args...)...)
	}
}

// split returns n fields, empty ones after an error; any number if n is negative.
func (d *decoder) split(b []byte, n int) [][]byte {
	list, err := envelope.Split(b, n)
	if err != nil {
		d.err = cmp.Or(d.err, err)
		return make([][]byte, max(n, 0))
	}
	return list
}

func (d *decoder) u32(b []byte) uint32 {
	n, err := envelope.ParseUint32(b)
	d.err = cmp.Or(d.err, err)
	return n
}

func (d *decoder) u64(b []byte) uint64 {
	n, err := envelope.ParseUint64(b)
	d.err = cmp.Or(d.err, err)
	return n
}

// time is at most the end of the year 9999.
func (d *decoder) time(b []byte) time.Time {
	n := d.u64(b)
	if n > 253402300799 {
		d.fail("time %d", n)
	}
	if n == 0 || d.err != nil {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC() //nolint:gosec // bounded
}

func (d *decoder) slug(b []byte) string {
	if s := string(b); names.ValidSlug(s) {
		return s
	}
	d.fail("a slug of %d bytes", len(b))
	return ""
}

func (d *decoder) fixed(dst, b []byte) {
	if len(b) != len(dst) {
		d.fail("%d bytes instead of %d", len(b), len(dst))
	}
	copy(dst, b)
}

// decode is the inverse of encodeAll. It takes no other bytes than that makes.
func decode(b []byte) (*vault.Seen, error) {
	d := &decoder{}
	if len(b) > maxFile || len(b) < len(magic)+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: %d bytes, or not of this version", envelope.ErrMalformed, len(b))
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w: the checksum does not match", envelope.ErrMalformed)
	}
	f := d.split(body[len(magic):], 3)
	s := &vault.Seen{Epoch: d.u32(f[0]), At: d.time(f[1]), Apps: map[string]*vault.SeenApp{}}
	last := ""
	for _, item := range d.split(f[2], -1) {
		f := d.split(item, 6)
		slug := d.slug(f[0])
		if slug <= last {
			d.fail("apps out of order")
		}
		last = slug
		a := &vault.SeenApp{Created: d.time(f[2]), Generation: d.u32(f[3]), At: d.time(f[4])}
		d.fixed(a.ID[:], f[1])
		a.Envs = d.envs(f[5])
		s.Apps[slug] = a
	}
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

func (d *decoder) envs(b []byte) map[string]*vault.SeenEnv {
	envs := map[string]*vault.SeenEnv{}
	last := ""
	for _, item := range d.split(b, -1) {
		f := d.split(item, 9)
		slug := d.slug(f[0])
		if slug <= last {
			d.fail("envs out of order")
		}
		last = slug
		e := &vault.SeenEnv{Created: d.time(f[2]), Counter: d.u64(f[3]), Count: d.u32(f[4]), At: d.time(f[6]), Whole: d.u64(f[7])}
		d.fixed(e.ID[:], f[1])
		d.fixed(e.Sum[:], f[5])
		e.Secrets = d.secrets(f[8])
		envs[slug] = e
	}
	return envs
}

func (d *decoder) secrets(b []byte) map[[32]byte]vault.SeenSecret {
	if len(b)%secretSize != 0 || len(b)/secretSize > vault.MaxSeen {
		d.fail("secrets in %d bytes", len(b))
		return nil
	}
	secrets := make(map[[32]byte]vault.SeenSecret, len(b)/secretSize)
	var last []byte
	for item := range slices.Chunk(b, secretSize) {
		if bytes.Compare(item[:32], last) <= 0 {
			d.fail("secrets out of order")
		}
		last = item[:32]
		s := vault.SeenSecret{Version: d.u32(item[32:36]), At: d.time(item[44:])}
		copy(s.Mark[:], item[36:44])
		secrets[[32]byte(item[:32])] = s
	}
	return secrets
}
