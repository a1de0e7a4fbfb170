package detection

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
)

// A random makes up values. Two with the same name make the same.
type random struct{ *rand.Rand }

func newRandom(name string, n int) random {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return random{rand.New(rand.NewPCG(h.Sum64(), uint64(n)))}
}

const (
	digits   = "0123456789"
	lower    = "abcdefghijklmnopqrstuvwxyz"
	upper    = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	hexLower = digits + "abcdef"
	letters  = lower + upper
	alnum    = letters + digits
	base32   = upper + "234567"
	b64      = alnum + "+/"
	b64URL   = alnum + "-_"
)

// of returns n characters of the alphabet.
func (r random) of(alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

func (r random) hex(n int) string { return r.of(hexLower, n) }

// between returns from least to most, both included.
func (r random) between(least, most int) int { return least + r.IntN(most-least+1) }

func (r random) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	return b
}

func (r random) base64(n int) string { return base64.StdEncoding.EncodeToString(r.bytes(n)) }

func (r random) uuid() string {
	return r.hex(8) + "-" + r.hex(4) + "-4" + r.hex(3) + "-" + r.of("89ab", 1) + r.hex(3) + "-" + r.hex(12)
}

func (r random) ulid() string { return "01" + r.of("0123456789ABCDEFGHJKMNPQRSTVWXYZ", 24) }

func (r random) date() string {
	return fmt.Sprintf("202%d-%02d-%02d", r.between(3, 6), r.between(1, 12), r.between(1, 28))
}

func (r random) clock() string {
	return fmt.Sprintf("%02d:%02d:%02d", r.IntN(24), r.IntN(60), r.IntN(60))
}

func (r random) version() string {
	return fmt.Sprintf("%d.%d.%d", r.IntN(12), r.IntN(30), r.IntN(20))
}

func (r random) ip() string { return fmt.Sprintf("10.%d.%d.%d", r.IntN(256), r.IntN(256), r.IntN(256)) }

func (r random) word() string { return pick(r, words) }

// slug is two or three words, as things are called.
func (r random) slug() string {
	s := r.word() + "-" + r.word()
	if r.IntN(3) == 0 {
		s += "-" + r.word()
	}
	return s
}

func (r random) host() string { return r.word() + "." + pick(r, domains) }

// password is as people and their password managers make them.
func (r random) password() string {
	const marks = "!#%*+-.=?@^_~"
	title := func(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
	switch r.IntN(6) {
	case 0: // Harbor-Velvet-38
		return title(r.word()) + "-" + title(r.word()) + "-" + r.of(digits, 2)
	case 1: // Velvet2024!
		return title(r.word()) + "20" + r.of("12", 1) + r.of(digits, 1) + r.of("!#?*", 1)
	case 2: // h4rborV3lvet_91
		leet := strings.NewReplacer("a", "4", "e", "3", "o", "0", "i", "1")
		return leet.Replace(r.word()) + title(r.word()) + "_" + r.of(digits, 2)
	case 3:
		return r.of(alnum, r.between(12, 20))
	case 4:
		return r.of(letters, 1) + r.of(alnum+marks, r.between(14, 22)) + r.of(digits, 1)
	default:
		return r.of(letters, 2) + r.of(marks, 1) + r.of(alnum, 8) + r.of(marks, 1) + r.of(alnum, 4)
	}
}

// opaque is a key whose form says nothing of whose it is.
func (r random) opaque() string {
	switch r.IntN(5) {
	case 0:
		return r.hex(32)
	case 1:
		return r.hex(64)
	case 2:
		return r.of(alnum, r.between(32, 48))
	case 3:
		return strings.TrimRight(r.base64(32), "=")
	default:
		return r.of(b64URL[:len(b64URL)-2], 1) + r.of(b64URL, r.between(30, 42)) + r.of(alnum, 1)
	}
}

func pick[T any](r random, from []T) T { return from[r.IntN(len(from))] }

// quoted is s as it is between the quotation marks of JSON, and of most
// languages' strings.
func quoted(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String()[1:], "\"\n")
}

var words = strings.Fields(`amber anchor apple arrow autumn badger bamboo basil beacon birch bishop blossom bramble
breeze bridge bronze cabin cactus candle canyon carbon castle cedar cello chalk cherry cider cinder citrus clover cobalt
comet copper coral cotton crater cricket crystal cypress dagger dahlia damson delta denim desert dragon drift eagle
ember falcon fennel fern fiddle finch fjord flint forest fossil fox garnet geyser ginger glacier granite gravel
grove hammer harbor hazel heron hickory hollow ibis indigo iris island ivory jasper juniper kayak kelp kestrel lagoon
lantern larch lemon lichen lilac linen lotus lunar maple marble marlin meadow mercury mesa mint mistral moss
nebula nectar nickel nimbus nutmeg oasis oboe ocean olive onyx opal orbit orchid otter oxide paddle panther
papaya parsley pebble pepper pewter phoenix pine plum polar poppy prairie prism quail quarry quartz quill rabbit raven
reef ridge river robin rocket saddle saffron sage salmon sandal sapphire sequoia shadow silver sorrel sparrow spruce
stellar summit sunset tango teal thistle thunder tiger timber topaz torch tulip tundra turnip umber valley vanilla
velvet violet walnut willow winter wolf yarrow zephyr zinc`)

var domains = []string{"acme-corp.com", "northwind.io", "initech.net", "globex.dev", "hooli.cloud", "umbra.internal", "svc.cluster.local"}
