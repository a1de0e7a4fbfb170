package transfer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// Kinds of record: the first byte of a key (docs/FORMAT.md, "Record keys"). What
// this package reads of them is in the clear, and nothing that it decides on by
// it is secret: whoever opens the vault checks it.
const (
	kindAccount = 'A'
	kindApp     = 'a'
	kindEnv     = 'e'
	kindKey     = 'k'
	kindData    = 'd'
	kindValue   = 'v'

	idSize      = 16
	fingerprint = 8
	// appEnd, envEnd and nameEnd are where the parts of the key of a secret's
	// version end.
	appEnd  = 1 + idSize
	envEnd  = appEnd + idSize
	nameEnd = envEnd + 32
)

// change is a record that both ends have, and not the same.
type change struct{ key, from, to []byte }

// difference is what one end has to do to be like the other.
type difference struct {
	added   []store.Record // which it has not
	changed []change       // which it has otherwise
	gone    [][]byte       // keys that only it has
	// What both have in the clear, by key: apps and envs of the destination.
	places map[string][]byte
	names  map[string]newest // by the part of a key that names env and secret
	err    error
}

// newest are the versions of a secret that the ends have; 0 is none.
type newest struct{ from, to, oldest uint32 } // oldest of from

// compare reads all of the destination. src is in the order of keys, as is what
// a Reader scans.
func compare(src *Contents, r store.Reader) *difference {
	d := &difference{places: map[string][]byte{}, names: map[string]newest{}}
	rest := src.Records
	d.err = r.Scan(nil, func(key, value []byte) error {
		for len(rest) > 0 && bytes.Compare(rest[0].Key, key) < 0 {
			d.added, rest = append(d.added, rest[0]), rest[1:]
		}
		switch key[0] {
		case kindApp, kindEnv:
			d.places[string(key)] = bytes.Clone(value)
		case kindData:
			d.seen(key, false)
		}
		if len(rest) == 0 || !bytes.Equal(rest[0].Key, key) {
			d.gone = append(d.gone, bytes.Clone(key))
			return nil
		}
		if !bytes.Equal(rest[0].Value, value) {
			c := change{key: rest[0].Key, from: rest[0].Value}
			if key[0] != kindData && key[0] != kindValue {
				c.to = bytes.Clone(value)
			}
			d.changed = append(d.changed, c)
		}
		rest = rest[1:]
		return nil
	})
	d.added = append(d.added, rest...)
	for _, rec := range src.Records {
		if rec.Key[0] == kindData {
			d.seen(rec.Key, true)
		}
	}
	return d
}

// seen notes a version of a secret.
func (d *difference) seen(key []byte, source bool) {
	if len(key) != nameEnd+4 {
		return
	}
	name, version := string(key[1:nameEnd]), binary.BigEndian.Uint32(key[nameEnd:])
	n := d.names[name]
	if source {
		if n.oldest == 0 || version < n.oldest {
			n.oldest = version
		}
		n.from = max(n.from, version)
	} else {
		n.to = max(n.to, version)
	}
	d.names[name] = n
}

func (d *difference) batch() store.Batch {
	b := make(store.Batch, 0, len(d.added)+len(d.changed)+len(d.gone))
	for _, rec := range d.added {
		b.Put(rec.Key, rec.Value)
	}
	for _, c := range d.changed {
		b.Put(c.key, c.from)
	}
	for _, key := range d.gone {
		b.Delete(key)
	}
	return b
}

// Diverged says that the destination is not merely an older state of the source.
type Diverged struct {
	To      string
	Reasons []string
}

// shown bounds the reasons that are given.
const shown = 6

func (e *Diverged) Error() string {
	list := e.Reasons
	more := ""
	if len(list) > shown {
		list, more = list[:shown], fmt.Sprintf("; and %d more", len(e.Reasons)-shown)
	}
	return fmt.Sprintf("%s has what would be lost: %s%s", e.To, strings.Join(list, "; "), more)
}

// allowed says why the destination must not be replaced.
func (o Options) allowed(src *Contents, d *difference, to End) error {
	i := slices.IndexFunc(d.changed, func(c change) bool { return bytes.Equal(c.key, accountKey) })
	if i >= 0 && !sameID(d.changed[i].key, d.changed[i].from, d.changed[i].to) && !o.AnyAccount {
		return hint.Errorf("name another place for it, or another account of the server", "%w at %s", ErrOtherAccount, to.Name)
	}
	if o.Force || o.AnyAccount {
		return nil
	}
	if reasons := d.newer(src); len(reasons) > 0 {
		return hint.Wrap(&Diverged{to.Name, reasons}, "move it the other way, or give it up: --force")
	}
	return nil
}

// head is what is read of a record in the clear: an id, and the changes of keys,
// one behind the other, so that an older record's are the beginning of a newer
// one's.
type head struct{ id, changes []byte }

func decode(key, value []byte) (head, bool) {
	// The number of further fields depends on the kind, and on the version of ov.
	rec, err := envelope.DecodeClear(key[0], key, value, -1)
	if err != nil || len(rec.Fields) < 2 || len(rec.Fields[0]) != idSize {
		return head{}, false
	}
	return head{rec.Fields[0], rec.Fields[1]}, true
}

func sameID(key, a, b []byte) bool {
	x, ok1 := decode(key, a)
	y, ok2 := decode(key, b)
	return ok1 && ok2 && bytes.Equal(x.id, y.id)
}

// rotated reports whether the record at the source was made by a later change of
// keys than the one at the destination; ok, whether one of them is older at all.
func (c change) rotated() (later, ok bool) {
	from, ok1 := decode(c.key, c.from)
	to, ok2 := decode(c.key, c.to)
	if !ok1 || !ok2 || !bytes.Equal(from.id, to.id) || !bytes.HasPrefix(from.changes, to.changes) {
		return false, false
	}
	return len(from.changes) > len(to.changes), true
}

// newer lists what the destination has and the source has not, or has older.
func (d *difference) newer(src *Contents) []string {
	r := report{slugs: d.slugs(src), count: map[string]int{}, envs: map[string]bool{}}
	account := false             // keys of the account were changed after the destination
	rotated := map[string]bool{} // the same, of an app or env, by its id
	written := map[string]bool{} // envs of which the source has what is new
	changedEnvs := []change(nil) // whose keys are the same
	envOf := func(key []byte) string { return string(key[appEnd:envEnd]) }
	for _, rec := range d.added {
		if rec.Key[0] == kindData && len(rec.Key) == nameEnd+4 {
			written[envOf(rec.Key)] = true
		}
	}
	// In the order of keys: A, a, d, e, k, v. What is above is seen first.
	for _, c := range d.changed {
		switch c.key[0] {
		case kindAccount:
			later, ok := c.rotated()
			if account = later; !ok || !later {
				r.say("keys of the account that are not those of the source")
			}
		case kindApp, kindEnv:
			later, ok := c.rotated()
			from, _ := decode(c.key, c.from)
			switch {
			case !ok:
				r.say("%s with other keys", r.place(c.key))
			case later:
				rotated[string(from.id)] = true
			case account: // whose key all others come from
			case c.key[0] == kindEnv:
				changedEnvs = append(changedEnvs, c)
			default:
				r.say("%s with other keys", r.place(c.key))
			}
		}
	}
	for _, c := range d.changed {
		switch c.key[0] {
		case kindAccount, kindApp, kindEnv:
		case kindData:
			if len(c.key) == nameEnd+4 && (account || rotated[string(c.key[1:appEnd])] || rotated[envOf(c.key)]) {
				continue
			}
			r.add("other versions of secrets in %s", c.key)
		case kindValue: // both records of a version differ: it is said once
			if _, also := slices.BinarySearchFunc(d.changed, append([]byte{kindData}, c.key[1:]...),
				func(c change, key []byte) int { return bytes.Compare(c.key, key) }); !also {
				r.add("other versions of secrets in %s", c.key)
			}
		default:
			r.say("%s that is not the source's", r.place(c.key))
		}
	}
	for _, key := range d.gone {
		switch {
		case key[0] == kindValue:
		case key[0] == kindData && len(key) == nameEnd+4:
			n := d.names[string(key[1:nameEnd])]
			version := binary.BigEndian.Uint32(key[nameEnd:])
			switch {
			case n.from == 0:
				r.add("secrets in %s that the source has not", key)
			case version > n.from:
				r.add("newer versions of secrets in %s", key)
			case version > n.oldest: // else the source has dropped it as too old
				r.add("other versions of secrets in %s", key)
			}
		default:
			r.say("%s", r.place(key))
		}
	}
	for _, c := range changedEnvs {
		from, _ := decode(c.key, c.from)
		if !rotated[string(c.key[1:appEnd])] && !written[string(from.id)] && !r.envs[string(from.id)] {
			r.say("writes to %s of which it cannot be told whether the source has them", r.place(c.key))
		}
	}
	return r.reasons()
}

// report collects reasons.
type report struct {
	slugs map[string]string // of apps and envs, by id
	list  []string
	order []string
	count map[string]int
	envs  map[string]bool // of whose secrets something was said, by id
}

func (r *report) say(format string, args ...any) {
	r.list = append(r.list, fmt.Sprintf(format, args...))
}

// add counts a secret's version as one of those of its env: %s in what.
func (r *report) add(what string, key []byte) {
	where := "an unknown env"
	if len(key) >= envEnd {
		where = r.slugs[string(key[1:appEnd])] + "/" + r.slugs[string(key[appEnd:envEnd])]
		r.envs[string(key[appEnd:envEnd])] = true
	}
	what = fmt.Sprintf(what, where)
	if r.count[what] == 0 {
		r.order = append(r.order, what)
	}
	r.count[what]++
}

func (r *report) reasons() []string {
	for _, what := range r.order {
		r.list = append(r.list, fmt.Sprintf("%s (%d)", what, r.count[what]))
	}
	return r.list
}

// place names a record for a person. Slugs in its key are printable or quoted.
func (r *report) place(key []byte) string {
	switch {
	case key[0] == kindAccount:
		return "the account"
	case key[0] == kindApp:
		return "app " + text(key[1:])
	case key[0] == kindEnv && len(key) > appEnd:
		return "env " + r.slugs[string(key[1:appEnd])] + "/" + text(key[appEnd:])
	case key[0] == kindKey && len(key) == 1+fingerprint+4:
		return "machine key " + hex.EncodeToString(key[1:1+fingerprint])
	}
	return fmt.Sprintf("a record of kind %q", key[:1])
}

// text is a slug as it may be printed.
func text(b []byte) string {
	if len(b) > 63 || strings.Trim(string(b), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Sprintf("%.80q", b)
	}
	return string(b)
}

// slugs finds the names of apps and envs of both ends.
func (d *difference) slugs(src *Contents) map[string]string {
	found := map[string]string{}
	note := func(key, value []byte) {
		rec, ok := decode(key, value)
		if !ok {
			return
		}
		if key[0] == kindApp {
			found[string(rec.id)] = text(key[1:])
		} else if len(key) > appEnd {
			found[string(rec.id)] = text(key[appEnd:])
		}
	}
	for _, rec := range src.Records {
		if rec.Key[0] == kindApp || rec.Key[0] == kindEnv {
			note(rec.Key, rec.Value)
		}
	}
	for key, value := range d.places {
		note([]byte(key), value)
	}
	return found
}
